"""outputd.v1.Profiles: recordings begun and ended, profiles listed, shown, taken in and dropped. Decides nothing itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from outputd._proto import admin_pb2
from outputd.builds.profiles import About, Profiles
from outputd.rpc.edge import Context

_PIECE: Final = 1 << 20
"""Bytes of one reply: clients take 4 MiB."""


class ProfilesService:
    """The service."""

    def __init__(self, profiles: Profiles) -> None:
        self._profiles = profiles

    async def start_recording(
        self, request: admin_pb2.StartRecordingRequest, _context: Context
    ) -> admin_pb2.StartRecordingResponse:
        await self._profiles.start(request.name, request.output_base_id)
        return admin_pb2.StartRecordingResponse()

    async def stop_recording(
        self, request: admin_pb2.StopRecordingRequest, _context: Context
    ) -> admin_pb2.StopRecordingResponse:
        about = await self._profiles.stop(request.name, discard=request.discard)
        return admin_pb2.StopRecordingResponse(profile=_facts(about))

    async def list_profiles(
        self, _request: admin_pb2.ListProfilesRequest, _context: Context
    ) -> admin_pb2.ListProfilesResponse:
        return admin_pb2.ListProfilesResponse(profiles=map(_facts, await self._profiles.all()))

    async def get_profile(
        self, request: admin_pb2.GetProfileRequest, _context: Context
    ) -> AsyncIterator[admin_pb2.GetProfileResponse]:
        text = await self._profiles.text(request.name)
        for at in range(0, len(text), _PIECE):
            yield admin_pb2.GetProfileResponse(text=text[at : at + _PIECE])

    async def put_profile(
        self, request: admin_pb2.PutProfileRequest, _context: Context
    ) -> admin_pb2.PutProfileResponse:
        about = await self._profiles.put(request.name, request.text)
        return admin_pb2.PutProfileResponse(profile=_facts(about))

    async def delete_profile(
        self, request: admin_pb2.DeleteProfileRequest, _context: Context
    ) -> admin_pb2.DeleteProfileResponse:
        await self._profiles.delete(request.name)
        return admin_pb2.DeleteProfileResponse()


def _facts(about: About) -> admin_pb2.ProfileFacts:
    facts = admin_pb2.ProfileFacts(
        name=about.name,
        output_base_id=about.output_base_id.encode(errors="replace").decode(),
        files=about.files,
        in_part=about.in_part,
        recording=about.recording,
        cut_short=not about.complete,
        error=about.error,
    )
    if about.recorded:
        facts.recorded.FromSeconds(about.recorded)
    return facts
