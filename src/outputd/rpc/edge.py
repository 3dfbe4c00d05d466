"""Where our errors become gRPC codes, once for all methods; never decides anything a service should decide.

Every method runs under `answer_call`. A service raises what errors.py has; what else comes out of it is a fault of ours,
which is logged with its traceback and answered with INTERNAL and the number under which the log has it.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Mapping
from typing import Final, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from outputd import errors
from outputd._proto import status_pb2
from outputd.store.remote.relay import DETAILS, Refusal

Result = TypeVar("Result")
AnyMessage = TypeVar("AnyMessage", bound=Message)
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"

_log = logging.getLogger(__name__)

# Text of a status travels percent-encoded in a header, three bytes for one; clients refuse headers above 8 KiB in all.
_TEXT_LIMIT: Final = 2000


class OutOfRange(errors.Invalid):
    """An offset that lies outside of what it points into; ByteStream has a code of its own for it."""


CODES: Final[Mapping[type[errors.OutputdError], grpc.StatusCode]] = {
    errors.Invalid: grpc.StatusCode.INVALID_ARGUMENT,
    OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.Precondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Corrupt: grpc.StatusCode.DATA_LOSS,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.TimedOut: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unreachable: grpc.StatusCode.UNAVAILABLE,
    errors.Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Throttled: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Denied: grpc.StatusCode.PERMISSION_DENIED,
    # Not UNAUTHENTICATED: Bazel would ask its own credential helper for others, and it is not the client who is not proven.
    errors.Unproven: grpc.StatusCode.PERMISSION_DENIED,
    errors.Refused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
}
"""The one table from ours to theirs. A class that is not listed has the code of its nearest listed ancestor."""


async def outcome(work: Awaitable[Result]) -> Result | Exception:
    """The result of `work`, or whatever it raised. Cancellation passes through.

    Catches everything: a request that meets a fault of ours may fail, the daemon may not.
    """
    try:
        return await work
    except Exception as error:
        return error


async def answer_call(method: str, context: Context, work: Awaitable[Result]) -> Result:
    """The result of a method, or the end of the call with the code that its error stands for."""
    result = await outcome(work)
    if not isinstance(result, Exception):
        return result
    if isinstance(result, grpc.aio.AbortError):
        raise result  # the call has its status already
    if isinstance(result, Refusal):
        # The remote's answer, as it came: clients look for what is missing in the details.
        trailer = () if result.details is None else ((DETAILS, result.details),)
        return await context.abort(result.code, _sendable(str(result)), trailer)
    code, text = verdict(result, method)
    return await context.abort(code, text)


def item_status(error: Exception, method: str) -> status_pb2.Status:
    """What stands beside one item of a batch that failed, while the call goes on. `method` is named in the log."""
    code, text = verdict(error, method)
    number: int = code.value[0]
    return status_pb2.Status(code=number, message=text)


def verdict(error: Exception, method: str) -> tuple[grpc.StatusCode, str]:
    """Code and text for the other side. What is not in errors.py is logged here, as a fault of ours."""
    ours = _ours(error)
    if ours is not None:
        for ancestor in type(ours).__mro__:
            if ancestor in CODES:
                code = CODES[ancestor]
                _log.debug("%s: %s: %s", method, code.name, ours)
                return code, _sendable(str(ours))
    number = secrets.token_hex(4)
    _log.error("%s failed by a fault of outputd (number %s)", method, number, exc_info=error)
    return (
        grpc.StatusCode.INTERNAL,
        f"a fault of outputd, not of the request: its log has it as number {number}",
    )


def decode(message: type[AnyMessage], data: bytes) -> AnyMessage:
    """A message from the wire. Raises Invalid."""
    try:
        return message.FromString(data)
    except DecodeError as error:
        raise errors.Invalid(f"the request is not a {message.DESCRIPTOR.full_name}: {error}") from error


def _ours(error: Exception) -> errors.OutputdError | None:
    """The error to answer with: itself, or the first of a group from a TaskGroup if nothing else is in there."""
    if isinstance(error, errors.OutputdError):
        return error
    if isinstance(error, ExceptionGroup):
        leaves = [_ours(inner) for inner in error.exceptions]
        return leaves[0] if all(leaves) else None
    return None


def _sendable(text: str) -> str:
    # File names may have put lone surrogates into it, which UTF-8 refuses.
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) > _TEXT_LIMIT:
        encoded = encoded[:_TEXT_LIMIT] + "…".encode()
    return encoded.decode("utf-8", "ignore")
