"""Tells a running daemon what is to be here, and asks what happens, for commands. Protocol: `outputd.v1.Trees`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Final, TypeVar

import grpc.aio
from google.protobuf.message import Message

from outputd._proto import admin_pb2
from outputd._proto.admin_pb2 import (
    FileCount,
    ForgetRequest,
    ForgetResponse,
    GetActivityRequest,
    GetActivityResponse,
    ListPinsRequest,
    ListPinsResponse,
    NamedActivity,
    PinnedFiles,
    PinRequest,
    PinResponse,
    PrefetchRequest,
    PrefetchResponse,
    UnpinRequest,
    UnpinResponse,
    WatchRequest,
    WatchResponse,
)
from outputd.errors import Unavailable
from outputd.rpc.client import CHANNEL_OPTIONS, Stub

__all__ = [
    "FileCount",
    "ForgetResponse",
    "GetActivityResponse",
    "NamedActivity",
    "PinnedFiles",
    "PrefetchRequest",
    "PrefetchResponse",
    "WatchResponse",
    "fetch_activity",
    "fetch_pins",
    "forget",
    "pin",
    "prefetch",
    "unpin",
    "watch",
]

Reply = TypeVar("Reply", bound=Message)

# The daemon is on this machine; http_proxy is not meant for it.
_OPTIONS: Final = (*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0))
_LOOKING: Final = 3600.0
"""Seconds for a call that looks through a tree."""
_LONGEST: Final = 30 * 86400.0
"""Seconds for a stream."""


def fetch_activity(target: str, seconds: float, rows: int) -> GetActivityResponse:
    """Who had what fetched. Raises what errors.py has, here and below."""
    return asyncio.run(
        _call(target, "GetActivity", GetActivityRequest(rows=rows), GetActivityResponse, seconds)
    )


def fetch_pins(target: str, seconds: float) -> ListPinsResponse:
    return asyncio.run(_call(target, "ListPins", ListPinsRequest(), ListPinsResponse, seconds))


def pin(target: str, output_base_id: str, patterns: Sequence[bytes]) -> None:
    request = PinRequest(output_base_id=output_base_id, patterns=patterns)
    asyncio.run(_call(target, "Pin", request, PinResponse, _LOOKING))


def unpin(target: str, output_base_id: str, patterns: Sequence[bytes]) -> int:
    """How many pins that ended; without patterns all of the output base."""
    request = UnpinRequest(output_base_id=output_base_id, patterns=patterns)
    return asyncio.run(_call(target, "Unpin", request, UnpinResponse, _LOOKING)).removed


def forget(target: str, output_base_id: str, patterns: Sequence[bytes]) -> ForgetResponse:
    request = ForgetRequest(output_base_id=output_base_id, patterns=patterns)
    return asyncio.run(_call(target, "Forget", request, ForgetResponse, _LOOKING))


def prefetch(
    target: str, request: PrefetchRequest, note: Callable[[PrefetchResponse], object]
) -> PrefetchResponse:
    """The result; `note` is shown every step."""
    last = PrefetchResponse()

    def keep(reply: PrefetchResponse) -> None:
        last.CopyFrom(reply)
        note(reply)

    asyncio.run(_stream(target, "Prefetch", request, PrefetchResponse, keep))
    if not last.done:
        raise Unavailable(f"{target}: the answer ended before it was whole")
    return last


def watch(target: str, output_base_id: str, note: Callable[[WatchResponse], object]) -> None:
    """Show `note` every event until the daemon ends, which raises Unavailable."""
    asyncio.run(_stream(target, "Watch", WatchRequest(output_base_id=output_base_id), WatchResponse, note))


async def _call(target: str, method: str, request: Message, reply: type[Reply], seconds: float) -> Reply:
    async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
        trees = Stub(channel, admin_pb2.DESCRIPTOR.services_by_name["Trees"])
        return await trees.call(method, request, reply, timeout=seconds)


async def _stream(
    target: str, method: str, request: Message, reply: type[Reply], note: Callable[[Reply], object]
) -> None:
    async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
        trees = Stub(channel, admin_pb2.DESCRIPTOR.services_by_name["Trees"])
        async with aclosing(trees.stream(method, request, reply, timeout=_LONGEST)) as replies:
            async for answer in replies:
                note(answer)
