"""Fetching of a large blob only what somebody reads, and a little ahead; never decides which blobs are read this way.

Each reader that goes on where it stopped gets a window ahead of it that grows with what it has read; one that jumps gets what it
asks for and a small window. A granule is asked for once, whoever waits for it. Where the server tells the chunks of the blob, whole
chunks come, each verified before a byte of it is read (chunked.py). When all of the blob is here it is hashed as a whole, and
becomes a blob of the local store; without chunks nothing was verified before that. Where the hash does not match, that is logged,
and the bytes are thrown away.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Final

from outputd.digest import Digest
from outputd.errors import Corrupt, Exhausted, OutputdError, Unavailable
from outputd.store.base import LocalStore, RemoteBlobs
from outputd.store.chunked import ChunkedBlob, ChunkLists, Stretch
from outputd.store.partial import GRANULE, PartialBlob
from outputd.store.prefix_hash import PrefixHash
from outputd.store.urgency import Errand, carrying, urgent
from outputd.store.waiting import in_thread

_log = logging.getLogger(__name__)

_FIRST_WINDOW: Final = 256 << 10
_LARGEST_WINDOW: Final = 32 << 20
_NEAR: Final = 2 << 20
"""Bytes by which a read may be off the place where a reader stopped and still go on from there: the kernel reads ahead, and not
always in order."""
_READERS: Final = 8
"""Readers of one blob that are told apart."""
_RUN: Final = 16 << 20
"""Most bytes of one call: the end of a window is not waited for with its beginning."""
_WHOLE: Final = 1 << 20
"""Large windows end at multiples of it, in bytes: BuildGrid sends no less than that of anything, whatever the limit."""
_WRITE_HERE: Final = 256 << 10
"""Bytes up to which writing to the disk does not go to a thread."""
_HASHED_AT_ONCE: Final = 16 << 20
"""Bytes from its beginning that a thread hashes at a time while a blob comes: so much is left to do at its end, 10 ms."""
_NEARLY: Final = 1 / 16
"""Part of a blob that may be missing when the rest is brought unasked."""


class _Reader:
    """Somebody who reads on."""

    __slots__ = ("began", "next")

    def __init__(self, began: int) -> None:
        self.began = began
        self.next = began
        """Where the next read is expected."""

    @property
    def window(self) -> int:
        """How much to fetch ahead: as much as was read in a row, so that at most twice of it moves."""
        return max(_FIRST_WINDOW, min(self.next - self.began, _LARGEST_WINDOW))


class _Run:
    """Consecutive bytes that are on their way."""

    __slots__ = ("end", "errand", "error", "start", "stretch")

    def __init__(self, start: int, end: int, stretch: Stretch | None = None) -> None:
        self.errand = Errand()
        """Nobody waits for what is read ahead."""
        self.start = start
        """All before that are here."""
        self.end = end
        self.stretch = stretch
        """Its chunks; None: it comes as one stream."""
        self.error: OutputdError | None = None


class RangedBlob:
    """One blob, for all who have it open. For one event loop."""

    def __init__(
        self,
        partial: PartialBlob,
        local: LocalStore,
        lists: ChunkLists,
        tasks: asyncio.TaskGroup,
        finished: Callable[[PartialBlob], None],
        spoilt: Callable[[Digest], object],
    ) -> None:
        """`finished` is told when nobody has it open any more and nothing is under way, `spoilt` when what was read was wrong."""
        self._partial = partial
        self._local = local
        self._chunked = ChunkedBlob(partial, lists)
        self._tasks = tasks
        self._finished = finished
        self._spoilt = spoilt
        self._readers: list[_Reader] = []
        """The one that read last at the end."""
        self._runs: list[_Run] = []
        self._progress = asyncio.Event()
        self._completing = False
        self._prefix = PrefixHash(partial.digest.function, partial.fd)
        self._mixed = False
        """Chunks and a plain stream were under way together: the stream may have written over a chunk that was hashed already."""
        self._hashing = False
        self._users = 0

    @property
    def fd(self) -> int:
        """To read from what `has` says is here."""
        return self._partial.fd

    def has(self, offset: int, size: int) -> bool:
        return self._partial.has(offset, size)

    def acquire(self) -> None:
        """One more has it open."""
        self._users += 1

    def release(self) -> None:
        self._users -= 1
        self._end_if_idle()

    def save(self) -> None:
        """Write down what is here of it, for another run."""
        partial = self._partial
        if os.path.lexists(partial.path):  # else it became a blob
            try:
                partial.save()
            except OSError as error:
                _log.warning("%s: what is here of it cannot be written down: %s", partial.path, error)

    async def whole(self, remote: RemoteBlobs) -> None:
        """Return when all of it is here and was verified; whether it is a blob of the local store then, that store says.

        Raises as `need`.
        """
        self.acquire()
        try:
            for offset in range(0, self._partial.size, _RUN):
                await self.need(offset, _RUN, remote)
            while self._completing:
                self._progress.clear()
                await self._progress.wait()
        finally:
            self.release()

    def lacks(self, offset: int, size: int) -> int:
        """How many bytes of the granules of these are missing."""
        return sum(end - start for start, end in self._partial.gaps(offset, offset + size))

    async def need(self, offset: int, size: int, remote: RemoteBlobs, *, ahead: bool = True) -> None:
        """Return when these bytes are here. Raises what RemoteBlobs.read_stream raises, Exhausted or Unavailable."""
        end = min(offset + size, self._partial.size)
        until = self._window(offset, end) if ahead else end
        if not self._partial.has(offset, size):
            await self._chunked.told(remote)
        self._begin(offset, until, remote)
        # Whole granules: what is missing of one may be bytes that nobody reads, and their failure is the reader's all the same.
        start, end = self._partial.whole_granules(offset), self._partial.whole_granules(end + GRANULE - 1)
        while not self._partial.has(offset, size):
            self._progress.clear()
            waited_for = [run for run in self._runs if run.start < end and start < run.end]
            if urgent():
                for run in waited_for:
                    run.errand.hurry()
            await self._progress.wait()
            for run in waited_for:
                if run.error is not None:
                    raise run.error
            self._begin(offset, end, remote)

    def note(self, offset: int, size: int, remote: RemoteBlobs) -> None:
        """Bytes were read that were here already: what comes next may have to be brought."""
        end = min(offset + size, self._partial.size)
        ahead = self._window(offset, end)
        # Not before half of the window is used up: a call for each read would cost more than its bytes.
        if next(self._wanting(end, end + (ahead - end) // 2), None) is not None and self._chunked.ready(
            remote
        ):
            self._begin(end, ahead, remote)

    def _window(self, offset: int, end: int) -> int:
        """Where to fetch up to, for a reader that reads these bytes."""
        for index in range(len(self._readers) - 1, -1, -1):
            reader = self._readers[index]
            if -_NEAR <= offset - reader.next <= _NEAR:
                del self._readers[index]
                break
        else:
            reader = _Reader(offset)
            del self._readers[: 1 - _READERS]
        reader.next = max(reader.next, end)
        self._readers.append(reader)
        ahead = end + reader.window
        if reader.window >= _WHOLE:
            ahead += -ahead % _WHOLE
        return min(ahead, self._partial.size)

    def _begin(self, start: int, end: int, remote: RemoteBlobs) -> None:
        """Ask for what is missing of these bytes and not on its way."""
        if self._partial.bytes_left < self._partial.size * _NEARLY:
            start, end = 0, self._partial.size
        for missing_start, missing_end in list(self._wanting(start, end)):
            self._ask(missing_start, missing_end, remote)

    def _wanting(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What is missing of these bytes and not on its way, in whole granules."""
        for gap_start, gap_end in self._partial.gaps(start, end):
            at = gap_start
            for run in sorted(self._runs, key=lambda run: run.start):
                if run.end <= at or run.start >= gap_end:
                    continue
                if at < run.start:
                    yield at, run.start
                at = max(at, run.end)
            if at < gap_end:
                yield at, gap_end

    def _ask(self, start: int, end: int, remote: RemoteBlobs) -> None:
        stretches = self._chunked.stretches(start, end)
        if stretches is None:
            runs = [_Run(at, min(at + _RUN, end)) for at in range(start, end, _RUN)]
        else:
            self._mixed = self._mixed or any(run.stretch is None for run in self._runs)
            runs = [_Run(stretch.start, stretch.end, stretch) for stretch in stretches]
        for run in runs:
            self._runs.append(run)
            self._tasks.create_task(self._bring(run, remote), context=carrying(run.errand))

    async def _stream(self, run: _Run, remote: RemoteBlobs) -> None:
        partial = self._partial
        at = run.start
        async with aclosing(remote.read_stream(partial.digest, at, run.end - at)) as pieces:
            async for piece in pieces:
                if len(piece) <= _WRITE_HERE:
                    partial.write(at, piece)
                else:
                    await in_thread(partial.write, at, piece)
                at += len(piece)
                partial.fill(run.start, at)
                run.start = run.end if at >= run.end else partial.whole_granules(at)
                self._progress.set()
                self._hash_on()

    async def _bring(self, run: _Run, remote: RemoteBlobs) -> None:
        partial = self._partial
        try:
            if run.stretch is None:
                await self._stream(run, remote)
            else:
                await self._chunked.bring(run.stretch, remote)
                self._hash_on()
        except OSError as error:
            kind = Exhausted if error.errno in (errno.ENOSPC, errno.EDQUOT) else Unavailable
            run.error = kind(f"{partial.path}: {error.strerror}")
        except OutputdError as error:
            run.error = error
        finally:
            self._runs.remove(run)
            self._progress.set()
        if partial.complete and not self._completing:
            self._completing = True
            try:
                await self._complete()
            finally:
                self._completing = False
                self._progress.set()
        self._end_if_idle()

    def _hash_on(self) -> None:
        """Hash what has come of the beginning, unless that is little."""
        partial = self._partial
        begin = self._prefix.end
        end = next(partial.gaps(begin, partial.size), (partial.size,))[0]
        if not self._hashing and end - begin >= _HASHED_AT_ONCE:
            self._hashing = True
            self._tasks.create_task(self._hash(end))

    async def _hash(self, end: int) -> None:
        try:
            await in_thread(self._prefix.advance, end)
        except OSError:
            pass  # whoever completes the blob meets it again, and tells
        finally:
            self._hashing = False
            self._end_if_idle()

    async def _complete(self) -> None:
        """All is here: verify it, and make it a blob of the local store."""
        partial = self._partial
        try:
            found = None if self._mixed else await in_thread(self._prefix.digest, partial.size)
            if found != partial.digest:  # or what was hashed early was replaced since
                found = await in_thread(Digest.of_descriptor, partial.digest.function, partial.fd)
            if found == partial.digest:
                self._local.adopt(partial.path, partial.digest)
                self._local.confirm_remote([partial.digest])
                partial.discard()
                return
            raise Corrupt(f"the bytes that came, and were read, have the digest {found}")
        except OSError as error:
            _log.error("blob %s: cannot be verified: %s", partial.digest, error)
        except OutputdError as error:
            _log.error("blob %s: %s", partial.digest, error)
            if isinstance(error, Corrupt):
                self._spoilt(partial.digest)
                partial.empty()
                self._chunked.distrust("its chunks do not make it up")
                self._prefix = PrefixHash(partial.digest.function, partial.fd)
                self._mixed = False

    def _end_if_idle(self) -> None:
        if self._users or self._runs or self._completing or self._hashing:
            return
        self.save()
        self._partial.close()
        self._finished(self._partial)


class RangedReading:
    """Ranges for one who reads a blob through one instance of the remote."""

    __slots__ = ("_blob", "_remote")

    def __init__(self, blob: RangedBlob, remote: RemoteBlobs) -> None:
        self._blob = blob
        self._remote = remote
        blob.acquire()

    @property
    def fd(self) -> int:
        return self._blob.fd

    def has(self, offset: int, size: int) -> bool:
        if not self._blob.has(offset, size):
            return False
        self._blob.note(offset, size, self._remote)
        return True

    def lacks(self, offset: int, size: int) -> int:
        return self._blob.lacks(offset, size)

    async def need(self, offset: int, size: int, *, ahead: bool = True) -> None:
        await self._blob.need(offset, size, self._remote, ahead=ahead)

    def close(self) -> None:
        self._blob.release()
