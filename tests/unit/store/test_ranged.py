"""Fetching by ranges: how much moves, who waits for what, what a restart finds. The remote is in memory."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.disk.disk import RealDisk
from outputd.errors import NotFound
from outputd.store.base import RemoteBlobs
from outputd.store.chunked import ChunkLists
from outputd.store.disk_store import DiskStore
from outputd.store.partial import GRANULE, PartialBlob
from outputd.store.prefix_hash import PrefixHash
from outputd.store.ranged import RangedBlob
from tests.unit.store.worlds import until

BOOT = bytes(16)
DATA = random.Random(7).randbytes(40 << 20)
DIGEST = Digest.of(DigestFunction.SHA256, DATA)
MIB = 1 << 20


class Remote:
    """The part of RemoteBlobs that ranges need."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []
        self.moved = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = False
        self.blob: RangedBlob | None = None

    async def split(self, digest: Digest) -> Sequence[Digest] | None:
        return None

    async def read_stream(self, digest: Digest, offset: int = 0, limit: int = 0) -> AsyncGenerator[bytes]:
        self.asked.append((offset, limit))
        for at in range(offset, offset + limit, 100_000):
            await self.gate.wait()
            if self.fails:
                raise NotFound("gone")
            piece = self.data[at : min(at + 100_000, offset + limit)]
            self.moved += len(piece)
            yield piece


class Nobody:
    """Who tends the disk of tests that fill none."""

    def make_room(self, size: int) -> bool:
        return False

    def grew(self, size: int) -> None: ...


class Slow(Remote):
    """Slower than hashing is."""

    async def read_stream(self, digest: Digest, offset: int = 0, limit: int = 0) -> AsyncGenerator[bytes]:
        async with aclosing(super().read_stream(digest, offset, limit)) as pieces:
            async for piece in pieces:
                yield piece
                await until(lambda: self.blob is not None and not self.blob._hashing)


class World:
    def __init__(self, path: Path, tasks: asyncio.TaskGroup, remote: Remote, digest: Digest = DIGEST) -> None:
        self.store = DiskStore(str(path / "store"), RealDisk())
        self.partial = PartialBlob(str(path / "partial"), digest, RealDisk(), BOOT, self.store)
        self.remote = remote
        self.ended: list[PartialBlob] = []
        self.spoilt: list[Digest] = []
        lists = ChunkLists(self.store, self.store.partials, tasks)
        self.blob = RangedBlob(self.partial, self.store, lists, tasks, self.ended.append, self.spoilt.append)
        self.blob.acquire()

    async def read(self, offset: int, size: int) -> bytes:
        remote = cast(RemoteBlobs, self.remote)
        if self.blob.has(offset, size):
            self.blob.note(offset, size, remote)
        else:
            await self.blob.need(offset, size, remote)
        return os.pread(self.blob.fd, size, offset)


@asynccontextmanager
async def world(path: Path, remote: Remote | None = None, **options: Any) -> AsyncIterator[World]:
    async with asyncio.TaskGroup() as tasks:
        w = World(path, tasks, remote or Remote(), **options)
        yield w
        w.blob.release()


