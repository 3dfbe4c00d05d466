"""Passes calls of clients on to a server, unchanged, and its answers and errors back; never retries, never looks into a message.

Such calls may last for hours (an execution), so they take none of the connection's slots. They travel on channels beside it: an
HTTP/2 server commonly allows 100 streams on one, and what comes after them waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, cast

import grpc
import grpc.aio

from outputd.errors import Denied, OutputdError
from outputd.store.remote.connection import Connection
from outputd.store.remote.failure import UNANSWERED
from outputd.store.remote.retry import Failure

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
        self._lanes = _Lanes(connection)

    @property
    def url(self) -> str:
        return self._connection.endpoint.url

    def of_instance(self, name: str) -> tuple[Relay, str]:
        """Who passes calls for an instance on, and what the server calls it."""
        return self, name or self.instance_name

    def prefix_of(self, name: str) -> str:
        """All names are this remote's."""
        return ""

    async def close(self) -> None:
        await self._lanes.close()

    async def call(self, method: str, request: bytes, seconds: float | None = None) -> bytes:
        """One request, one reply, `seconds` at most. Raises Refusal, or Unavailable when there is no server to refuse."""
        refused = await self._called(method, request, seconds, again=False)
        if isinstance(refused, bytes):
            return refused
        reply = await self._called(method, request, seconds, again=True)
        assert isinstance(reply, bytes)
        return reply

    async def _called(
        self, method: str, request: bytes, seconds: float | None, *, again: bool
    ) -> bytes | None:
        """The reply; None when it is to be asked for `again`, with what proves anew who we are."""
        await self._refuse_early()
        began = time.monotonic()
        headers = self._connection.headers()
        async with self._lanes.lane() as channel:
            call = channel.unary_unary(method, None, None)(
                request, timeout=min(seconds or _LONGEST, _LONGEST), metadata=self._connection.metadata()
            )
            try:
                reply: bytes = await call
            except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
                refusal, failure = self._refused(error, method, began)
            else:
                self._connection.contact.answered()
                return reply
        if (await self._connection.renewed(failure, headers)).renewed and not again:
            return None
        raise refusal

    async def stream(
        self, method: str, request: bytes, seconds: float | None = None, resource: str = ""
    ) -> AsyncGenerator[bytes]:
        """One request, many replies, `seconds` at most. Raises as `call`.

        It may be silent for as long as an action runs. That the server is gone is noticed by HTTP/2's pings.
        """
        again = False
        while True:
            await self._refuse_early()
            began = time.monotonic()
            headers = self._connection.headers()
            async with self._lanes.lane() as channel:
                metadata = self._connection.metadata(resource)
                call = channel.unary_stream(method, None, None)(request, timeout=seconds, metadata=metadata)
                try:
                    while isinstance(reply := await call.read(), bytes):
                        self._connection.contact.answered()
                        again = True  # what was answered in part is not asked for from the start
                        yield reply
                    return
                except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
                    refusal, failure = self._refused(error, method, began)
                finally:
                    call.cancel()
            if again or not (await self._connection.renewed(failure, headers)).renewed:
                raise refusal
            again = True

    async def send(
        self, method: str, requests: AsyncIterator[bytes], seconds: float | None = None, resource: str = ""
    ) -> bytes:
        """Many requests, one reply, which may come before all requests are out. Raises as `call`."""
        await self._refuse_early()
        began = time.monotonic()
        headers = self._connection.headers()
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
                refusal, failure = self._refused(error, method, began)
            else:
                self._connection.contact.answered()
                return reply
            finally:
                call.cancel()
        # What was sent is gone: who has it may send it again, and meets what is valid then.
        await self._connection.renewed(failure, headers)
        raise refusal

    async def _refuse_early(self) -> None:
        if (refusal := self._connection.contact.refusal()) is not None:
            raise refusal
        if (lacking := await self._connection.credentials.prepare()) is not None:
            raise lacking

    def _refused(
        self, error: grpc.aio.AioRpcError | asyncio.CancelledError, method: str, began: float
    ) -> tuple[OutputdError, Failure]:
        """What the client is told, and what it means to us."""
        name = method.rpartition("/")[2]
        failure = self._connection.failure(error, f"pass on {name}", began)
        if not isinstance(error, grpc.aio.AioRpcError):
            return failure.error, failure
        code = error.code()
        if isinstance(failure.error, Denied) and code is grpc.StatusCode.UNAVAILABLE:
            return failure.error, failure  # TLS: nobody to be asked again
        said = error.details() or ""
        text = self._connection.credentials.scrubbed(said)
        quoted = text != said
        if code is grpc.StatusCode.UNIMPLEMENTED:
            text = f"{self.url} does not offer {method.strip('/')}: {text}"
        elif code in UNANSWERED:
            text = str(failure.error)  # perhaps gRPC's own words, which do not say who did not answer
        details = None
        for key, value in cast(tuple[tuple[str, str | bytes], ...], tuple(error.trailing_metadata() or ())):
            if key == DETAILS and isinstance(value, bytes) and not quoted:
                details = value
        refusal = Refusal(code, text, details)
        if not quoted:
            refusal.__cause__ = error
        return refusal, failure


class _Lanes:
    """As many channels as the calls under way need."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._calls: dict[grpc.aio.Channel, int] = {}
        self._generation = 0
        self._old: set[grpc.aio.Channel] = set()
        """Those that were made with certificates of before."""

    @asynccontextmanager
    async def lane(self) -> AsyncIterator[grpc.aio.Channel]:
        if (generation := self._connection.generation()) != self._generation:
            self._generation = generation
            self._old.update(self._calls)
        usable = (known for known, calls in self._calls.items() if calls < _CALLS and known not in self._old)
        channel = next(usable, None)
        if channel is None:
            channel = self._connection.another_channel()
        self._calls[channel] = self._calls.get(channel, 0) + 1
        try:
            yield channel
        finally:
            self._calls[channel] -= 1
            if not self._calls[channel] and (len(self._calls) > 1 or channel in self._old):
                del self._calls[channel]
                self._old.discard(channel)
                await channel.close(None)

    async def close(self) -> None:
        for channel in list(self._calls):
            await channel.close(None)
