"""The open FUSE device as a stream of requests, replies and notifications; never looks inside a message, never decides.

Requests and replies run on the event loop and do not wait: the device is non-blocking and a reply is taken at once.
Notifications may wait in the kernel for locks that a request of ours holds (fuse_reverse_inval_entry takes the directory's, data
invalidation the page's), so a thread writes them.
"""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Final

from outputd.errors import OutputdError, Precondition, TimedOut, Unavailable, Unsupported
from outputd.wire.fuse_reply import notification_name

MAX_WRITE: Final = 1 << 20
"""The largest WRITE the buffer has room for; what INIT may promise. The kernel's own limit is fs.fuse.max_pages_limit, 1 MiB."""

_BUFFER_SIZE: Final = MAX_WRITE + 4096

# Requests served before the loop gets its turn: with one the worst latencies of readers grow, without a bound those of RPCs.
_REQUESTS_A_WAKE: Final = 32

_SPIN: Final = 30e-6
"""Seconds to look for the next request before sleeping. A caller that makes one request after the other comes back within 20 us,
while a wake-up across CPUs costs 50: 50,000 cold lstats took 1.6 s instead of 3.0, and the daemon 1.1 s of CPU instead of 1.5."""
_SPINS_IN_VAIN: Final = 4
"""Wakes in a row whose spin found nothing, after which only every sixteenth tries it."""
_ABORTS_DOUBTED: Final = 8
"""Reads in a row that say ECONNABORTED before it is believed: that many requests may wait when a mount is taken off."""


class Channel:
    """One FUSE device, read on one event loop. Owns the descriptor; `close` gives it back and so ends the connection.

    `on_request(buffer, length)` is called with each message, in `buffer[:length]`; the buffer is used again for the next, so what
    must outlive the call is copied. `on_end(cause)` is called once when no request can come any more: with None when the mount
    was taken off, with the error when the connection was aborted (ECONNABORTED) or reading failed.
    """

    __slots__ = ("_aborts", "_buffer", "_fd", "_in_vain", "_loop", "_on_end", "_on_request", "_vector")

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        # readv into one buffer: os.read() of a megabyte allocates it anew each time, 16 us instead of 1.2.
        self._buffer: Final = memoryview(bytearray(_BUFFER_SIZE))
        self._vector: Final = [self._buffer]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_request: Callable[[memoryview, int], None] = _nobody_listens
        self._on_end: Callable[[OSError | None], None] = _nobody_minds
        self._in_vain = 0
        self._aborts = 0
        """Reads in a row that said ECONNABORTED."""

    @property
    def fd(self) -> int:
        """The descriptor, for ioctl(2) and for a `Notifier`; -1 once closed."""
        return self._fd

    def attach(
        self,
        loop: asyncio.AbstractEventLoop,
        on_request: Callable[[memoryview, int], None],
        on_end: Callable[[OSError | None], None],
    ) -> None:
        """Begin to serve on `loop`."""
        assert self._loop is None, "a channel serves one loop at a time"
        self._loop = loop
        self._on_request = on_request
        self._on_end = on_end
        loop.add_reader(self._fd, self._readable)

    def detach(self) -> None:
        """Read no more; requests wait in the kernel. Replies can still be given."""
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
            self._loop = None

    def close(self) -> None:
        """Give the device back: the kernel fails what it still waits for. Later replies go nowhere. May be called again."""
        self.detach()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _readable(self) -> None:
        on_request = self._on_request
        for served in range(_REQUESTS_A_WAKE):
            if self._loop is None:  # the last request made its server detach
                return
            length = self._receive() or (self._spin() if served else 0)
            if not length:
                return
            on_request(self._buffer, length)

    def _receive(self) -> int:
        """The length of the next message, now in the buffer; 0 when there is none at the moment."""
        try:
            length = os.readv(self._fd, self._vector)
        except BlockingIOError:
            return 0
        except OSError as error:
            # ENOENT: the request was withdrawn by a signal between our wake and our read (fuse_dev_do_read).
            if error.errno == errno.ENOENT:
                return 0
            # A request that is read while the mount is taken off ends so, too; the next read tells one from the other.
            if error.errno == errno.ECONNABORTED and self._aborts < _ABORTS_DOUBTED:
                self._aborts += 1
                return 0
            self._end(None if error.errno == errno.ENODEV else error)
            return 0
        self._aborts = 0
        if not length:  # the other end of a socket that plays the kernel is closed; the device never says so
            self._end(None)
        return length

    def _spin(self) -> int:
        """As `_receive`, but look a little longer, if that has paid lately."""
        if self._in_vain >= _SPINS_IN_VAIN and self._in_vain & 15:
            self._in_vain += 1
            return 0
        until = perf_counter() + _SPIN
        while self._loop is not None and perf_counter() < until:
            if length := self._receive():
                self._in_vain = 0
                return length
        self._in_vain += 1
        return 0

    def _end(self, cause: OSError | None) -> None:
        # Detach first: a device that has ended is readable for ever.
        self.detach()
        self._on_end(cause)

    def reply(self, message: bytes) -> bool:
        """Answer a request with one whole message; False when nobody waits for it any more, so that nothing it hands out is held.

        Raises OSError (EINVAL) when the kernel finds it malformed.
        """
        try:
            os.write(self._fd, message)
        except OSError as error:
            self._forgive(error)
            return False
        return True

    def reply_parts(self, parts: Sequence[bytes | memoryview]) -> bool:
        """Answer a request with one message that lies in pieces; as `reply`."""
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            self._forgive(error)
            return False
        return True

    def _forgive(self, error: OSError) -> None:
        # ENOENT: the request was interrupted or the connection aborted; nobody waits for this answer any more.
        if error.errno == errno.ENOENT:
            return
        # A task may answer after close(); its caller was failed by the kernel then.
        if error.errno == errno.EBADF and self._fd < 0:
            return
        raise error


