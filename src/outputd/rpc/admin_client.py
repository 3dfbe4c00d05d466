"""Asks a running daemon about itself, for commands that run once and end. Never used by the daemon.

Synchronous: a command has nothing else to do meanwhile. Protocol: `outputd.v1.Admin` (protos/outputd/v1/admin.proto).
"""

from __future__ import annotations

import os
from typing import Final

import grpc

from outputd._proto.admin_pb2 import GetStatusRequest, GetStatusResponse, OutputBase, Remote
from outputd.errors import Invalid, TimedOut, Unavailable

__all__ = ["GetStatusResponse", "OutputBase", "Remote", "fetch_status"]

_METHOD: Final = "/outputd.v1.Admin/GetStatus"
_LARGEST_REPLY: Final = 64 << 20
_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),  # the daemon is on this machine; http_proxy is not meant for it
    ("grpc.max_receive_message_length", _LARGEST_REPLY),
)


def fetch_status(target: str, seconds: float) -> GetStatusResponse:
    """The status of the daemon at a gRPC target. Raises Unavailable, TimedOut, or Invalid when something else answers there."""
    # gRPC's own complaints about a refused connection would stand beside our one clear line.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with grpc.insecure_channel(target, options=_OPTIONS) as channel:
        ask = channel.unary_unary(
            _METHOD,
            request_serializer=GetStatusRequest.SerializeToString,
            response_deserializer=GetStatusResponse.FromString,
        )
        try:
            reply: GetStatusResponse = ask(GetStatusRequest(), timeout=seconds)
        except grpc.RpcError as wrong:
            raise _in_our_words(wrong, target) from wrong
    return reply


def _in_our_words(wrong: grpc.RpcError, target: str) -> Invalid | Unavailable:
    code, details = wrong.code(), wrong.details()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOut(f"{target} did not answer in time; the daemon there is busy or stuck")
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(f"no daemon answers at {target}: {details}")
    return Invalid(f"what answers at {target} is not a running outputd: {code.name}: {details}")
