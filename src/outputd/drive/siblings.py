"""Read-ahead among files: who reads one small file of a directory after the other finds the next ones here. Waits for nothing.

A round trip for each small file is most of what a walk through an unfetched tree costs. From the third file of a directory on that
had to be fetched, some of its neighbours are brought in one batch, and twice as many each time that this was not enough.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from outputd.digest import Digest
from outputd.errors import OutputdError
from outputd.store.base import BlobStore
from outputd.tree.node import Child, Directory, File, blob_of

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


Ahead: TypeAlias = Callable[[Digest, set[Digest]], set[Digest]]


class _Walk:
    """Somebody's way through one directory."""

    __slots__ = ("ahead", "rest", "seen", "window")

    def __init__(self) -> None:
        self.seen = 0
        self.window = _FIRST
        self.rest: Iterator[Child] | None = None
        """What comes behind the file that gave the last sign, as of then."""
        self.ahead = False
        """A batch is under way."""


class Siblings:
    """Of one tree. Lives on the event loop."""

    def __init__(self, blobs: BlobStore, ahead: Ahead = lambda _, wanted: wanted) -> None:
        """`ahead` is asked which of the files that follow one may be brought for its reader."""
        self._ahead = ahead
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
            children = list(directory.children.values())
            walk.rest = iter(children[behind:] + children[:behind])
        wanted = self._ahead(digest, _next_small(walk))
        if wanted:
            walk.ahead = True
            walk.window = min(2 * walk.window, _MOST)
            blobs = self._blobs.of_instance(directory.volume.instance_name)
            self._tasks.create_task(self._bring(walk, blobs, wanted))

    async def _bring(self, walk: _Walk, blobs: BlobStore, digests: set[Digest]) -> None:
        try:
            # After what the reader waits for has left: whatever becomes of these must not keep it.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            async with asyncio.timeout(_PATIENCE):
                failures = await blobs.fetch_many(digests)
        except (OutputdError, TimeoutError) as error:
            _log.debug("reading ahead of %d files: %s", len(digests), error)
        else:
            if failures:
                # Whoever reads one of these is told what is wrong with it.
                _log.debug("reading ahead: %d of %d files did not come", len(failures), len(digests))
        finally:
            walk.ahead = False


def _next_small(walk: _Walk) -> set[Digest]:
    """The next files of a walk, as many as its window and the budget allow."""
    wanted: set[Digest] = set()
    size = 0
    assert walk.rest is not None
    for child in walk.rest:
        digest = blob_of(child)
        if digest is None or digest.size > _SMALL:
            continue
        wanted.add(digest)
        size += digest.size
        if len(wanted) >= walk.window or size >= _BUDGET:
            break
    return wanted
