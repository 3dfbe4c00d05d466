"""The service Profiles over a real channel: its life, its words for errors, and texts larger than one reply may be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from outputd._proto import admin_pb2 as admin
from outputd.builds.profiles import Profiles
from outputd.disk.disk import RealDisk
from outputd.drive.recording import Recordings
from outputd.errors import Invalid, NotFound, Precondition
from outputd.rpc.client import Stub
from outputd.rpc.profiles import ProfilesService
from outputd.rpc.services import service_handler
from tests.unit.rpc.loopback import served

SERVICE = admin.DESCRIPTOR.services_by_name["Profiles"]
SECONDS = 10


def used(path: Path, use: Callable[[Stub, Profiles], Awaitable[None]]) -> None:
    async def main() -> None:
        profiles = Profiles(str(path), RealDisk(), Recordings())
        try:
            async with served(service_handler(SERVICE, ProfilesService(profiles))) as channel:
                await use(Stub(channel, SERVICE), profiles)
        finally:
            profiles.close()

    asyncio.run(main())


def test_life(tmp_path: Path) -> None:
    async def use(stub: Stub, _: Profiles) -> None:
        start = admin.StartRecordingRequest(name="p", output_base_id="base")
        await stub.call("StartRecording", start, admin.StartRecordingResponse, timeout=SECONDS)
        with pytest.raises(Precondition):
            await stub.call("StartRecording", start, admin.StartRecordingResponse, timeout=SECONDS)
        listed = admin.ListProfilesRequest()
        reply = await stub.call("ListProfiles", listed, admin.ListProfilesResponse, timeout=SECONDS)
        [facts] = reply.profiles
        assert (facts.name, facts.output_base_id, facts.recording, facts.cut_short) == (
            "p",
            "base",
            True,
            False,
        )
        stop = admin.StopRecordingRequest(name="p")
        stopped = await stub.call("StopRecording", stop, admin.StopRecordingResponse, timeout=SECONDS)
        assert stopped.profile.recorded == facts.recorded and not stopped.profile.recording
        with pytest.raises(NotFound):
            await stub.call("StopRecording", stop, admin.StopRecordingResponse, timeout=SECONDS)
        delete = admin.DeleteProfileRequest(name="p")
        await stub.call("DeleteProfile", delete, admin.DeleteProfileResponse, timeout=SECONDS)
        with pytest.raises(NotFound):
            await stub.call("DeleteProfile", delete, admin.DeleteProfileResponse, timeout=SECONDS)

    used(tmp_path, use)


def test_a_large_text_comes_back_in_pieces(tmp_path: Path) -> None:
    text = b"outputd-profile: 1\n\n" + b"".join(b"%0100d\n" % number for number in range(60_000))

    async def use(stub: Stub, _: Profiles) -> None:
        put = admin.PutProfileRequest(name="p", text=text)
        reply = await stub.call("PutProfile", put, admin.PutProfileResponse, timeout=SECONDS)
        assert reply.profile.files == 60_000
        get = admin.GetProfileRequest(name="p")
        pieces = [
            piece.text
            async for piece in stub.stream("GetProfile", get, admin.GetProfileResponse, timeout=SECONDS)
        ]
        assert len(pieces) > 1 and b"".join(pieces) == text
        with pytest.raises(Invalid, match="p:3"):
            wrong = admin.PutProfileRequest(name="p", text=b"outputd-profile: 1\n\n/absolute\n")
            await stub.call("PutProfile", wrong, admin.PutProfileResponse, timeout=SECONDS)

    used(tmp_path, use)