def test_the_end_of_a_blob_moves_little(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            assert await w.read(len(DATA) - 1000, 1000) == DATA[-1000:]
            assert await w.read(0, 100) == DATA[:100]
            assert await w.read(17 * MIB + 5, 100) == DATA[17 * MIB + 5 :][:100]
        assert w.remote.moved <= 3 * (256 * 1024 + 2 * GRANULE)
        assert [partial.digest for partial in w.ended] == [DIGEST]

    asyncio.run(run())


def test_exactly_what_is_asked_for_moves_where_nothing_is_to_be_read_ahead(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            remote = cast(RemoteBlobs, w.remote)
            assert w.blob.lacks(MIB + 5, GRANULE) == 2 * GRANULE
            await w.blob.need(MIB + 5, GRANULE, remote, ahead=False)
            assert w.blob.lacks(MIB, 2 * GRANULE) == 0
            await w.blob.need(len(DATA) - 5, 5, remote, ahead=False)
            assert w.remote.moved == 3 * GRANULE
            assert w.blob.lacks(0, len(DATA)) == len(DATA) - 3 * GRANULE

    asyncio.run(run())


def test_what_is_read_on_is_fetched_ahead_once_and_becomes_a_blob(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            for offset in range(0, len(DATA), 128 << 10):
                assert await w.read(offset, 128 << 10) == DATA[offset : offset + (128 << 10)]
        assert w.remote.moved == len(DATA)
        assert w.store.read(DIGEST) == DATA
        assert not (tmp_path / "partial").exists()
        assert len(w.remote.asked) < 30

    asyncio.run(run())


def test_many_readers_move_nothing_twice(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w, asyncio.TaskGroup() as readers:

            async def read(seed: int) -> None:
                choose = random.Random(seed)
                for _ in range(50):
                    offset, size = choose.randrange(len(DATA)), choose.randrange(1, 300_000)
                    assert await w.read(offset, size) == DATA[offset : offset + size]

            for seed in range(20):
                readers.create_task(read(seed))
        assert w.remote.moved <= len(DATA)

    asyncio.run(run())


def test_a_failure_reaches_who_waits_for_it_and_the_next_read_asks_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            w.remote.fails = True
            with pytest.raises(NotFound):
                await w.read(0, 100)
            w.remote.fails = False
            assert await w.read(0, 100) == DATA[:100]

    asyncio.run(run())


def test_wrong_bytes_are_thrown_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        wrong = bytearray(DATA)
        wrong[20 * MIB] ^= 1
        async with world(tmp_path, Remote(bytes(wrong))) as w:
            for offset in range(0, len(DATA), MIB):
                await w.read(offset, MIB)
        assert not w.store.has(DIGEST)
        assert w.partial.bytes_left == len(DATA)
        assert "have the digest" in caplog.text
        assert w.spoilt == [DIGEST]

    asyncio.run(run())


def test_a_restart_goes_on_and_another_boot_does_not(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.read(MIB, 100)
        partial = PartialBlob(str(tmp_path / "partial"), DIGEST, RealDisk(), BOOT, Nobody())
        assert partial.has(MIB, 100) and not partial.has(0, 100)
        partial.close()
        partial = PartialBlob(str(tmp_path / "partial"), DIGEST, RealDisk(), b"another boot's i", Nobody())
        assert not partial.has(MIB, 100)
        partial.close()

    asyncio.run(run())


@pytest.mark.parametrize("size", [1, GRANULE - 1, GRANULE, GRANULE + 1, 5 * GRANULE + 7])
def test_gaps(tmp_path: Path, size: int) -> None:
    digest = Digest.of(DigestFunction.SHA256, bytes(size))
    partial = PartialBlob(str(tmp_path / "p"), digest, RealDisk(), BOOT, Nobody())
    assert list(partial.gaps(0, size)) == [(0, size)]
    partial.fill(0, min(2 * GRANULE, size))
    rest = [] if size <= 2 * GRANULE else [(2 * GRANULE, size)]
    assert list(partial.gaps(0, size)) == rest
    partial.fill(0, size)
    assert partial.complete and partial.has(0, size) and list(partial.gaps(0, size)) == []
    partial.close()


def test_what_came_is_hashed_while_the_rest_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    digest = PrefixHash.digest

    def noted(prefix: PrefixHash, size: int) -> Digest:
        left.append(size - prefix.end)
        return digest(prefix, size)

    monkeypatch.setattr(PrefixHash, "digest", noted)

    async def run() -> None:
        async with world(tmp_path, Slow()) as w:
            w.remote.blob = w.blob
            for offset in range(0, len(DATA), MIB):
                await w.read(offset, MIB)
        assert w.store.read(DIGEST) == DATA

    asyncio.run(run())
    [unhashed] = left
    assert unhashed < 17 * MIB


def test_bytes_that_were_replaced_after_they_were_hashed(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, Slow()) as w:
            w.remote.blob = w.blob
            for offset in range(0, len(DATA) // 2, MIB):
                await w.read(offset, MIB)
            await until(lambda: not w.blob._hashing)
            assert w.blob._prefix.end
            w.blob._prefix._hasher.update(b"what is not there any more")
            for offset in range(0, len(DATA), MIB):
                await w.read(offset, MIB)
        assert w.store.read(DIGEST) == DATA

    asyncio.run(run())
