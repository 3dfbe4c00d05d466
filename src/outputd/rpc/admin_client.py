"""Asks a running daemon about itself, for commands that run once and end. Never used by the daemon.

Protocol: `outputd.v1.Admin` (protos/outputd/v1/admin.proto).
"""

from __future__ import annotations

import asyncio
from typing import Final

import grpc.aio

from outputd._proto import admin_pb2
from outputd._proto.admin_pb2 import GetStatusRequest, GetStatusResponse, OutputBase
from outputd.errors import Invalid, OutputdError, TimedOut, Unavailable
from outputd.rpc.client import CHANNEL_OPTIONS, Stub

__all__ = ["GetStatusResponse", "OutputBase", "fetch_status"]

# The daemon is on this machine; http_proxy is not meant for it.
_OPTIONS: Final = (*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0))


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
