"""What was written here becomes blobs: closed local files are hashed and moved into the local store by rename.

Small files are hashed on the event loop, others in threads, so that one large file holds up no small one and never the loop. A file
that is a blob's copy is not hashed, and becomes that blob. Never touches a file that has a writer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from outputd.digest import Digest, DigestFunction
from outputd.drive.private_files import PrivateFiles
from outputd.errors import OutputdError
from outputd.store.base import LocalStore
from outputd.tree.node import File, Local, full_blocks
from outputd.tree.tree import Tree

_log = logging.getLogger(__name__)

_SMALL: Final = 64 << 10
"""Bytes up to which a file is hashed on the loop. A thread would wait for the interpreter lock after each of its system calls, and
the loop after each of its own: to create a file of 4 KiB cost twice the time and the CPU (docs/explanation/performance.md)."""
_LARGE: Final = 16 << 20
"""Bytes from which on a file is hashed in the lane for large ones, which may take seconds for each."""
_BATCH: Final = 64
"""Files handed to a thread at once, if there are not _LARGE bytes of them before."""
_STEP: Final = 0.001
"""Seconds of work on the loop between two of its turns."""


class Ingest:
    """Queues of closed local files and the tasks that work them off."""

    def __init__(self, tree: Tree, store: LocalStore, private: PrivateFiles) -> None:
        """`private` as Content has it."""
        self._tree = tree
        self._store = store
        self._private = private
        self._waiting: dict[File, asyncio.Future[None]] = {}
        """Files to be ingested, each with what its waiters wait for."""
        self._small = _Lane()
        self._middling = _Lane()
        self._large = _Lane()
        self._buffer = bytearray(_SMALL + 1)
        self._turn_ends = 0.0

    def closed(self, file: File) -> None:
        """A file has local bytes and no writer (any more)."""
        if file not in self._waiting:
            self._waiting[file] = asyncio.get_running_loop().create_future()
            self._lane_of(file.size).enter(file)

    async def digest_of(self, file: File, function: DigestFunction) -> Digest | None:
        """The digest of a file's bytes, hashing them now if need be; None while it is open for writing, or when it cannot be known.

        A small file is hashed at once, whatever waits. A blob known by a digest of another function answers None: to hash it
        could mean to fetch it.
        """
        while isinstance(file.content, Local):
            if file.content.writers or file.nlink == 0:
                return None
            self.closed(file)
            waiting = self._waiting[file]
            if self._small.leave(file):
                self._ingest_small(file)
                if time.monotonic() > self._turn_ends:
                    await asyncio.sleep(0)
                    self._turn_ends = time.monotonic() + _STEP
            await asyncio.shield(waiting)
            if isinstance(file.content, Local) and file not in self._waiting:
                return None
        return file.content if file.content.function is function else None

    @property
    def busy(self) -> bool:
        """Whether files wait to become blobs."""
        return bool(self._waiting)

    async def settle(self) -> None:
        """Wait until everything that is closed now is a blob, or was refused by the disk."""
        for waiting in list(self._waiting.values()):
            await asyncio.shield(waiting)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._on_loop())
            tasks.create_task(self._in_thread(self._middling))
            tasks.create_task(self._in_thread(self._large))

    async def _on_loop(self) -> None:
        while True:
            await self._small.filled()
            until = time.monotonic() + _STEP
            while time.monotonic() < until and (file := self._small.next()) is not None:
                self._ingest_small(file)
            await asyncio.sleep(0)

    async def _in_thread(self, lane: _Lane) -> None:
        while True:
            await lane.filled()
            batch: list[_Job] = []
            size = 0
            while len(batch) < _BATCH and size < _LARGE and (file := lane.next()) is not None:
                local = self._to_be_hashed(file)
                if local is not None and self._keep_twin(file, local):
                    await self._private.discard(local)
                elif local is not None:
                    function = _function_of(file)
                    path = self._private.path(local)
                    batch.append(_Job(file, local, local.version, path, function))
                    size += local.size
            if batch:
                await self._hash(batch)

    def _ingest_small(self, file: File) -> None:
        """A file that has left its lane."""
        local = self._to_be_hashed(file)
        if local is None:
            return
        path = self._private.path(local)
        if self._keep_twin(file, local):
            self._private.remove(local)
            return
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                size = os.preadv(fd, [self._buffer], 0)
                blocks = _blocks_with_holes(fd)
            finally:
                os.close(fd)
        except OSError as error:
            self._unreadable(file, path, error)
            return
        if size > _SMALL:
            self._middling.enter(file)
            return
        with memoryview(self._buffer) as view:
            digest = Digest.of(_function_of(file), view[:size])
        self._keep(file, path, digest, blocks)

    async def _hash(self, batch: Sequence[_Job]) -> None:
        hashing = _Hashing(batch)
        try:
            results = await asyncio.to_thread(hashing.run)
        finally:
            hashing.stopped = True  # if we are cancelled: the thread ends at its next piece
        for job, result in zip(batch, results, strict=True):
            if isinstance(result, OSError):
                self._unreadable(job.file, job.path, result)
            elif result is not None and job.is_current():
                self._keep(job.file, job.path, *result)
            elif self._to_be_hashed(job.file) is not None:
                self._lane_of(job.file.size).enter(job.file)  # changed while it was being hashed: once more

    def _to_be_hashed(self, file: File) -> Local | None:
        """The bytes of a file that has left its lane; None if it was reopened, replaced or unlinked: the next close asks again."""
        local = file.content
        if isinstance(local, Local) and not local.writers and file.parent is not None:
            return local
        self._done(file)
        return None

    def _keep(self, file: File, path: str, digest: Digest, blocks: int | None) -> None:
        self._tree.adopting(file, digest)
        try:
            self._store.adopt(path, digest)
        except OutputdError as error:
            self._tree.outdate_attributes(file)  # the word about it is taken back
            _log.error("cannot keep %r as blob %s: %s", file.name, digest, error)
        else:
            self._tree.set_content(file, digest)
            if blocks is not None:
                file.note_blocks(blocks)
                self._tree.outdate_attributes(file)
        self._done(file)

    def _keep_twin(self, file: File, local: Local) -> bool:
        """Have a file that is a blob's copy become that blob, if it is here; the private file is not needed any more then."""
        if local.twin is None or local.twin[1] != local.version:
            return False
        digest = local.twin[0]
        try:
            if digest.function is not _function_of(file) or not self._store.has(digest):
                return False
        except OutputdError:
            return False  # whoever keeps the file as a blob of its own is told
        self._tree.adopting(file, digest)
        self._tree.set_content(file, digest)
        self._done(file)
        return True

    def _unreadable(self, file: File, path: str, error: OSError) -> None:
        if file.nlink:  # else it was unlinked while it was being hashed
            _log.error("cannot hash %s for %r: %s", path, file.name, error)
        self._done(file)

    def _done(self, file: File) -> None:
        waiting = self._waiting.pop(file)
        if not waiting.done():
            waiting.set_result(None)

    def _lane_of(self, size: int) -> _Lane:
        return self._small if size <= _SMALL else self._middling if size < _LARGE else self._large


