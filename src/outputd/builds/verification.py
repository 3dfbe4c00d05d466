"""How much of a tree can still be had, and from where: asked of everybody who may hold it, file by file. Moves and changes nothing.

Works in bounded memory whatever the size of the tree: a batch of files at a time, and one word for each distinct directory.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from outputd.builds.pace import Pace
from outputd.builds.survey import Collapsed
from outputd.digest import Digest
from outputd.drive.loader import Loader
from outputd.errors import Corrupt, NotFound, Unavailable
from outputd.store.base import BlobStore
from outputd.store.batches import batches
from outputd.store.waiting import in_thread
from outputd.tree.node import Child, Directory, File, blob_of

_FILES_A_BATCH: Final = 10_000
"""As many as one call of FindMissingBlobs takes (store/remote/client.py)."""
_HASHED_A_BATCH: Final = 500
"""Fewer when they are hashed, so that whoever waits sees progress."""
_HASHED_AT_ONCE: Final = 32 << 20
"""Bytes that are hashed between two turns of the loop, in a thread: about 50 ms."""


@dataclass(slots=True)
class Count:
    """So many files, and their bytes together."""

    files: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.files += 1
        self.bytes += size


class Loss(NamedTuple):
    """Something that cannot be had."""

    path: bytes
    """Below the output path."""
    digest: Digest | None
    """None: of a directory whose digest is not even known."""
    reason: str


@dataclass(slots=True)
class Tally:
    """What was found so far. Every file is in one of the first four counts."""

    both: Count = field(default_factory=Count)
    """In the local store and in the remote."""
    remote: Count = field(default_factory=Count)
    """In the remote alone."""
    here: Count = field(default_factory=Count)
    """On this machine alone: in the local store, or written and not a blob yet."""
    gone: Count = field(default_factory=Count)
    """Nowhere."""
    damaged: Count = field(default_factory=Count)
    """Local blobs whose bytes are not what their digest says; they count as not being here. Only if content was looked at."""
    directories: int = 0
    unloadable: int = 0
    """Directories of which nobody can tell what they hold."""
    losses: list[Loss] = field(default_factory=list)
    """New since whoever reads this has emptied it."""

    @property
    def whole(self) -> bool:
        """Everything can be had."""
        return not self.gone.files and not self.unloadable


class Verification:
    """Verifies trees."""

    def __init__(self, loader: Loader, blobs: BlobStore) -> None:
        self._loader = loader
        self._blobs = blobs

    async def of(self, root: Directory, path: bytes, *, content: bool) -> AsyncGenerator[Tally]:
        """Look through what lies at `path` below `root`; the same tally again after each batch, at last once more.

        A file or directory that has several names is counted for each, but what equal directories hold that nobody has looked into
        is counted once. With `content`, local blobs are hashed. Raises NotFound when there is nothing at `path`, and Unavailable,
        TimedOut or Denied when the remote does not answer.
        """
        tally = Tally()
        blobs = self._blobs.of_instance(root.volume.instance_name)
        batch: list[tuple[bytes, Digest]] = []
        size = _HASHED_A_BATCH if content else _FILES_A_BATCH
        async with aclosing(self._files(root, path, tally)) as files:
            async for found in files:
                batch.append(found)
                if len(batch) >= size:
                    await self._sort(batch, tally, blobs, content=content)
                    batch = []
                    yield tally
        if batch:
            await self._sort(batch, tally, blobs, content=content)
        yield tally

    async def _files(
        self, root: Directory, path: bytes, tally: Tally
    ) -> AsyncGenerator[tuple[bytes, Digest]]:
        """All blobs with their paths. Files that are no blobs yet are counted here."""
        pace = Pace()
        seen: set[Collapsed] = set()
        stack: list[tuple[bytes, Child]] = [(path.strip(b"/"), await self._at(root, path))]
        while stack:
            where, node = stack.pop()
            blob = blob_of(node)
            if blob is not None:
                yield where, blob
            elif isinstance(node, File):
                tally.here.add(node.size)
            elif isinstance(node, Directory):
                if node.children is None:
                    held = Collapsed.of(node)
                    if held in seen:
                        continue
                    seen.add(held)
                tally.directories += 1
                try:
                    entries = await self._loader.peek(node)
                except (NotFound, Corrupt) as error:
                    tally.unloadable += 1
                    tally.losses.append(Loss(where, node.digest or node.tree, str(error)))
                    continue
                prefix = where + b"/" if where else b""
                stack.extend((prefix + name, inner) for name, inner in entries.items())
            if pace.due:
                await pace.turn()

    async def _at(self, root: Directory, path: bytes) -> Child:
        node: Child | None = root
        for name in path.split(b"/"):
            if name in (b"", b"."):
                continue
            node = (await self._loader.peek(node)).get(name) if isinstance(node, Directory) else None
            if node is None:
                raise NotFound(
                    f"{path.decode(errors='backslashreplace')}: there is nothing in the output path"
                )
        assert node is not None
        return node

    async def _sort(
        self, batch: list[tuple[bytes, Digest]], tally: Tally, blobs: BlobStore, *, content: bool
    ) -> None:
        digests = {digest for _, digest in batch}
        absent = await blobs.missing_remotely(digests)
        not_here = await in_thread(blobs.local.missing, digests)
        damaged = await self._damaged(digests - not_here, blobs) if content else set()
        for path, digest in batch:
            if digest in damaged:
                tally.damaged.add(digest.size)
            here = digest not in not_here and digest not in damaged
            there = digest not in absent
            (
                tally.both
                if here and there
                else tally.here
                if here
                else tally.remote
                if there
                else tally.gone
            ).add(digest.size)
            if not here and not there:
                reason = (
                    "the local copy is damaged, and nobody else has it"
                    if digest in damaged
                    else "nobody has it"
                )
                tally.losses.append(Loss(path, digest, reason))

    async def _damaged(self, digests: Iterable[Digest], blobs: BlobStore) -> set[Digest]:
        """Those whose bytes in the local store have another digest."""
        damaged: set[Digest] = set()
        for some in batches(digests, _HASHED_AT_ONCE):
            if some[0].size <= _HASHED_AT_ONCE:
                damaged |= await in_thread(_not_matching, some, blobs)
            elif not await _matches(some[0], blobs):
                damaged.add(some[0])
        return damaged


def _not_matching(digests: list[Digest], blobs: BlobStore) -> set[Digest]:
    """Those that are not here any more among them."""
    wrong: set[Digest] = set()
    for digest in digests:
        data = blobs.local.read(digest)
        if data is None or Digest.of(digest.function, data) != digest:
            wrong.add(digest)
    return wrong


async def _matches(digest: Digest, blobs: BlobStore) -> bool:
    """For a large blob: hashed in pieces."""
    fd = blobs.local.open(digest)
    if fd is None:
        return False
    hasher = digest.function.hasher()
    try:
        for offset in range(0, digest.size, _HASHED_AT_ONCE):
            hasher.update(await in_thread(os.pread, fd, _HASHED_AT_ONCE, offset))
    except OSError as error:
        raise Unavailable(f"blob {digest}: cannot read it from the local store: {error.strerror}") from error
    finally:
        os.close(fd)
    return hasher.digest() == digest.hash
