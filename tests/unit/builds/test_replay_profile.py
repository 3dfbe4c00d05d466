"""A profile replayed: what it names in the tree, in which order, in which parts, within which bounds, and what fails alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from outputd.builds.prefetch import Prefetch, Prefetched
from outputd.digest import Digest
from outputd.drive.profile import LARGE, WHOLE, Part, Profile
from outputd.errors import NotFound
from outputd.store.base import Ranges
from outputd.tree.node import Directory
from tests.unit.drive.world import DictRemote, World, world

STEP = 64 << 10


class Reading:
    """Ranges of a blob of the remote."""

    def __init__(self, remote: Remote, digest: Digest) -> None:
        self._remote, self._digest = remote, digest
        self.fd = -1

    def has(self, offset: int, size: int) -> bool:
        raise AssertionError("nobody reads")

    def lacks(self, offset: int, size: int) -> int:
        return size - self._remote.here.get((self._digest, offset), 0)

    async def need(self, offset: int, size: int, *, ahead: bool = True) -> None:
        assert not ahead
        if self._digest not in self._remote.blobs:
            raise NotFound("gone")
        self._remote.here[self._digest, offset] = size
        self._remote.order.append((self._digest, offset, size))

    def close(self) -> None:
        self._remote.closed += 1


class Remote(DictRemote):
    """Of a world, but gives large blobs in parts."""

    def __init__(self, of: DictRemote) -> None:
        super().__init__(of.local)
        self.blobs = of.blobs
        self.here: dict[tuple[Digest, int], int] = {}
        self.order: list[object] = []
        self.opened = self.closed = 0

    def ranges(self, digest: Digest) -> Ranges | None:
        if digest.size < LARGE:
            return None
        self.opened += 1
        return Reading(self, digest)

    async def fetch_many(self, digests: Collection[Digest]) -> dict[Digest, Exception]:
        self.order += digests
        lost = {digest: NotFound("gone") for digest in digests if digest not in self.blobs}
        await super().fetch_many(digests)
        return dict(lost)


def played(path: Path, play: Callable[[World, Remote, Prefetch], Awaitable[None]]) -> None:
    async def run() -> None:
        async with world(path) as w:
            remote = Remote(w.remote)
            await play(w, remote, Prefetch(w.loader, remote, w.store, lambda: False, set))
            assert remote.opened == remote.closed

    asyncio.run(run())


async def replayed(prefetch: Prefetch, root: Directory, *, max_bytes: int = 0, **files: Part) -> Prefetched:
    profile = Profile(files={name.encode(): part for name, part in files.items()})
    return [step async for step in prefetch.replay(root, profile, max_bytes=max_bytes)][-1]


def test_in_the_order_of_the_profile_and_large_ones_in_part(tmp_path: Path) -> None:
    async def play(w: World, remote: Remote, prefetch: Prefetch) -> None:
        a, b, c = (w.staged(name, name * 9) for name in (b"a", b"b", b"c"))
        large = w.staged(b"large", bytes(2 * LARGE))
        part = Part(LARGE, ((0, STEP), (LARGE - STEP, LARGE)))
        done = await replayed(prefetch, w.root, c=WHOLE, large=part, nowhere=WHOLE, a=WHOLE, b=WHOLE)
        digest = large.content
        assert remote.order == [
            *(c.content, (digest, 0, STEP), (digest, 2 * LARGE - STEP, STEP)),
            *(a.content, b.content),
        ]
        assert (done.matched.files, done.absent, done.failed) == (4, 1, 0)
        assert (done.fetched.files, done.fetched.bytes) == (4, 27 + 2 * STEP)
        assert (await replayed(prefetch, w.root, large=part, a=WHOLE)).missing.files == 0

    played(tmp_path, play)


def test_of_equal_files_what_either_needs_comes_once(tmp_path: Path) -> None:
    async def play(w: World, remote: Remote, prefetch: Prefetch) -> None:
        size = LARGE
        digest = w.staged(b"one", bytes(size)).content
        w.staged(b"two", bytes(size))
        one, two = Part(size, ((0, STEP),)), Part(size, ((0, 2 * STEP), (3 * STEP, 4 * STEP)))
        await replayed(prefetch, w.root, one=one, two=two)
        assert remote.order == [(digest, 0, 2 * STEP), (digest, 3 * STEP, STEP)]
        remote.order.clear()
        remote.here.clear()
        await replayed(prefetch, w.root, one=one, two=WHOLE)
        assert remote.order == [digest]

    played(tmp_path, play)


def test_what_does_not_fit_is_left_out_and_what_is_lost_fails_alone(tmp_path: Path) -> None:
    async def play(w: World, remote: Remote, prefetch: Prefetch) -> None:
        w.staged(b"a", bytes(100))
        w.staged(b"b", bytes(101))
        w.staged(b"lost", b"lost", known=False)
        large = w.staged(b"large", bytes(LARGE + 1))
        assert isinstance(large.content, Digest)
        del remote.blobs[large.content]
        part = Part(LARGE, ((0, STEP),))
        done = await replayed(prefetch, w.root, max_bytes=110, a=WHOLE, b=WHOLE, lost=WHOLE)
        assert (done.left_out.bytes, done.fetched.bytes, done.failed) == (101, 100, 1)
        done = await replayed(prefetch, w.root, large=part, b=WHOLE)
        assert (done.failed, done.fetched.bytes, done.first_failure) == (1, 101, "gone")

    played(tmp_path, play)


def test_files_that_were_written_here_count_and_move_nothing(tmp_path: Path) -> None:
    async def play(w: World, remote: Remote, prefetch: Prefetch) -> None:
        w.written(b"local", b"x")
        deep = Profile(files={b"/".join([b"local"] * 2000): WHOLE, b"local": WHOLE})
        async for done in prefetch.replay(w.root, deep):
            assert (done.matched.files, done.absent, done.missing.files) == (1, 1, 0)

    played(tmp_path, play)
