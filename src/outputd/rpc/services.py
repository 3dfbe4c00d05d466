"""Registers a service with gRPC by its descriptor, so that no generated stubs are needed; never looks into a request.

A service is a plain object with one method for each RPC, named in snake case. Streams are async generators:

    async def batch_stat(self, request: BatchStatRequest, context: Context) -> BatchStatResponse
    async def read(self, request: ReadRequest, context: Context) -> AsyncIterator[ReadResponse]
    async def write(self, requests: AsyncIterator[WriteRequest], context: Context) -> WriteResponse

Methods raise what errors.py has. `takes_bytes` and `gives_bytes` mark those that parse requests or write replies themselves.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from outputd.rpc.calls import Calls
from outputd.rpc.edge import Context, answer_call, decode
from outputd.store.remote.caller import caller, caller_of

SERVER_OPTIONS: Final = (
    # Bazel stages tens of thousands of artifacts in one request; gRPC's default of 4 MiB would refuse them.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Two daemons on one TCP port would share its clients at random; the second is to fail instead.
    ("grpc.so_reuseport", 0),
    # A client that vanished without a word is noticed, and what its calls hold is let go.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    (
        "grpc.http2.max_pings_without_data",
        0,
    ),  # no limit: a call may be silent for long before its client vanishes
    # Clients may ask for a sign of life every ten seconds, calls running or not, without being thrown out for it.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
"""For `grpc.aio.server(options=...)`: what every server of ours is made with."""

Method = TypeVar("Method", bound=Callable[..., Any])

_TAKES_BYTES: Final = "_outputd_takes_bytes"
_GIVES_BYTES: Final = "_outputd_gives_bytes"
_WORD: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def takes_bytes(method: Method) -> Method:
    """Mark a method that wants requests as the bytes they came in."""
    setattr(method, _TAKES_BYTES, True)
    return method


def gives_bytes(method: Method) -> Method:
    """Mark a method that answers with serialized messages."""
    setattr(method, _GIVES_BYTES, True)
    return method


def service_handler(
    service: ServiceDescriptor, implementation: object, calls: Calls | None = None
) -> grpc.GenericRpcHandler[bytes, bytes]:
    """What `server.add_generic_rpc_handlers` wants. Raises AttributeError unless every RPC has its method.

    `calls`, if given, knows of each call while it is served.
    """
    under_way = Calls() if calls is None else calls
    handlers = {
        method.name: _method_handler(
            method, getattr(implementation, _WORD.sub("_", method.name).lower()), under_way
        )
        for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _method_handler(
    method: MethodDescriptor, behaviour: Callable[..., Any], calls: Calls
) -> grpc.RpcMethodHandler[bytes, bytes]:
    # gRPC gets no serializers: one that fails there would be answered with UNKNOWN, which clients retry.
    name = method.full_name
    request_class = None if getattr(behaviour, _TAKES_BYTES, False) else GetMessageClass(method.input_type)
    serialize = bytes if getattr(behaviour, _GIVES_BYTES, False) else _serialize

    async def stream_of_requests(raw: AsyncIterator[bytes]) -> AsyncIterator[Message | bytes]:
        async for data in raw:
            yield data if request_class is None else decode(request_class, data)

    def requested(raw: Any) -> Any:
        if method.client_streaming:
            return stream_of_requests(raw)
        return raw if request_class is None else decode(request_class, raw)

    async def one_reply(raw: Any, context: Context) -> bytes:
        return serialize(await behaviour(requested(raw), context))

    async def many_replies(raw: Any, context: Context) -> None:
        # Not left to gRPC's own loop: when the client goes away that leaves a generator, and the files it holds open,
        # to the garbage collector.
        async with aclosing(behaviour(requested(raw), context)) as replies:
            async for reply in replies:
                await context.write(serialize(reply))

    work: Callable[[Any, Context], Awaitable[Any]] = many_replies if method.server_streaming else one_reply

    async def handler(raw: Any, context: Context) -> Any:
        # For calls that are made to the remote because of this one. Each call of a client is a task of its own.
        caller.set(caller_of(context.invocation_metadata()))
        with calls.entered(name, context.peer()):
            return await answer_call(name, context, work(raw, context))

    kind = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    return kind[method.client_streaming, method.server_streaming](handler)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
