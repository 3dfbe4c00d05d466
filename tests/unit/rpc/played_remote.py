"""A REv2 server for the tests of what is passed on: it plays what it was told to, and remembers what it was asked."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from outputd._proto import (
    any_pb2,
    bytestream_pb2,
    operations_pb2,
    remote_asset_pb2,
    remote_execution_pb2,
    remote_logstream_pb2,
)
from outputd._proto import remote_execution_pb2 as reapi
from outputd.rpc.passing import Passing
from outputd.rpc.services import service_handler
from outputd.store.remote import RemoteOptions, RemoteStore

SERVICES: dict[str, ServiceDescriptor] = {
    name: service
    for module in (
        bytestream_pb2,
        operations_pb2,
        remote_asset_pb2,
        remote_execution_pb2,
        remote_logstream_pb2,
    )
    for name, service in module.DESCRIPTOR.services_by_name.items()
}
Context = Any


class PlayedRemote:
    """`answers[method]` is what each method answers: a message, a list of them for a stream, or a function of its request that
    gives one of both; a status that ends the call is an Exception of `refuse`."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str | bytes]] = []

    def handlers(self) -> list[grpc.GenericRpcHandler[bytes, bytes]]:
        played = []
        for service in SERVICES.values():
            if any(method.name in self.answers for method in service.methods):
                methods = {
                    method.name: self._method(method.name, method.server_streaming, method.client_streaming)
                    for method in service.methods
                }
                implementation = type(service.name, (), {_snake(name): act for name, act in methods.items()})
                played.append(service_handler(service, implementation()))
        return played

    def _method(self, name: str, many: bool, stream: bool) -> Callable[..., Any]:
        async def prepared(requests: Any, context: Context) -> Any:
            self.metadata.append(dict(context.invocation_metadata()))
            asked = [request async for request in requests] if stream else [requests]
            self.requests += asked
            if name not in self.answers:
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"no {name} here")
            answer = self.answers[name]
            answer = answer(asked[0]) if callable(answer) else answer
            if isinstance(answer, Refused):
                await context.abort(answer.code, answer.text, answer.trailer)
            return answer

        async def one(_self: object, requests: Any, context: Context) -> Any:
            return await prepared(requests, context)

        async def several(_self: object, requests: Any, context: Context) -> AsyncIterator[Any]:
            for answer in await prepared(requests, context):
                if isinstance(answer, Refused):
                    await context.abort(answer.code, answer.text, answer.trailer)
                yield answer

        return several if many else one


class Refused:
    """A status that ends a call."""

    def __init__(self, code: grpc.StatusCode, text: str, *trailer: tuple[str, str | bytes]) -> None:
        self.code = code
        self.text = text
        self.trailer = trailer


@asynccontextmanager
async def passing_to(played: PlayedRemote | None, instance: str = "") -> AsyncIterator[Passing]:
    """To nobody, if None. Nobody answers at first, if it plays nothing."""
    if played is None:
        yield Passing(None)
        return
    with tempfile.TemporaryDirectory(prefix="outputd-rpc-") as directory:
        server = grpc.aio.server()
        handlers = played.handlers()
        if handlers:
            server.add_generic_rpc_handlers(tuple(handlers))
            server.add_insecure_port(f"unix:{directory}/remote")
            await server.start()
        remote = RemoteStore(
            f"unix:{directory}/remote", instance, RemoteOptions(retry_seconds=0.1, timeout=5)
        )
        relay = remote.relay()
        try:
            yield Passing(relay)
        finally:
            await relay.close()
            await remote.close()
            if handlers:
                await server.stop(None)


def packed(message: Message) -> any_pb2.Any:
    some = any_pb2.Any()
    some.Pack(message)
    return some


def plain_cache() -> reapi.ServerCapabilities:
    """Of a server that offers little."""
    told = reapi.ServerCapabilities()
    told.cache_capabilities.digest_functions.append(reapi.DigestFunction.SHA256)
    told.low_api_version.major = told.high_api_version.major = 2
    return told


Use = Callable[..., Awaitable[None]]


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
