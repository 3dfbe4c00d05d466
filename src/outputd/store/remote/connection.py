"""Single calls to one server: the channel, the limit on calls, deadlines, headers. Never retries, never looks into a message.

A call that fails gives a `Failure` as a value; who calls decides about another try.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextvars import ContextVar
from typing import Final, TypeVar

import grpc
import grpc.aio

from outputd import __version__
from outputd._proto import remote_execution_pb2 as reapi
from outputd.errors import Denied, TimedOut, Unavailable
from outputd.store.remote.endpoint import (
    Endpoint,
    RemoteOptions,
    check_headers,
    open_channel,
    read_credentials,
)
from outputd.store.remote.failure import of_call
from outputd.store.remote.retry import Failure

build_id: ContextVar[str] = ContextVar("build_id", default="")
"""The build on whose behalf calls are made; servers see it as RequestMetadata.tool_invocation_id."""

_REQUEST_METADATA: Final = "build.bazel.remote.execution.v2.requestmetadata-bin"
_RESOURCE_NAME: Final = "build.bazel.remote.execution.v2.resource-name"

_ENDED: Final = (grpc.aio.AioRpcError, TimeoutError, asyncio.CancelledError)
"""How grpc.aio and our deadlines end a call that has no reply."""

T = TypeVar("T")


class Contact:
    """Whether the server serves us, as the last call has shown it."""

    __slots__ = ("last_error", "last_error_time", "reached")

    def __init__(self) -> None:
        self.reached: bool | None = None
        """None before the first call has ended."""
        self.last_error = ""
        self.last_error_time = 0.0
        """Seconds since 1970."""

    def succeeded(self) -> None:
        self.reached = True

    def failed(self, text: str) -> None:
        self.reached = False
        self.last_error = text
        self.last_error_time = time.time()


class Connection:
    """A server's calls as bytes in and bytes out."""

    def __init__(self, endpoint: Endpoint, options: RemoteOptions) -> None:
        """Connects at the first call. Raises Invalid for headers and certificates that cannot be used."""
        self.endpoint: Final = endpoint
        self.timeout: Final = options.timeout
        self.losses = 0
        """How often the server could not be reached: what was learnt from it before may be out of date."""
        self.contact: Final = Contact()
        self._credentials = read_credentials(endpoint, options)
        self._headers = check_headers(options.headers)
        self._slots = asyncio.Semaphore(options.max_concurrent)
        self._steps: set[asyncio.Timeout] = set()
        """The waits of all calls at this moment."""
        self._channel: grpc.aio.Channel | None = None
        self._closed = False

    async def call(self, method: str, request: bytes, doing: str) -> bytes | Failure:
        """One request, one reply."""
        async with self._slots:
            call = self._open().unary_unary(method, None, None)
            try:
                # The server is told the deadline; that we keep it, too, is for a connection that closes.
                reply: bytes = await self._step(
                    call(request, timeout=self.timeout, metadata=self._metadata())
                )
                self.contact.succeeded()
                return reply
            except _ENDED as error:
                return self._failure(error, doing)

    async def receive(
        self, method: str, request: bytes, resource: str, doing: str
    ) -> AsyncGenerator[bytes | Failure]:
        """One request, many replies. When the stream breaks, the last item is a Failure."""
        async with self._slots:
            call = self._open().unary_stream(method, None, None)(request, metadata=self._metadata(resource))
            try:
                while isinstance(reply := await self._step(call.read()), bytes):
                    yield reply
                self.contact.succeeded()
            except _ENDED as error:
                yield self._failure(error, doing)
            finally:
                call.cancel()

    async def send(
        self, method: str, requests: AsyncIterator[bytes], resource: str, doing: str
    ) -> bytes | Failure:
        """Many requests, one reply, which may come before all requests are out: then the rest is not sent."""
        async with self._slots:
            call = self._open().stream_unary(method, None, None)(None, metadata=self._metadata(resource))
            try:
                try:
                    async for request in requests:
                        await self._step(call.write(request))
                    await self._step(call.done_writing())
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    pass  # The server ended the call, well or badly: its reply or status follows.
                reply: bytes = await self._step(call)
                self.contact.succeeded()
                return reply
            except _ENDED as error:
                return self._failure(error, doing)
            finally:
                call.cancel()

    async def close(self) -> None:
        """Ends calls in flight, and allows none afterwards."""
        self._closed = True
        # Closing the channel does not wake every wait: a write may hang on for its whole deadline.
        for step in self._steps:
            step.reschedule(0)
        if self._channel is not None:
            await self._channel.close(None)

    async def _step(self, wait: Awaitable[T]) -> T:
        """One wait of a call, with its deadline."""
        async with asyncio.timeout(self.timeout) as step:
            self._steps.add(step)
            try:
                return await wait
            finally:
                self._steps.remove(step)

    def _open(self) -> grpc.aio.Channel:
        if self._closed:
            raise Unavailable(f"the connection to {self.endpoint} is closed")
        if self._channel is None:
            self._channel = open_channel(self.endpoint, self._credentials)
        return self._channel

    def _metadata(self, resource: str = "") -> grpc.aio.Metadata:
        request = reapi.RequestMetadata(
            tool_details=reapi.ToolDetails(tool_name="outputd", tool_version=__version__),
            tool_invocation_id=build_id.get(),
        )
        metadata = grpc.aio.Metadata(*self._headers, (_REQUEST_METADATA, request.SerializeToString()))
        if resource:
            # For routers between us and the store, which should not have to look into messages.
            metadata.add(_RESOURCE_NAME, resource)
        return metadata

    def _failure(self, error: BaseException, doing: str) -> Failure:
        """What one of _ENDED means; a cancellation that is meant for our task goes on."""
        doing = f"{doing} at {self.endpoint}"
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
            raise error
        if self._closed or isinstance(error, asyncio.CancelledError):
            # grpc.aio raises CancelledError also when its channel closes.
            return Failure(Unavailable(f"cannot {doing}: the connection was closed"), transient=False)
        if isinstance(error, grpc.aio.AioRpcError):
            failure = of_call(error, doing)
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self.losses += 1
        else:
            failure = Failure(
                TimedOut(f"cannot {doing}: nothing moved for {self.timeout:g} s"), transient=True
            )
            failure.error.__cause__ = error
        if isinstance(failure.error, Unavailable | Denied):
            self.contact.failed(str(failure.error))
        else:
            self.contact.succeeded()  # it answered, if only that it lacks a blob
        return failure
