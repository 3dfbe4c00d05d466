"""Asks a running daemon about itself or tells it what to do, for commands that run once and end. Never used by the daemon.

Protocol: `outputd.v1.Admin` (protos/outputd/v1/admin.proto).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Final, TypeVar

import grpc.aio
from google.protobuf.message import Message

from outputd._proto import admin_pb2
from outputd._proto.admin_pb2 import (
    CollectGarbageRequest,
    CollectGarbageResponse,
    Credential,
    FileCount,
    GarbageReport,
    GetStatusRequest,
    GetStatusResponse,
    ListOperationsRequest,
    ListOperationsResponse,
    Loss,
    OfflineQueue,
    OutputBase,
    Remote,
    RestartRequest,
    RestartResponse,
    VerifyRequest,
    VerifyResponse,
)
from outputd.errors import Invalid, OutputdError, Precondition, TimedOut, Unavailable
from outputd.rpc.client import CHANNEL_OPTIONS, Stub

__all__ = [
    "Credential",
    "FileCount",
    "GarbageReport",
    "GetStatusResponse",
    "ListOperationsResponse",
    "Loss",
    "OfflineQueue",
    "OutputBase",
    "Remote",
    "VerifyResponse",
    "ask_restart",
    "collect_garbage",
    "fetch_operations",
    "fetch_status",
    "verify",
]

Reply = TypeVar("Reply", bound=Message)

# The daemon is on this machine; http_proxy is not meant for it.
_OPTIONS: Final = (*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0))
_SILENCE: Final = 600.0
"""Seconds between two replies of a long answer after which nobody waits for another."""
_LONGEST: Final = 7 * 86400.0
"""Seconds that a long answer may take as a whole."""


def fetch_status(target: str, seconds: float) -> GetStatusResponse:
    """The status of the daemon at a gRPC target. Raises Unavailable, TimedOut, or Invalid when something else answers there."""
    return asyncio.run(_ask(target, seconds, "GetStatus", GetStatusRequest(), GetStatusResponse))


def fetch_operations(target: str, seconds: float, older_than: float) -> ListOperationsResponse:
    """What it has had under way for `older_than` seconds. Raises as `fetch_status`."""
    request = ListOperationsRequest()
    request.older_than.FromMilliseconds(int(older_than * 1000))
    return asyncio.run(_ask(target, seconds, "ListOperations", request, ListOperationsResponse))


def ask_restart(target: str, seconds: float) -> None:
    """Have the daemon restart. Raises Precondition when it cannot, and as `fetch_status`."""
    asyncio.run(_ask(target, seconds, "Restart", RestartRequest(), RestartResponse))


async def _ask(target: str, seconds: float, method: str, request: Message, reply: type[Reply]) -> Reply:
    async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
        admin = Stub(channel, admin_pb2.DESCRIPTOR.services_by_name["Admin"])
        try:
            return await admin.call(method, request, reply, timeout=seconds)
        except Precondition:
            raise
        except TimedOut as wrong:
            raise TimedOut(
                f"{target} does not answer within {seconds:g} s; what listens there is busy or stuck"
            ) from wrong
        except Unavailable as wrong:
            raise Unavailable(f"no daemon answers at {target}: {wrong}") from wrong
        except OutputdError as wrong:
            raise Invalid(f"what answers at {target} is no running outputd: {wrong}") from wrong


def verify(
    target: str,
    output_base_id: str,
    path: bytes,
    *,
    content: bool,
    max_losses: int,
    note: Callable[[VerifyResponse], None],
) -> VerifyResponse:
    """The result of verifying a tree; `note` is shown every reply, for progress and for losses.

    Raises NotFound for a tree that is not there, Unavailable, TimedOut or Denied when the daemon or its remote does not answer.
    """
    request = VerifyRequest(output_base_id=output_base_id, path=path, content=content, max_losses=max_losses)
    return asyncio.run(_verify(target, request, note))


async def _verify(
    target: str, request: VerifyRequest, note: Callable[[VerifyResponse], None]
) -> VerifyResponse:
    reply = VerifyResponse()
    async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
        admin = Stub(channel, admin_pb2.DESCRIPTOR.services_by_name["Admin"])
        async with aclosing(admin.stream("Verify", request, VerifyResponse, timeout=_LONGEST)) as replies:
            while not reply.done:
                try:
                    async with asyncio.timeout(_SILENCE):
                        reply = await anext(replies)
                except TimeoutError:
                    raise TimedOut(f"{target}: nothing more came within {_SILENCE:g} s") from None
                except StopAsyncIteration:
                    raise Unavailable(f"{target}: the answer ended before it was whole") from None
                note(reply)
    return reply


def collect_garbage(
    target: str,
    *,
    dry_run: bool,
    unused_for: float | None,
    max_bytes: int | None,
    seconds: float,
    progress: Callable[[str, int, int], object],
) -> GarbageReport:
    """Have the daemon remove what it can do without; `progress` is told the step, blobs and bytes. Raises what errors.py has."""
    request = CollectGarbageRequest(dry_run=dry_run, max_bytes=max_bytes)
    if unused_for is not None:
        request.unused_for.FromNanoseconds(int(unused_for * 1e9))

    async def collect() -> GarbageReport:
        async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
            admin = Stub(channel, admin_pb2.DESCRIPTOR.services_by_name["Admin"])
            answers = admin.stream("CollectGarbage", request, CollectGarbageResponse, timeout=seconds)
            async with aclosing(answers):
                async for answer in answers:
                    if answer.HasField("report"):
                        return answer.report
                    progress(answer.step, answer.blobs, answer.bytes)
        raise Unavailable(f"{target}: the daemon ended before it had a report")

    return asyncio.run(collect())
