"""Asks a running daemon about itself, for commands that run once and end. Never used by the daemon.

Protocol: `outputd.v1.Admin` (protos/outputd/v1/admin.proto).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Final

import grpc.aio

from outputd._proto import admin_pb2
from outputd._proto.admin_pb2 import (
    FileCount,
    GetStatusRequest,
    GetStatusResponse,
    Loss,
    OutputBase,
    VerifyRequest,
    VerifyResponse,
)
from outputd.errors import Invalid, OutputdError, TimedOut, Unavailable
from outputd.rpc.client import CHANNEL_OPTIONS, Stub

__all__ = [
    "FileCount",
    "GetStatusResponse",
    "Loss",
    "OutputBase",
    "VerifyResponse",
    "fetch_status",
    "verify",
]

# The daemon is on this machine; http_proxy is not meant for it.
_OPTIONS: Final = (*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0))
_SILENCE: Final = 600.0
"""Seconds between two replies of a long answer after which nobody waits for another."""
_LONGEST: Final = 7 * 86400.0
"""Seconds that a long answer may take as a whole."""


def fetch_status(target: str, seconds: float) -> GetStatusResponse:
    """The status of the daemon at a gRPC target. Raises Unavailable, TimedOut, or Invalid when something else answers there."""
    return asyncio.run(_fetch_status(target, seconds))


async def _fetch_status(target: str, seconds: float) -> GetStatusResponse:
    async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
        admin = Stub(channel, admin_pb2.DESCRIPTOR.services_by_name["Admin"])
        try:
            return await admin.call("GetStatus", GetStatusRequest(), GetStatusResponse, timeout=seconds)
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
