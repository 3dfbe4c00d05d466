"""What a gRPC status means to us, in one total table: which of our errors, and whether a later try may work."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from outputd._proto import any_pb2, error_details_pb2, status_pb2
from outputd.errors import (
    Corrupt,
    Denied,
    Invalid,
    NotFound,
    OutputdError,
    Precondition,
    Throttled,
    TimedOut,
    Unproven,
    Unreachable,
    Unsupported,
)
from outputd.store.remote.retry import Failure

_Code = grpc.StatusCode

# REv2 (remote_execution.proto, "Errors" of the services) names the codes that are worth another try.
_TRANSIENT: Final = frozenset(
    {
        _Code.UNKNOWN,
        _Code.DEADLINE_EXCEEDED,
        _Code.RESOURCE_EXHAUSTED,
        _Code.ABORTED,
        _Code.INTERNAL,
        _Code.UNAVAILABLE,
    }
)

_MEANING: Final[dict[grpc.StatusCode, type[OutputdError]]] = {
    # OK is not a failure; a server that fails with it has lost its wits.
    _Code.OK: Unreachable,
    _Code.CANCELLED: Unreachable,
    _Code.UNKNOWN: Unreachable,
    _Code.INVALID_ARGUMENT: Invalid,
    _Code.DEADLINE_EXCEEDED: TimedOut,
    _Code.NOT_FOUND: NotFound,
    _Code.ALREADY_EXISTS: Precondition,
    _Code.PERMISSION_DENIED: Denied,
    _Code.RESOURCE_EXHAUSTED: Throttled,
    _Code.FAILED_PRECONDITION: Precondition,
    _Code.ABORTED: Unreachable,
    _Code.OUT_OF_RANGE: Invalid,
    _Code.UNIMPLEMENTED: Unsupported,
    _Code.INTERNAL: Unreachable,
    _Code.UNAVAILABLE: Unreachable,
    _Code.DATA_LOSS: Corrupt,
    _Code.UNAUTHENTICATED: Unproven,
}

UNANSWERED: Final = frozenset({_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED})
"""Nobody, or nothing in time: gRPC's own words for it, or those of a proxy whose server is away."""

# gRPC has no code for it: a handshake that one side ended on purpose is UNAVAILABLE, with the TLS library's words in the text
# (BoringSSL's error names; "Peer name" is security/security_connector's). A connection that was merely lost has none of them.
_TLS_REFUSAL: Final = re.compile(
    r"CERTIFICATE_VERIFY_FAILED|TSI_PROTOCOL_FAILURE|Peer name \S+ is not in peer certificate|WRONG_VERSION_NUMBER"
    r"|ALERT_(?:BAD_CERTIFICATE|CERTIFICATE_\w+|UNKNOWN_CA|ACCESS_DENIED|HANDSHAKE_FAILURE|\w*CERTIFICATE\w*)"
)

_BY_NUMBER: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in _Code}


def of_call(error: grpc.aio.AioRpcError, doing: str) -> Failure:
    """A whole call that failed."""
    details: Sequence[any_pb2.Any] = ()
    for key, value in cast(Iterable[tuple[str, str | bytes]], error.trailing_metadata() or ()):
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                details = status_pb2.Status.FromString(value).details
            except DecodeError:
                pass  # Details only help; the code says what happened.
    failure = _failure(error.code(), error.details() or "", details, doing)
    failure.error.__cause__ = error
    return failure


def of_code(code: grpc.StatusCode, text: str) -> OutputdError:
    """A status in our words, for one whose text says all."""
    return _MEANING[code](text)


def of_status(status: status_pb2.Status, doing: str) -> Failure:
    """One blob of a batch that failed, the call itself being fine."""
    return _failure(_BY_NUMBER.get(status.code, _Code.UNKNOWN), status.message, status.details, doing)


def _failure(code: grpc.StatusCode, message: str, details: Sequence[any_pb2.Any], doing: str) -> Failure:
    text = f"cannot {doing}: {code.name}" + (f": {message}" if message else "")
    if code is _Code.UNAVAILABLE and _TLS_REFUSAL.search(message):
        return Failure(Unproven(text), transient=False)
    error = _MEANING[code](text)
    unauthenticated = code is _Code.UNAUTHENTICATED
    return Failure(error, code in _TRANSIENT, _retry_delay(details), unauthenticated)


def _retry_delay(details: Sequence[any_pb2.Any]) -> float:
    """Seconds the server asks us to wait (google.rpc.RetryInfo), or 0."""
    for detail in details:
        if detail.type_url.rpartition("/")[2] == "google.rpc.RetryInfo":
            try:
                delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
            except DecodeError:
                continue
            return max(0.0, delay.seconds + delay.nanos / 1e9)
    return 0.0
