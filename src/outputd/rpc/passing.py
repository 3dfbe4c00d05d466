"""Requests that only the remote can answer: passed on for the instance they mean; never changes an answer.

An empty instance name means the one of the settings, here as everywhere.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final, Protocol, TypeVar

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message

from outputd.errors import Corrupt, Unsupported
from outputd.rpc.edge import Context
from outputd.rpc.resource_name import check_instance_name
from outputd.store.remote.relay import Relay

M = TypeVar("M", bound=Message)

_FOREVER: Final = 1e9
"""Seconds; gRPC has no deadline, but a number above it."""


class Relaying(Protocol):
    """A Relay, or some of them."""

    def of_instance(self, name: str) -> tuple[Relay, str]:
        """Who passes calls for an instance on, and what the server calls it. Raises Invalid."""

    def prefix_of(self, name: str) -> str:
        """The prefix of the instance names of whoever has a name; empty for who has all others."""


class Passing:
    """Raises Refusal with the remote's own status, Unavailable without a remote that answers, Unsupported without any."""

    def __init__(self, relays: Relaying | None) -> None:
        self._relays = relays

    @property
    def remote(self) -> bool:
        """Whether there is one."""
        return self._relays is not None

    def instance(self, name: str) -> str:
        """What the remote calls an instance. Raises Invalid."""
        check_instance_name(name)
        return name if self._relays is None else self._relays.of_instance(name)[1]

    def prefix(self, name: str) -> str:
        """By what it begins with, whose a name is that stands in no field for an instance name; empty: `[remote]` has it."""
        return "" if self._relays is None else self._relays.prefix_of(name)

    async def call(
        self,
        method: MethodDescriptor,
        request: Message,
        reply: type[M],
        context: Context | None,
        limit: float,
        instance: str = "",
    ) -> M:
        """One reply. `limit`: seconds that it may take, if the client in `context` has no less. `instance`: as the client calls it;
        the request has what `instance` makes of it."""
        relay = self._needed(method, instance)
        seconds = limit if context is None else min(limit, _remaining(context) or limit)
        return _parsed(reply, await relay.call(_path(method), request.SerializeToString(), seconds), method)

    async def stream(
        self,
        method: MethodDescriptor,
        request: Message,
        reply: type[M],
        context: Context,
        instance: str = "",
    ) -> AsyncGenerator[M]:
        """Many replies, for as long as the client wants to wait."""
        relay = self._needed(method, instance)
        data = request.SerializeToString()
        async with aclosing(relay.stream(_path(method), data, _remaining(context))) as replies:
            async for one in replies:
                yield _parsed(reply, one, method)

    async def send(
        self,
        method: MethodDescriptor,
        requests: AsyncIterator[bytes],
        resource: str,
        context: Context,
        instance: str = "",
    ) -> bytes:
        """Many requests and one reply, as bytes, for as long as the client wants to wait."""
        relay = self._needed(method, instance)
        return await relay.send(_path(method), requests, _remaining(context), resource)

    def _needed(self, method: MethodDescriptor, instance: str) -> Relay:
        if self._relays is None:
            raise Unsupported(f"{method.full_name}: there is no remote to pass it on to ([remote] url)")
        return self._relays.of_instance(instance)[0]


def _path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def _remaining(context: Context) -> float | None:
    seconds: float | None = context.time_remaining()
    return None if seconds is None or seconds > _FOREVER else seconds


def _parsed(message: type[M], data: bytes, method: MethodDescriptor) -> M:
    try:
        return message.FromString(data)
    except DecodeError as error:
        raise Corrupt(f"{method.full_name}: the remote's reply is no {message.__name__}") from error
