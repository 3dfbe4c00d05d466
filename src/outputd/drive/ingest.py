"""What was written here becomes blobs: closed local files are hashed off the event loop and moved into the local store by rename.

Never touches a file that has a writer.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Final

from outputd.digest import Digest, DigestFunction
from outputd.drive.content import Content
from outputd.errors import OutputdError
from outputd.store.base import LocalStore
from outputd.tree.node import File, Local
from outputd.tree.tree import Tree

_log = logging.getLogger(__name__)

_BATCH: Final = 64
"""Files handed to the hashing thread at once: one hop to a thread costs as much as hashing 100 KiB."""


class Ingest:
    """A queue of closed local files and the one task that works it off."""

    def __init__(self, tree: Tree, store: LocalStore) -> None:
        self._tree = tree
        self._store = store
        self._queue: dict[File, asyncio.Future[None]] = {}
        """Files to be ingested, in order, each with what its waiters wait for."""
        self._wake = asyncio.Event()

    def closed(self, file: File) -> None:
        """A file has local bytes and no writer (any more)."""
        if file not in self._queue:
            self._queue[file] = asyncio.get_running_loop().create_future()
            self._wake.set()

    async def digest_of(self, file: File, function: DigestFunction) -> Digest | None:
        """The digest of a file's bytes, hashing them now if need be; None while it is open for writing, or when it cannot be known.

        A blob known by a digest of another function answers None: to hash it could mean to fetch it.
        """
        while isinstance(file.content, Local):
            if file.content.writers or file.nlink == 0:
                return None
            self.closed(file)
            await asyncio.shield(self._queue[file])
            if isinstance(file.content, Local) and file not in self._queue:
                return None
        return file.content if file.content.function is function else None

    async def settle(self) -> None:
        """Wait until everything that is closed now is a blob, or was refused by the disk."""
        for waiting in list(self._queue.values()):
            await asyncio.shield(waiting)

    async def run(self, content: Content) -> None:
        """Work until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                await self._batch(content)

    async def _batch(self, content: Content) -> None:
        batch: list[tuple[File, Local, int, str, DigestFunction]] = []
        for file in list(self._queue)[:_BATCH]:
            local = file.content
            if not isinstance(local, Local) or local.writers or file.parent is None:
                self._done(file)  # reopened, replaced or unlinked; the next close asks again
                continue
            function = file.parent.volume.function
            batch.append((file, local, local.version, content.private_path(local), function))
        if not batch:
            return
        results = await asyncio.to_thread(_hash_all, [(path, function) for _, _, _, path, function in batch])
        for (file, local, version, path, _), result in zip(batch, results, strict=True):
            if isinstance(result, OSError):
                if file.nlink:  # else it was unlinked while it was being hashed
                    _log.error("cannot hash %s for %r: %s", path, file.name, result)
            elif file.content is local and local.version == version and local.writers == 0 and file.nlink:
                blocks = content.sparse_blocks(file)
                self._tree.adopting(file, result)
                try:
                    self._store.adopt(path, result)
                except OutputdError as error:
                    self._tree.outdate_attributes(file)  # the word about it is taken back
                    _log.error("cannot keep %r as blob %s: %s", file.name, result, error)
                else:
                    self._tree.set_content(file, result)
                    if blocks is not None:
                        file.note_blocks(blocks)
                        self._tree.outdate_attributes(file)
            elif file.content is local and local.writers == 0 and file.nlink:
                continue  # truncated while it was being hashed: once more
            self._done(file)

    def _done(self, file: File) -> None:
        waiting = self._queue.pop(file)
        if not waiting.done():
            waiting.set_result(None)


def _hash_all(jobs: list[tuple[str, DigestFunction]]) -> list[Digest | OSError]:
    results: list[Digest | OSError] = []
    for path, function in jobs:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                results.append(Digest.of_descriptor(function, fd))
            finally:
                os.close(fd)
        except OSError as error:
            results.append(error)
    return results
