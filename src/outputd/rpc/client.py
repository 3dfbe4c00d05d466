"""Calls the methods of a service by its descriptor; never retries, and raises errors.py's words instead of gRPC's.

For our own command line and for tests. (What talks to a remote CAS lives in the store and has retries.)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from outputd import errors

Reply = TypeVar("Reply", bound=Message)

CHANNEL_OPTIONS: Final = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
"""For `grpc.aio.insecure_channel(options=...)`: our own requests may be large, the other side decides what it takes."""

_ERRORS: Final[Mapping[grpc.StatusCode, type[errors.OutputdError]]] = {
    grpc.StatusCode.CANCELLED: errors.Unavailable,
    grpc.StatusCode.UNKNOWN: errors.Unavailable,
    grpc.StatusCode.INVALID_ARGUMENT: errors.Invalid,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.TimedOut,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.Precondition,
    grpc.StatusCode.PERMISSION_DENIED: errors.Denied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Exhausted,
    grpc.StatusCode.FAILED_PRECONDITION: errors.Precondition,
    grpc.StatusCode.ABORTED: errors.Unavailable,
    grpc.StatusCode.OUT_OF_RANGE: errors.Invalid,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unsupported,
    grpc.StatusCode.INTERNAL: errors.Unavailable,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DATA_LOSS: errors.Corrupt,
    grpc.StatusCode.UNAUTHENTICATED: errors.Denied,
}


class Stub:
    """One service at the other end of a channel. Every call has a deadline, in seconds, and raises errors.py's words."""

    def __init__(self, channel: grpc.aio.Channel, service: ServiceDescriptor) -> None:
        self._channel = channel
        self._service = service

    async def call(self, method: str, request: Message, reply: type[Reply], *, timeout: float) -> Reply:
        """One request, one reply."""
        path = self._path(method, reply)
        invoke = self._channel.unary_unary(path, type(request).SerializeToString, reply.FromString)
        try:
            answer: Reply = await invoke(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise _error(path, error) from error
        return answer

    async def stream(
        self, method: str, request: Message, reply: type[Reply], *, timeout: float
    ) -> AsyncGenerator[Reply, None]:
        """One request, many replies."""
        path = self._path(method, reply)
        invoke = self._channel.unary_stream(path, type(request).SerializeToString, reply.FromString)
        answers = invoke(request, timeout=timeout)
        try:
            async for answer in answers:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise _error(path, error) from error
        finally:
            answers.cancel()  # for who stops listening; does nothing to a call that has ended

    async def send(
        self, method: str, requests: AsyncIterator[Message], reply: type[Reply], *, timeout: float
    ) -> Reply:
        """Many requests, one reply, which may come before all requests were sent."""
        path = self._path(method, reply)
        invoke = self._channel.stream_unary(path, _serialize, reply.FromString)
        try:
            answer: Reply = await invoke(requests, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise _error(path, error) from error
        return answer

    def _path(self, method: str, reply: type[Message]) -> str:
        descriptor: MethodDescriptor = self._service.methods_by_name[method]
        assert descriptor.output_type is reply.DESCRIPTOR, (
            f"{method} answers with {descriptor.output_type.full_name}"
        )
        return f"/{self._service.full_name}/{method}"


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _error(path: str, error: grpc.aio.AioRpcError) -> errors.OutputdError:
    code: grpc.StatusCode = error.code()
    return _ERRORS[code](f"{path}: {code.name}: {error.details()}")
