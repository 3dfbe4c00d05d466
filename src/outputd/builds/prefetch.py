"""Brings files of a tree before anybody reads them, after what somebody waits for; drops local copies of what can be had again.

What is to be brought is named by patterns or by a profile, and of large files that a profile names only what was read is brought.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Container, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

from outputd.builds.pace import Pace
from outputd.builds.selection import Patterns, named_by, select
from outputd.builds.verification import Count
from outputd.digest import Digest
from outputd.drive.loader import Loader
from outputd.drive.profile import Profile, Run
from outputd.errors import OutputdError
from outputd.store.base import BlobStore
from outputd.store.batches import batches
from outputd.store.disk_store import DiskStore
from outputd.store.urgency import unhurried
from outputd.store.waiting import in_thread
from outputd.tree.node import Directory

_BATCH_BYTES: Final = 16 << 20
"""What is asked for between two looks at who waits."""
_STEP: Final = 0.02
_PATIENCE: Final = 1.0
"""Seconds for which those who wait go first, between two batches; then a batch goes all the same, or it would never end."""


@dataclass(slots=True)
class Prefetched:
    """How far it is."""

    matched: Count = field(default_factory=Count)
    missing: Count = field(default_factory=Count)
    """Blobs that were not here."""
    fetched: Count = field(default_factory=Count)
    failed: int = 0
    first_failure: str = ""
    left_out: Count = field(default_factory=Count)
    absent: int = 0
    """Files of a profile that the tree does not have."""


@dataclass(slots=True)
class Forgotten:
    """What became of local copies."""

    matched: Count = field(default_factory=Count)
    dropped: Count = field(default_factory=Count)
    only_here: Count = field(default_factory=Count)
    held: Count = field(default_factory=Count)


class Prefetch:
    """For one event loop."""

    def __init__(
        self,
        loader: Loader,
        blobs: BlobStore,
        store: DiskStore,
        awaited: Callable[[], bool],
        held: Callable[[], Container[Digest]],
    ) -> None:
        """`awaited`: whether somebody waits for something at this moment; `held`: the blobs that are to stay here."""
        self._loader = loader
        self._blobs = blobs
        self._store = store
        self._awaited = awaited
        self._held = held

    async def of(
        self, root: Directory, patterns: Patterns, *, max_bytes: int = 0
    ) -> AsyncGenerator[Prefetched]:
        """Bring what matches, at most `max_bytes` unless that is 0; the same figures again after each step, at last once more.

        A blob that cannot be had fails alone. Raises what it takes to look into directories: NotFound, Unavailable, TimedOut, ...
        """
        done = Prefetched()
        digests, _ = await self._digests(root, patterns, done.matched)
        missing = await in_thread(self._blobs.local.missing, digests)
        blobs = self._blobs.of_instance(root.volume.instance_name)
        async with aclosing(self._bring(blobs, dict.fromkeys(missing, ()), done, max_bytes)) as steps:
            async for step in steps:
                yield step

    async def replay(
        self, root: Directory, profile: Profile, *, max_bytes: int = 0
    ) -> AsyncGenerator[Prefetched]:
        """Bring what a profile names, in its order; the rest as `of`. What the tree does not have is counted and passed over."""
        done = Prefetched()
        blobs = self._blobs.of_instance(root.volume.instance_name)
        named, done.absent = await named_by(root, profile.files, self._loader, done.matched)
        missing = await in_thread(self._blobs.local.missing, set(named))
        wanted = {digest: runs for digest, runs in named.items() if digest in missing}
        async with aclosing(self._bring(blobs, wanted, done, max_bytes)) as steps:
            async for step in steps:
                yield step

    async def _bring(
        self, blobs: BlobStore, missing: Mapping[Digest, Sequence[Run]], done: Prefetched, max_bytes: int
    ) -> AsyncGenerator[Prefetched]:
        """Bring these in their order, as a whole or only some runs of bytes."""
        wanted: list[tuple[Digest, Sequence[Run]]] = []
        pace = Pace()
        for digest, runs in missing.items():
            if pace.due:
                await pace.turn()
            size = _lacking(blobs, digest, runs)
            if not size:
                continue
            done.missing.add(size)
            if max_bytes and done.missing.bytes - done.left_out.bytes > max_bytes:
                done.left_out.add(size)
            else:
                wanted.append((digest, runs))
        yield done
        for in_part, some in groupby(wanted, lambda one: bool(one[1])):
            if in_part:
                for digest, runs in some:
                    await self._give_way()
                    with unhurried():
                        await _bring_runs(blobs, digest, runs, done)
                    yield done
                continue
            for batch in batches((digest for digest, _ in some), _BATCH_BYTES):
                await self._give_way()
                with unhurried():
                    failures = await blobs.fetch_many(batch)
                for digest in batch:
                    _note(done, digest.size, failures.get(digest))
                yield done
        yield done

    async def forget(self, root: Directory, patterns: Patterns) -> Forgotten:
        """Drop local copies of what matches, those in part too, as far as the remote has it at this moment. Raises as `of`."""
        done = Forgotten()
        digests, unhashed = await self._digests(root, patterns, done.matched)
        done.only_here = unhashed
        blobs = self._blobs.of_instance(root.volume.instance_name)
        not_whole = await in_thread(self._blobs.local.missing, digests)
        here = digests - {digest for digest in not_whole if not self._store.partials.has(digest)}
        absent = await blobs.missing_remotely(here) if here else set()
        for digest in absent:
            done.only_here.add(digest.size)
        await in_thread(self._drop, here - absent, self._held(), done)
        return done

    def _drop(self, digests: Collection[Digest], held: Container[Digest], done: Forgotten) -> None:
        for digest in digests:
            if digest in held:
                done.held.add(digest.size)
                continue
            room = self._store.partials.remove(digest)
            if self._store.forget(digest):
                done.dropped.add(digest.size)
            elif room is not None:
                done.dropped.add(room)
            elif self._store.partials.has(digest):
                done.held.add(digest.size)

    async def _digests(
        self, root: Directory, patterns: Patterns, matched: Count
    ) -> tuple[set[Digest], Count]:
        """The blobs that match, and what matches and is none yet."""
        digests: set[Digest] = set()
        unhashed = Count()
        async with aclosing(select(root, patterns, self._loader)) as files:
            async for file in files:
                matched.add(file.size)
                if file.digest is None:
                    unhashed.add(file.size)
                else:
                    digests.add(file.digest)
        return digests, unhashed

    async def _give_way(self) -> None:
        end = time.monotonic() + _PATIENCE
        while self._awaited() and time.monotonic() < end:  # noqa: ASYNC110 - they come and go by the thousand
            await asyncio.sleep(_STEP)


def _lacking(blobs: BlobStore, digest: Digest, runs: Sequence[Run]) -> int:
    """Bytes that are to come of a blob that is not here as a whole."""
    ranges = blobs.ranges(digest) if runs else None
    if ranges is None:
        return digest.size
    try:
        return sum(ranges.lacks(start, end - start) for start, end in runs)
    finally:
        ranges.close()


async def _bring_runs(blobs: BlobStore, digest: Digest, runs: Sequence[Run], done: Prefetched) -> None:
    ranges = blobs.ranges(digest)
    if ranges is None:  # the remote is not asked for parts of it, or it has come meanwhile
        _note(done, digest.size, (await blobs.fetch_many([digest])).get(digest))
        return
    size = 0
    failure: OutputdError | None = None
    try:
        for start, end in runs:
            for at in range(start, end, _BATCH_BYTES):
                length = min(_BATCH_BYTES, end - at)
                size += ranges.lacks(at, length)
                await ranges.need(at, length, ahead=False)
    except OutputdError as error:
        failure = error
    finally:
        ranges.close()
    _note(done, size, failure)


def _note(done: Prefetched, size: int, failure: Exception | None) -> None:
    if failure is None:
        done.fetched.add(size)
    else:
        done.failed += 1
        done.first_failure = done.first_failure or str(failure)
