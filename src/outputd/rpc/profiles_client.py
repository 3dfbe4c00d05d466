"""Tells a running daemon what to record, and asks for profiles, for commands. Protocol: `outputd.v1.Profiles`."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Final, TypeVar

import grpc.aio
from google.protobuf.message import Message

from outputd._proto import admin_pb2
from outputd._proto.admin_pb2 import (
    DeleteProfileRequest,
    DeleteProfileResponse,
    GetProfileRequest,
    GetProfileResponse,
    ListProfilesRequest,
    ListProfilesResponse,
    ProfileFacts,
    PutProfileRequest,
    PutProfileResponse,
    StartRecordingRequest,
    StartRecordingResponse,
    StopRecordingRequest,
    StopRecordingResponse,
)
from outputd.rpc.client import CHANNEL_OPTIONS, Stub

__all__ = [
    "ProfileFacts",
    "delete_profile",
    "fetch_profile",
    "fetch_profiles",
    "put_profile",
    "start_recording",
    "stop_recording",
]

Reply = TypeVar("Reply", bound=Message)

# The daemon is on this machine; http_proxy is not meant for it.
_OPTIONS: Final = (*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0))
_SECONDS: Final = 60.0
"""For any call: none waits for more than the disk."""


def start_recording(target: str, name: str, output_base_id: str) -> None:
    """Raises what errors.py has, here and below."""
    request = StartRecordingRequest(name=name, output_base_id=output_base_id)
    asyncio.run(_call(target, "StartRecording", request, StartRecordingResponse))


def stop_recording(target: str, name: str, *, discard: bool = False) -> ProfileFacts:
    """What was recorded."""
    request = StopRecordingRequest(name=name, discard=discard)
    return asyncio.run(_call(target, "StopRecording", request, StopRecordingResponse)).profile


def fetch_profiles(target: str) -> list[ProfileFacts]:
    reply = _call(target, "ListProfiles", ListProfilesRequest(), ListProfilesResponse)
    return list(asyncio.run(reply).profiles)


def fetch_profile(target: str, name: str) -> bytes:
    """Its text."""

    async def fetch() -> bytes:
        async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
            profiles = Stub(channel, admin_pb2.DESCRIPTOR.services_by_name["Profiles"])
            request = GetProfileRequest(name=name)
            pieces = profiles.stream("GetProfile", request, GetProfileResponse, timeout=_SECONDS)
            async with aclosing(pieces):
                return b"".join([piece.text async for piece in pieces])

    return asyncio.run(fetch())


def put_profile(target: str, name: str, text: bytes) -> ProfileFacts:
    """What is kept now."""
    request = PutProfileRequest(name=name, text=text)
    return asyncio.run(_call(target, "PutProfile", request, PutProfileResponse)).profile


def delete_profile(target: str, name: str) -> None:
    asyncio.run(_call(target, "DeleteProfile", DeleteProfileRequest(name=name), DeleteProfileResponse))


async def _call(target: str, method: str, request: Message, reply: type[Reply]) -> Reply:
    async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
        profiles = Stub(channel, admin_pb2.DESCRIPTOR.services_by_name["Profiles"])
        return await profiles.call(method, request, reply, timeout=_SECONDS)
