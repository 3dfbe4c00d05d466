"""Read-ahead among files: who reads one small file of a directory after the other finds the next ones here. Waits for nothing.

A round trip for each small file is most of what a walk through an unfetched tree costs. From the third file of a directory on that
had to be fetched, some of its neighbours are brought in one batch, and twice as many each time that this was not enough.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from outputd.digest import Digest
from outputd.errors import OutputdError
from outputd.store.base import BlobStore
from outputd.store.urgency import Errand, carrying
from outputd.store.waiting import in_thread
from outputd.tree.node import Directory, File, blob_of

_log = logging.getLogger(__name__)

_SMALL: Final = 256 << 10
"""Bytes of a file up to which it is worth it: larger ones take longer than their round trip."""
_SIGNS: Final = 3
"""Files that were fetched of one directory before others are."""
_FIRST: Final = 16
_MOST: Final = 512
"""Files brought at once."""
_BUDGET: Final = 8 << 20
"""Bytes brought at once."""
_PATIENCE: Final = 10.0
"""Seconds for which a batch is waited for."""
_DIRECTORIES: Final = 16
"""Directories that are kept in mind."""
_LOOKUPS_HERE: Final = 64
"""Blobs that are looked for in the local store without a thread: 0.2 ms."""


class Permits(Protocol):
    """Whoever says how much may be fetched for a reader that has not asked for it yet."""

    def ahead(self, read: Digest, wanted: Sequence[Digest]) -> Sequence[Digest]:
        """Which of these blobs, none of them here, are to be brought for who reads `read`; the first of them, if not all."""
        ...

    def came(self, digests: Sequence[Digest]) -> None:
        """What `ahead` let through is here, or will not come."""
        ...


class _Walk:
    """Somebody's way through one directory."""

    __slots__ = ("ahead", "rest", "seen", "window")

    def __init__(self) -> None:
        self.seen = 0
        self.window = _FIRST
        self.rest: Iterator[bytes] | None = None
        """The names behind the file that gave the sign, and then those before it, as of then."""
        self.ahead = False
        """A batch is under way."""


class Siblings:
    """Of one tree. Lives on the event loop."""

    def __init__(self, blobs: BlobStore, permits: Permits | None = None) -> None:
        """Without `permits` everything may be brought."""
        self._permits = permits
        self._blobs = blobs
        self._tasks: asyncio.TaskGroup | None = None
        """While `run` runs."""
        self._walks: dict[Directory, _Walk] = {}
        """The one that gave the last sign at the end."""

    async def run(self) -> None:
        """Work until cancelled; then what is under way is given up, for nobody waits for it."""
        async with asyncio.TaskGroup() as self._tasks:
            await asyncio.Event().wait()

    def fetching(self, file: File, digest: Digest) -> None:
        """A reader waits for this file, which is not here."""
        directory = file.parent
        if self._tasks is None or directory is None or directory.children is None or digest.size > _SMALL:
            return
        walk = self._walks.pop(directory, None) or _Walk()
        self._walks[directory] = walk
        if len(self._walks) > _DIRECTORIES:
            del self._walks[next(iter(self._walks))]
        walk.seen += 1
        if walk.seen < _SIGNS or walk.ahead:
            return
        if walk.rest is None:
            names = list(directory.children)
            behind = names.index(file.name) + 1
            walk.rest = iter(names[behind:] + names[:behind])
        walk.ahead = True
        self._tasks.create_task(self._advance(walk, directory, digest), context=carrying(Errand()))

    async def _advance(self, walk: _Walk, directory: Directory, read: Digest) -> None:
        try:
            # After what the reader waits for has left: whatever becomes of these must not keep it.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            digests: Sequence[Digest] = await self._next_absent(walk, directory)
            if self._permits is not None:
                digests = self._permits.ahead(read, digests)
            if not digests:
                return
            walk.window = min(2 * walk.window, _MOST)
            try:
                await self._bring(self._blobs.of_instance(directory.volume.instance_name), digests)
            finally:
                if self._permits is not None:
                    self._permits.came(digests)
        finally:
            walk.ahead = False

    async def _next_absent(self, walk: _Walk, directory: Directory) -> list[Digest]:
        """The next files of a walk that are not here, as many as its window and the budget allow."""
        local = self._blobs.local
        absent: dict[Digest, None] = {}
        budget = _BUDGET
        while (most := walk.window - len(absent)) and budget > 0:
            some = _next_small(walk, directory, most, budget)
            if not some:
                break
            missing = (
                local.missing(some) if len(some) <= _LOOKUPS_HERE else await in_thread(local.missing, some)
            )
            absent |= dict.fromkeys(digest for digest in some if digest in missing)
            budget -= sum(digest.size for digest in missing)
        return list(absent)

    async def _bring(self, blobs: BlobStore, digests: Sequence[Digest]) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                failures = await blobs.fetch_many(digests)
        except (OutputdError, TimeoutError) as error:
            _log.debug("reading ahead of %d files: %s", len(digests), error)
        else:
            if failures:
                # Whoever reads one of these is told what is wrong with it.
                _log.debug("reading ahead: %d of %d files did not come", len(failures), len(digests))


def _next_small(walk: _Walk, directory: Directory, most: int, budget: int) -> list[Digest]:
    """Up to so many of the next files of a walk, and hardly more bytes than the budget allows."""
    wanted: list[Digest] = []
    assert walk.rest is not None
    if directory.children is None:  # the tree has let go of it
        return wanted
    for name in walk.rest:
        child = directory.children.get(name)
        digest = None if child is None else blob_of(child)
        if digest is None or digest.size > _SMALL:
            continue
        wanted.append(digest)
        budget -= digest.size
        if len(wanted) >= most or budget <= 0:
            break
    return wanted
