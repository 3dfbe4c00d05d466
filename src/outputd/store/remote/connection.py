"""Single calls to one server: the channel, the limit on calls, deadlines, headers. Never retries, never looks into a message.

A call that fails gives a `Failure` as a value; who calls decides about another try.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextvars import ContextVar
from dataclasses import replace
from typing import Final, NamedTuple, TypeVar

import grpc
import grpc.aio

from outputd import __version__
from outputd._proto import remote_execution_pb2 as reapi
from outputd.errors import Denied, Throttled, TimedOut, Unavailable
from outputd.store.remote.caller import REQUEST_METADATA, caller
from outputd.store.remote.contact import Contact, Standing
from outputd.store.remote.credential_facts import Headers
from outputd.store.remote.credentials import Credentials
from outputd.store.remote.endpoint import Endpoint, RemoteOptions, open_channel
from outputd.store.remote.failure import UNANSWERED, of_call
from outputd.store.remote.line import Line
from outputd.store.remote.retry import Failure
from outputd.store.remote.tls import Tls
from outputd.store.remote.window import Window

_log = logging.getLogger(__name__)

build_id: ContextVar[str] = ContextVar("build_id", default="")
"""The build on whose behalf calls are made; servers see it as RequestMetadata.tool_invocation_id."""

_RESOURCE_NAME: Final = "build.bazel.remote.execution.v2.resource-name"

_ENDED: Final = (grpc.aio.AioRpcError, TimeoutError, asyncio.CancelledError)
"""How grpc.aio and our deadlines end a call that has no reply."""

_LEAST_RATE: Final = 128
"""Bytes a second, over the time of one timeout, below which a stream counts as standing still. 64 streams of it are 64 kbit/s."""
_PROBE_SECONDS: Final = 5.0
"""For one probe of a server that was given up."""
_FIRST_PAUSE: Final = 0.5
_LAST_PAUSE: Final = 5.0
"""Seconds between probes: they double from the first to the last."""

T = TypeVar("T")


class _Lane:
    """A channel, by which certificates it was made, and how many calls are on it."""

    __slots__ = ("calls", "channel", "generation")

    def __init__(self, channel: grpc.aio.Channel, generation: int) -> None:
        self.channel = channel
        self.generation = generation
        self.calls = 0


class _Place(NamedTuple):
    """Of one call, from `_enter` to `_leave`."""

    lane: _Lane
    background: bool
    """As Line.enter said."""


class Connection:
    """A server's calls as bytes in and bytes out."""

    def __init__(self, endpoint: Endpoint, options: RemoteOptions) -> None:
        """Connects at the first call. Raises Invalid for headers and certificates that cannot be used."""
        self.endpoint: Final = endpoint
        self.timeout: Final = options.timeout
        self.losses = 0
        """How often the server could not be reached: what was learnt from it before may be out of date."""
        self.contact: Final = Contact(endpoint.url, options.retry_seconds)
        self.credentials: Final = Credentials(endpoint, options)
        self._tls = Tls(options) if endpoint.secure else None
        self.line: Final = Line(Window(options.max_concurrent))
        self._steps: set[asyncio.Timeout] = set()
        """The waits of all calls at this moment."""
        self._doubt = asyncio.Event()
        self._lane: _Lane | None = None
        """Where new calls go. One that was made with certificates of before is closed when its last call has ended."""
        self._retired: set[_Lane] = set()
        """Those on which calls are still under way."""
        self._closed = False

    async def call(self, method: str, request: bytes, doing: str) -> bytes | Failure:
        """One request, one reply."""
        if isinstance(entered := await self._enter(doing), Failure):
            return entered
        lane = entered.lane
        began = time.monotonic()
        headers = self.headers()
        try:
            call = lane.channel.unary_unary(method, None, None)
            # The server is told the deadline; that we keep it, too, is for a connection that closes.
            reply: bytes = await self._step(
                call(request, timeout=self.timeout, metadata=_metadata(headers)), self.timeout
            )
            self._served()
            return reply
        except _ENDED as error:
            failure = self.failure(error, doing, began)
        finally:
            await self._leave(entered)
        return await self.renewed(failure, headers)

    async def receive(
        self, method: str, request: bytes, resource: str, doing: str
    ) -> AsyncGenerator[bytes | Failure]:
        """One request, many replies. When the stream breaks, the last item is a Failure.

        It breaks, too, when less than _LEAST_RATE comes for the time of one timeout; what the receiver takes for itself does
        not count.
        """
        if isinstance(entered := await self._enter(doing), Failure):
            yield entered
            return
        lane = entered.lane
        began = time.monotonic()
        headers = self.headers()
        enough = _LEAST_RATE * self.timeout
        moved = waited = 0.0
        try:
            call = lane.channel.unary_stream(method, None, None)(
                request, metadata=_metadata(headers, resource)
            )
            try:
                while True:
                    began = time.monotonic()  # before that it did answer
                    reply = await self._step(call.read(), self.timeout)
                    if not isinstance(reply, bytes):
                        break
                    moved += len(reply)
                    waited += time.monotonic() - began
                    if moved >= enough:
                        moved = waited = 0.0
                        self.contact.answered()
                    elif waited >= self.timeout:
                        since = time.monotonic() - waited
                        yield self._standstill(doing, since, f"{moved:.0f} bytes in {waited:.1f} s")
                        return
                    yield reply
                self._served()
                return
            except _ENDED as error:
                failure = self.failure(error, doing, began)
            finally:
                call.cancel()
        finally:
            await self._leave(entered)
        yield await self.renewed(failure, headers)

    async def send(
        self, method: str, requests: AsyncIterator[bytes], resource: str, doing: str
    ) -> bytes | Failure:
        """Many requests, one reply, which may come before all requests are out: then the rest is not sent."""
        if isinstance(entered := await self._enter(doing), Failure):
            return entered
        lane = entered.lane
        began = time.monotonic()
        headers = self.headers()
        try:
            call = lane.channel.stream_unary(method, None, None)(None, metadata=_metadata(headers, resource))
            try:
                try:
                    async for request in requests:
                        began = time.monotonic()
                        await self._step(call.write(request), self.timeout)
                    began = time.monotonic()
                    await self._step(call.done_writing(), self.timeout)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    pass  # The server ended the call, well or badly: its reply or status follows.
                reply: bytes = await self._step(call, self.timeout)
                self._served()
                return reply
            except _ENDED as error:
                failure = self.failure(error, doing, began)
            finally:
                call.cancel()
        finally:
            await self._leave(entered)
        return await self.renewed(failure, headers)

    async def watch(self, method: str, request: bytes) -> None:
        """Let the server be given up when it does not answer, and from then on probe it with this call; renew credentials before
        they end. Until cancelled.

        Without this no server is given up, each call finds out for itself, and is the one that waits for new credentials.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self.credentials.run())
            group.create_task(self._watch_contact(method, request))

    async def _watch_contact(self, method: str, request: bytes) -> None:
        self.contact.breaks = True
        try:
            while True:
                await self._doubt.wait()
                self._doubt.clear()
                if self.contact.standing is Standing.SUSPECTED:
                    await self._probe(method, request)
                pause = _FIRST_PAUSE
                while self.contact.standing is Standing.GIVEN_UP:
                    self._end_all()
                    await asyncio.sleep(random.uniform(pause / 2, pause))
                    pause = min(2 * pause, _LAST_PAUSE)
                    await self._probe(method, request)
        finally:
            self.contact.breaks = False

    async def _probe(self, method: str, request: bytes) -> None:
        """Ask on a connection of its own. When a server that was given up answers, in whatever way, that is the connection."""
        lane = _Lane(self.another_channel(), self.generation())
        spare: _Lane | None = lane
        seconds = min(self.timeout, _PROBE_SECONDS)
        try:
            answered = True
            try:
                async with asyncio.timeout(seconds):
                    await lane.channel.unary_unary(method, None, None)(
                        request, timeout=seconds, metadata=_metadata(self.headers())
                    )
            except TimeoutError:
                answered = False
            except grpc.aio.AioRpcError as error:
                answered = error.code() not in UNANSWERED
            self.contact.probed(answered=answered)
            if self.contact.standing is Standing.ON_TRIAL and not self._closed:
                # Nothing is under way on the old one: all calls were ended when the server was given up.
                spare, self._lane = self._lane, lane
        finally:
            if spare is not None:
                await spare.channel.close(None)

    def another_channel(self) -> grpc.aio.Channel:
        """For calls that are made beside this connection, to be closed by who asked. Raises Unavailable after `close`."""
        if self._closed:
            raise Unavailable(f"the connection to {self.endpoint} is closed")
        return open_channel(self.endpoint, None if self._tls is None else self._tls.credentials)

    async def close(self) -> None:
        """Ends calls in flight, and allows none afterwards."""
        self._closed = True
        # Closing the channel does not wake every wait: a write may hang on for its whole deadline.
        self._end_all()
        for lane in list(self._retired):
            await lane.channel.close(None)
        if self._lane is not None:
            await self._lane.channel.close(None)

    async def _enter(self, doing: str) -> _Place | Failure:
        """Take a place and a channel, to be given back with `_leave`; or fail at once. The line moves, for each call in it ends or
        is ended."""
        if (refusal := self.contact.refusal()) is not None:
            return Failure(refusal, transient=False)
        began = time.monotonic()
        try:
            background = await self._step(self.line.enter(), None)
        except TimeoutError as error:  # closing, or given up
            return self.failure(error, doing, began)
        place: _Place | None = None
        try:
            if (refusal := self.contact.refusal()) is not None:
                return Failure(refusal, transient=False)
            try:
                lacking = await self._step(self.credentials.prepare(), None)
            except TimeoutError as error:  # closing, or given up
                return self.failure(error, doing, began)
            if lacking is not None:
                text = f"cannot {doing} at {self.endpoint}: {lacking}"
                self.contact.refused(text)
                # Who tries again at once meets a helper that rests.
                return Failure(type(lacking)(text), transient=False)
            place = _Place(await self._open(), background)
            return place
        finally:
            if place is None:
                self.line.leave(background=background)

    async def _leave(self, place: _Place) -> None:
        self.line.leave(background=place.background)
        lane = place.lane
        lane.calls -= 1
        if lane in self._retired and not lane.calls:
            self._retired.discard(lane)
            await lane.channel.close(None)

    async def _step(self, wait: Awaitable[T], seconds: float | None) -> T:
        """One wait of a call, with its deadline."""
        async with asyncio.timeout(seconds) as step:
            self._steps.add(step)
            try:
                return await wait
            finally:
                self._steps.remove(step)

    def _end_all(self) -> None:
        for step in self._steps:
            # One whose time is up, and whose task has not heard of it yet, ends by itself, and takes no other time any more.
            if not step.expired():
                step.reschedule(0)

    async def _open(self) -> _Lane:
        """Where a call goes that begins now; it is counted."""
        if self._closed:
            raise Unavailable(f"the connection to {self.endpoint} is closed")
        generation = self.generation()
        before = self._lane
        if before is not None and before.generation == generation:
            before.calls += 1
            return before
        fresh = self._lane = _Lane(self.another_channel(), generation)
        fresh.calls += 1
        if before is not None:
            _log.info("%s: certificates were renewed; calls under way end where they began", self.endpoint)
            if before.calls:
                self._retired.add(before)
            else:
                await before.channel.close(None)
        return fresh

    def generation(self) -> int:
        """Grows when certificates were renewed: a channel that was made before is not for new calls."""
        return 0 if self._tls is None else self._tls.generation()

    def metadata(self, resource: str = "") -> grpc.aio.Metadata:
        """For a call that is made beside this connection: `credentials.prepare` comes before."""
        return _metadata(self.headers(), resource)

    def headers(self) -> Headers:
        """For a call that is made now, on behalf of the caller of this context."""
        return self.credentials.headers(caller.get().headers)

    async def renewed(self, failure: Failure, sent: Headers) -> Failure:
        """Of a call that failed because it was not proven who we are: with what is there now it may be made once more.

        Never inside an `except`: what goes wrong here would carry gRPC's error along, and that may quote what we have sent.
        """
        if failure.unauthenticated and await self.credentials.renew(sent, caller.get().headers):
            return replace(failure, renewed=True)
        return failure

    def _served(self) -> None:
        """A call got its whole answer."""
        self.contact.answered()
        self.line.served()

    def failure(self, error: BaseException, doing: str, began: float) -> Failure:
        """What one of _ENDED means; a cancellation that is meant for our task goes on."""
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
            raise error
        if self._closed or isinstance(error, asyncio.CancelledError):
            # grpc.aio raises CancelledError also when its channel closes.
            text = f"cannot {doing} at {self.endpoint}: the connection was closed"
            return Failure(Unavailable(text), transient=False)
        if (refusal := self.contact.refusal()) is not None:
            return Failure(refusal, transient=False)  # ended because others had no answer
        if not isinstance(error, grpc.aio.AioRpcError):
            failure = self._standstill(doing, began, f"nothing for {self.timeout:g} s")
            failure.error.__cause__ = error
            return failure
        failure = of_call(error, f"{doing} at {self.endpoint}")
        if (text := self.credentials.scrubbed(str(failure.error))) != str(failure.error):
            # The server has quoted what we sent it: its words are changed, and gRPC's error, which has them too, is not kept.
            failure = replace(failure, error=type(failure.error)(text))
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            self.losses += 1
        if isinstance(failure.error, Throttled) or error.code() in UNANSWERED:
            self.line.pushed_back(began)
        if isinstance(failure.error, Denied):
            self.contact.refused(str(failure.error))
        elif error.code() in UNANSWERED:
            self._unanswered(failure, began)
        elif isinstance(failure.error, Unavailable):
            self.contact.refused(str(failure.error))
        else:
            self.contact.answered()  # if only that it lacks a blob
        return failure

    def _standstill(self, doing: str, began: float, moved: str) -> Failure:
        failure = Failure(TimedOut(f"cannot {doing} at {self.endpoint}: it sent {moved}"), transient=True)
        self.line.pushed_back(began)
        self._unanswered(failure, began)
        return failure

    def _unanswered(self, failure: Failure, began: float) -> None:
        self.contact.unanswered(str(failure.error), began)
        if self.contact.standing in (Standing.SUSPECTED, Standing.GIVEN_UP):
            self._doubt.set()


def _metadata(headers: Headers, resource: str = "") -> grpc.aio.Metadata:
    described = caller.get().request_metadata
    if described is None:
        described = reapi.RequestMetadata(
            tool_details=reapi.ToolDetails(tool_name="outputd", tool_version=__version__),
            tool_invocation_id=build_id.get(),
        ).SerializeToString()
    metadata = grpc.aio.Metadata(*headers, (REQUEST_METADATA, described))
    if resource:
        # For routers between us and the store, which should not have to look into messages.
        metadata.add(_RESOURCE_NAME, resource)
    return metadata
