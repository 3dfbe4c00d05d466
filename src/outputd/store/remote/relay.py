"""Passes calls of clients on to a server, unchanged, and its answers and errors back; never retries, never looks into a message.

Such calls may last for hours (an execution), so they take none of the connection's slots. They travel on channels beside it: an
HTTP/2 server commonly allows 100 streams on one, and what comes after them waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, NoReturn, cast

import grpc
import grpc.aio

from outputd.errors import Denied, OutputdError
from outputd.store.remote.connection import Connection
from outputd.store.remote.failure import UNANSWERED

DETAILS: Final = "grpc-status-details-bin"
"""The trailer that holds a serialized google.rpc.Status."""

_CALLS: Final = 64
"""On one channel."""
_LONGEST: Final = 600.0
"""Seconds for a call of one reply when the client has set no deadline: a Fetch may download a lot."""


class Refusal(OutputdError):
    """The remote's own answer to a call that was passed on: a status that is not OK."""

    def __init__(self, code: grpc.StatusCode, text: str, details: bytes | None) -> None:
        super().__init__(text)
        self.code = code
        self.details = details
        """A serialized google.rpc.Status with more than code and text, if it sent one."""


class Relay:
    """Calls to one server. `instance_name` is the one of the settings, meant by clients that name none."""

    def __init__(self, connection: Connection, instance_name: str) -> None:
        self.instance_name: Final = instance_name
        self._connection = connection
        self._lanes = _Lanes(connection.another_channel)

    @property
    def url(self) -> str:
        return self._connection.endpoint.url

    async def close(self) -> None:
        await self._lanes.close()

    async def call(self, method: str, request: bytes, seconds: float | None = None) -> bytes:
        """One request, one reply, `seconds` at most. Raises Refusal, or Unavailable when there is no server to refuse."""
        self._refuse_early()
        began = time.monotonic()
        async with self._lanes.lane() as channel:
            call = channel.unary_unary(method, None, None)(
                request, timeout=min(seconds or _LONGEST, _LONGEST), metadata=self._connection.metadata()
            )
            try:
                reply: bytes = await call
            except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
                self._refused(error, method, began)
        self._connection.contact.answered()
        return reply

    async def stream(
        self, method: str, request: bytes, seconds: float | None = None, resource: str = ""
    ) -> AsyncGenerator[bytes]:
        """One request, many replies, `seconds` at most. Raises as `call`.

        It may be silent for as long as an action runs. That the server is gone is noticed by HTTP/2's pings.
        """
        self._refuse_early()
        began = time.monotonic()
        async with self._lanes.lane() as channel:
            metadata = self._connection.metadata(resource)
            call = channel.unary_stream(method, None, None)(request, timeout=seconds, metadata=metadata)
            try:
                while isinstance(reply := await call.read(), bytes):
                    self._connection.contact.answered()
                    yield reply
            except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
                self._refused(error, method, began)
            finally:
                call.cancel()

    async def send(
        self, method: str, requests: AsyncIterator[bytes], seconds: float | None = None, resource: str = ""
    ) -> bytes:
        """Many requests, one reply, which may come before all requests are out. Raises as `call`."""
        self._refuse_early()
        began = time.monotonic()
        async with self._lanes.lane() as channel:
            metadata = self._connection.metadata(resource)
            call = channel.stream_unary(method, None, None)(None, timeout=seconds, metadata=metadata)
            try:
                try:
                    async for request in requests:
                        await call.write(request)
                    await call.done_writing()
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    pass  # The server ended the call, well or badly: its reply or status follows.
                reply: bytes = await call
            except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
                self._refused(error, method, began)
            finally:
                call.cancel()
        self._connection.contact.answered()
        return reply

    def _refuse_early(self) -> None:
        if (refusal := self._connection.contact.refusal()) is not None:
            raise refusal

    def _refused(
        self, error: grpc.aio.AioRpcError | asyncio.CancelledError, method: str, began: float
    ) -> NoReturn:
        name = method.rpartition("/")[2]
        failure = self._connection.failure(error, f"pass on {name}", began)
        if not isinstance(error, grpc.aio.AioRpcError):
            raise failure.error
        code = error.code()
        if isinstance(failure.error, Denied) and code is grpc.StatusCode.UNAVAILABLE:
            raise failure.error  # TLS: nobody to be asked again
        text = error.details() or ""
        if code is grpc.StatusCode.UNIMPLEMENTED:
            text = f"{self.url} does not offer {method.strip('/')}: {text}"
        elif code in UNANSWERED:
            text = str(failure.error)  # perhaps gRPC's own words, which do not say who did not answer
        details = None
        for key, value in cast(tuple[tuple[str, str | bytes], ...], tuple(error.trailing_metadata() or ())):
            if key == DETAILS and isinstance(value, bytes):
                details = value
        raise Refusal(code, text, details) from error


class _Lanes:
    """As many channels as the calls under way need."""

    def __init__(self, make: Callable[[], grpc.aio.Channel]) -> None:
        self._make = make
        self._calls: dict[grpc.aio.Channel, int] = {}

    @asynccontextmanager
    async def lane(self) -> AsyncIterator[grpc.aio.Channel]:
        channel = next((channel for channel, calls in self._calls.items() if calls < _CALLS), None)
        if channel is None:
            channel = self._make()
        self._calls[channel] = self._calls.get(channel, 0) + 1
        try:
            yield channel
        finally:
            self._calls[channel] -= 1
            if not self._calls[channel] and len(self._calls) > 1:
                del self._calls[channel]
                await channel.close(None)

    async def close(self) -> None:
        for channel in list(self._calls):
            await channel.close(None)
