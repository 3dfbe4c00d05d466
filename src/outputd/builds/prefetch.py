"""Brings files of a tree before anybody reads them, after what somebody waits for; drops local copies of what can be had again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Container
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from outputd.builds.selection import Patterns, select
from outputd.builds.verification import Count
from outputd.digest import Digest
from outputd.drive.loader import Loader
from outputd.store.base import BlobStore
from outputd.store.batches import batches
from outputd.store.disk_store import DiskStore
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
        wanted: list[Digest] = []
        for digest in await in_thread(self._blobs.local.missing, digests):
            done.missing.add(digest.size)
            if max_bytes and done.missing.bytes - done.left_out.bytes > max_bytes:
                done.left_out.add(digest.size)
            else:
                wanted.append(digest)
        yield done
        blobs = self._blobs.of_instance(root.volume.instance_name)
        for batch in batches(wanted, _BATCH_BYTES):
            await self._give_way()
            failures = await blobs.fetch_many(batch)
            for digest in batch:
                failure = failures.get(digest)
                if failure is None:
                    done.fetched.add(digest.size)
                else:
                    done.failed += 1
                    done.first_failure = done.first_failure or str(failure)
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