def _nobody_listens(_buffer: memoryview, _length: int) -> None:
    raise AssertionError("a channel was read before attach()")


def _nobody_minds(_cause: OSError | None) -> None:
    raise AssertionError("a channel ended before attach()")


@dataclass(frozen=True, slots=True)
class _Batch:
    messages: Sequence[bytes]
    done: asyncio.Future[None]


class Notifier:
    """Writes notifications to the device from a thread of its own, in the order they were sent.

    The thread has its own copy of the descriptor, so a write that hangs never meets another file under a number used again. While
    it hangs the connection cannot end by closing: `close` says so, and the caller aborts the connection (`mount.abort`).
    """

    __slots__ = ("_closing", "_ended", "_fd", "_loop", "_queue", "_thread")

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop) -> None:
        self._fd: Final = os.dup(fd)
        self._loop: Final = loop
        self._queue: Final[queue.SimpleQueue[_Batch | None]] = queue.SimpleQueue()
        self._closing = False
        self._ended: Final = asyncio.Event()
        # Daemonic: a write that hangs must not keep the interpreter from ending.
        self._thread: Final = threading.Thread(target=self._run, name="fuse-notifier", daemon=True)
        self._thread.start()

    async def send(self, messages: Sequence[bytes], deadline: float = 30.0) -> None:
        """Write whole messages and return when the kernel has done what they say; an entry it does not know is done.

        The messages after a refused one are still written. Raises Unsupported when this kernel does not know a message,
        Precondition when it refuses one, Unavailable after `close`, and TimedOut when `deadline` seconds have passed; then the
        messages may yet be written, which is harmless.
        """
        if self._closing:
            raise Unavailable("the notifier is closed")
        batch = _Batch(messages, self._loop.create_future())
        self._queue.put(batch)
        try:
            async with asyncio.timeout(deadline):
                await batch.done
        except TimeoutError:
            raise TimedOut(
                f"the kernel did not take {len(messages)} notifications within {deadline:g} s: it waits for a lock"
            ) from None

    async def close(self, deadline: float = 2.0) -> bool:
        """Drop what was not written and end the thread. False when it hangs in the kernel: abort the connection then."""
        self._closing = True
        self._queue.put(None)
        try:
            async with asyncio.timeout(deadline):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    # --- in the thread

    def _run(self) -> None:
        try:
            while (batch := self._queue.get()) is not None:
                self._tell(partial(_settle, batch.done, self._write_all(batch.messages)))
        finally:
            os.close(self._fd)
            self._tell(self._ended.set)

    def _write_all(self, messages: Sequence[bytes]) -> OutputdError | None:
        first: OutputdError | None = None
        for message in messages:
            if self._closing:
                return first or Unavailable("the notifier was closed before the kernel was told everything")
            try:
                os.write(self._fd, message)
            except OSError as error:
                # The kernel holds no such inode or entry, so there is nothing to drop (fuse_reverse_inval_entry).
                if error.errno != errno.ENOENT and first is None:
                    first = _refusal(message, error)
        return first

    def _tell(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            # The loop is closed: close() had given up on a hanging write, and nobody waits any more.
            pass


def _settle(done: asyncio.Future[None], trouble: OutputdError | None) -> None:
    if done.done():  # its sender was cancelled or ran out of time
        return
    if trouble is None:
        done.set_result(None)
    else:
        done.set_exception(trouble)


def _refusal(message: bytes, error: OSError) -> OutputdError:
    # fuse_notify() answers EINVAL to a code it does not know.
    kind = Unsupported if error.errno == errno.EINVAL else Precondition
    trouble = kind(f"the kernel refused notification {notification_name(message)}: {error.strerror}")
    trouble.__cause__ = error
    return trouble