class _Lane:
    """Files to be hashed, in order."""

    def __init__(self) -> None:
        self._files: dict[File, None] = {}
        self._entered = asyncio.Event()

    def enter(self, file: File) -> None:
        self._files[file] = None
        self._entered.set()

    def leave(self, file: File) -> bool:
        """Take a file out of its turn; False if it does not wait here."""
        if file not in self._files:
            return False
        del self._files[file]
        return True

    def next(self) -> File | None:
        """Take the first."""
        for file in self._files:
            del self._files[file]
            return file
        return None

    async def filled(self) -> None:
        """Return when somebody waits."""
        while not self._files:
            self._entered.clear()
            await self._entered.wait()


class _Job(NamedTuple):
    """A file to be hashed in a thread."""

    file: File
    local: Local
    version: int
    path: str
    function: DigestFunction

    def is_current(self) -> bool:
        """Whether the file still has the bytes that it had when it was handed over, and nobody is about to change them."""
        local = self.local
        file = self.file
        return (
            file.content is local and local.version == self.version and local.writers == 0 and file.nlink > 0
        )


class _Unwanted(Exception):
    """Nobody waits for this hash any more."""


class _Hashing:
    """The work of one batch, in a thread. What it reads of files may change meanwhile: then the result is not used."""

    def __init__(self, jobs: Sequence[_Job]) -> None:
        self._jobs = jobs
        self.stopped = False

    def run(self) -> list[tuple[Digest, int | None] | OSError | None]:
        """For each file its digest and, if it has holes, its blocks; None where it changed."""
        return [self._hash(job) for job in self._jobs]

    def _hash(self, job: _Job) -> tuple[Digest, int | None] | OSError | None:
        def go_on() -> None:
            if self.stopped or not job.is_current():
                raise _Unwanted

        try:
            fd = os.open(job.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return Digest.of_descriptor(job.function, fd, go_on), _blocks_with_holes(fd)
            finally:
                os.close(fd)
        except OSError as error:
            return error
        except _Unwanted:
            return None


def _function_of(file: File) -> DigestFunction:
    assert file.parent is not None
    return file.parent.volume.function


def _blocks_with_holes(fd: int) -> int | None:
    """What a file with holes takes on the disk, in units of 512 bytes; None of others, whatever little the disk below stores of
    them. Moves the descriptor's offset. Raises OSError."""
    status = os.fstat(fd)
    if status.st_blocks >= full_blocks(status.st_size):
        return None
    return status.st_blocks if os.lseek(fd, 0, os.SEEK_HOLE) < status.st_size else None
