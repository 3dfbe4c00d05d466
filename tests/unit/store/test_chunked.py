"""A large blob in chunks: what moves, what is verified before anybody reads it, and what becomes of a server that lies."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.disk.disk import RealDisk
from outputd.errors import Corrupt, NotFound, OutputdError, Unreachable, Unsupported
from outputd.store import chunked, ranged
from outputd.store.base import RemoteBlobs
from outputd.store.chunked import ChunkList, ChunkLists
from outputd.store.disk_store import DiskStore
from outputd.store.partial import PartialBlob
from outputd.store.ranged import RangedBlob
from tests.unit.store.worlds import run, until

SHA256 = DigestFunction.SHA256
MIB = 1 << 20
DATA = random.Random(3).randbytes(6 * MIB + 4321)


@cache
def digest_of(data: bytes) -> Digest:
    return Digest.of(SHA256, data)


@cache
def cut(data: bytes, seed: int = 1) -> tuple[bytes, ...]:
    """Pieces whose ends are where no granule ends."""
    choose = random.Random(seed)
    ends = [0]
    while ends[-1] < len(data):
        ends.append(min(len(data), ends[-1] + choose.randrange(60_000, 400_000)))
    return tuple(data[start:end] for start, end in pairwise(ends))


class Remote:
    """The part of RemoteBlobs that ranges need: one blob, in the chunks that it is given."""

    def __init__(self, data: bytes = DATA, chunks: Sequence[bytes] | None = None) -> None:
        self.data = data
        chunks = cut(data) if chunks is None else chunks
        self.digest = digest_of(data)
        self.chunks = {digest_of(chunk): chunk for chunk in chunks}
        self.told: Sequence[Digest] | OutputdError | None = [digest_of(chunk) for chunk in chunks]
        self.gate = asyncio.Event()
        self.gate.set()
        """The server tells the chunks when it is set."""
        self.splits = 0
        self.streamed = 0
        self.chunked = 0
        """Bytes."""
        self.wrong: dict[Digest, int] = {}
        """How often a chunk comes with another byte in it."""
        self.errors: dict[Digest, OutputdError] = {}

    async def split(self, digest: Digest) -> Sequence[Digest] | None:
        self.splits += 1
        await self.gate.wait()
        if isinstance(self.told, OutputdError):
            raise self.told
        return self.told

    async def read_batch(
        self, digests: Collection[Digest], *, part_of: Digest | None = None
    ) -> Mapping[Digest, bytes | OutputdError]:
        assert part_of == self.digest
        answers: dict[Digest, bytes | OutputdError] = {}
        for digest in digests:
            if self.wrong.get(digest):
                self.wrong[digest] -= 1
                answers[digest] = Corrupt("other bytes")
            elif digest in self.errors:
                answers[digest] = self.errors[digest]
            elif digest not in self.chunks:
                answers[digest] = NotFound("no such chunk")
            else:
                answers[digest] = self.chunks[digest]
                self.chunked += digest.size
        await asyncio.sleep(0)
        return answers

    async def read_stream(self, digest: Digest, offset: int = 0, limit: int = 0) -> AsyncGenerator[bytes]:
        for at in range(offset, offset + limit, 100_000):
            piece = self.data[at : min(at + 100_000, offset + limit)]
            self.streamed += len(piece)
            yield piece


class World:
    """A local store and what is read of blobs that it has not."""

    def __init__(self, path: Path, tasks: asyncio.TaskGroup) -> None:
        self.store = DiskStore(str(path), RealDisk())
        self.lists = ChunkLists(self.store, self.store.partials, tasks)
        self.tasks = tasks
        self.open: dict[Digest, RangedBlob] = {}
        self.spoilt: list[Digest] = []

    def blob(self, remote: Remote) -> RangedBlob:
        digest = remote.digest
        if digest not in self.open:
            partial = self.store.partials.open(digest)
            blob = RangedBlob(partial, self.store, self.lists, self.tasks, self._ended, self.spoilt.append)
            blob.acquire()
            self.open[digest] = blob
        return self.open[digest]

    async def read(self, remote: Remote, offset: int, size: int) -> bytes:
        blob = self.blob(remote)
        if blob.has(offset, size):
            blob.note(offset, size, cast(RemoteBlobs, remote))
        else:
            await blob.need(offset, size, cast(RemoteBlobs, remote))
        return os.pread(blob.fd, size, offset)

    async def read_all(self, remote: Remote) -> bytes:
        step = 64 << 10
        pieces = [await self.read(remote, offset, step) for offset in range(0, len(remote.data), step)]
        return b"".join(pieces)

    async def close(self, remote: Remote) -> None:
        """Nobody has it open any more."""
        digest = remote.digest
        self.open[digest].release()
        await until(lambda: digest not in self.open)

    def _ended(self, partial: PartialBlob) -> None:
        self.store.partials.closed(partial)
        del self.open[partial.digest]


@asynccontextmanager
async def world(path: Path) -> AsyncIterator[World]:
    async with asyncio.TaskGroup() as tasks:
        w = World(path, tasks)
        yield w
        for blob in list(w.open.values()):
            blob.release()
        w.lists.close()


def test_a_list_is_checked() -> None:
    chunks = [digest_of(chunk) for chunk in cut(DATA)]
    known = ChunkList(digest_of(DATA), chunks)
    assert known.offsets[-1] == len(DATA)
    assert known.spanning(0, 1) == range(1)
    assert known.spanning(known.offsets[3], known.offsets[4]) == range(3, 4)
    assert known.spanning(known.offsets[3] - 1, known.offsets[4] + 1) == range(2, 5)
    assert known.spanning(len(DATA) - 1, len(DATA)) == range(len(chunks) - 1, len(chunks))
    for wrong in (chunks[1:], [*chunks, chunks[0]], [*chunks, digest_of(b"")]):
        with pytest.raises(Corrupt):
            ChunkList(digest_of(DATA), wrong)
    large = Digest.make(SHA256, bytes(32), 17 * MIB)
    with pytest.raises(Corrupt):
        ChunkList(large, [large])


def test_chunks_come_of_what_is_read_and_nothing_twice(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            remote = Remote()
            assert await w.read(remote, len(DATA) - 100, 100) == DATA[-100:]
            assert await w.read(remote, 3 * MIB, 1000) == DATA[3 * MIB :][:1000]
            assert 0 < remote.chunked < 4 * MIB
            assert await w.read_all(remote) == DATA
            await until(lambda: w.store.has(digest_of(DATA)))
        assert remote.chunked == len(DATA)
        assert (remote.streamed, remote.splits) == (0, 1)

    run(test)


def test_readers_anywhere_at_once_see_what_is_right(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            remote = Remote()

            async def read(seed: int) -> None:
                choose = random.Random(seed)
                for _ in range(40):
                    offset, size = choose.randrange(len(DATA)), choose.randrange(1, 100_000)
                    assert await w.read(remote, offset, size) == DATA[offset : offset + size]

            async with asyncio.TaskGroup() as readers:
                for seed in range(10):
                    readers.create_task(read(seed))
            assert remote.chunked <= len(DATA)
            assert remote.streamed == 0

    run(test)


def test_nothing_of_a_wrong_chunk_is_read(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            remote = Remote()
            bad = digest_of(cut(DATA)[0])
            remote.wrong[bad] = 2
            with pytest.raises(Corrupt):
                await w.read(remote, 0, 10)
            assert not w.blob(remote).has(0, 1)
            assert await w.read(remote, 5 * MIB, 10) == DATA[5 * MIB :][:10]
            remote.wrong[bad] = 1  # asked for once more
            assert await w.read(remote, 0, 10) == DATA[:10]

    run(test)


def test_a_failure_reaches_who_shares_a_granule_with_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            remote = Remote()
            first, second = cut(DATA)[:2]
            remote.errors[digest_of(second)] = Unreachable("away")
            with pytest.raises(Unreachable):
                await w.read(remote, len(first) - 1, 1)
            remote.errors.clear()
            assert await w.read(remote, len(first) - 1, 1) == first[-1:]

    run(test)


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        (lambda chunks: chunks[:-1], "the chunks have"),
        (lambda chunks: [*chunks[:-1], digest_of(bytes(len(cut(DATA)[-1])))], "a chunk that it has not"),
        (lambda _: Unsupported("UNIMPLEMENTED"), "UNIMPLEMENTED"),
        (lambda _: Corrupt("the reply is no SplitBlobResponse"), "no SplitBlobResponse"),
        (lambda _: None, ""),
        (lambda _: [digest_of(DATA)], ""),
        (lambda _: Unreachable("away"), ""),
    ],
    ids=["sum", "absent chunk", "unimplemented", "garbage", "unknown", "whole", "unreachable"],
)
def test_a_server_that_lies_is_read_in_plain_ranges(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, told: object, complaint: str
) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            remote = Remote()
            assert callable(told)
            remote.told = told(remote.told)
            assert await w.read(remote, len(DATA) - 100, 100) == DATA[-100:]
            assert await w.read(remote, 0, 100) == DATA[:100]
            assert remote.streamed > 0
            assert await w.read_all(remote) == DATA
            await until(lambda: w.store.has(digest_of(DATA)))

    run(test)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == (complaint != "")
    assert all("plain ranges" in line and complaint in line for line in lines)


def test_chunks_that_make_up_another_blob_are_found_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            chunks = cut(DATA)
            remote = Remote(DATA, [chunks[1], chunks[0], *chunks[2:]])
            assert await w.read_all(remote) != DATA
            await until(lambda: "have the digest" in caplog.text)
            assert not w.store.has(digest_of(DATA))
            assert w.spoilt == [digest_of(DATA)]
            assert await w.read_all(remote) == DATA
            await until(lambda: w.store.has(digest_of(DATA)))
            assert "its chunks do not make it up; it is read in plain ranges" in caplog.text
            assert remote.streamed >= len(DATA)

    run(test)


def test_a_server_that_takes_long_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(chunked, "_PATIENCE", 0.01)
        async with world(tmp_path) as w:
            remote = Remote()
            remote.gate.clear()
            assert await w.read(remote, 0, 100) == DATA[:100]
            assert (remote.chunked, remote.splits) == (0, 1)
            streamed = remote.streamed
            remote.gate.set()
            await until(lambda: w.lists.find(digest_of(DATA)) is not None)
            assert await w.read(remote, 5 * MIB, 100) == DATA[5 * MIB :][:100]
            assert (remote.streamed, remote.splits) == (streamed, 1)
            assert remote.chunked > 0
            assert await w.read_all(remote) == DATA
            await until(lambda: w.store.has(digest_of(DATA)))

    run(test)


def test_a_stream_that_writes_over_a_chunk_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It began before the chunks were known, and brings other bytes after the chunk was written, verified and hashed."""

    class Late(Remote):
        begun = asyncio.Event()
        released = asyncio.Event()

        async def read_stream(self, digest: Digest, offset: int = 0, limit: int = 0) -> AsyncGenerator[bytes]:
            self.begun.set()
            await self.released.wait()
            yield bytes([self.data[offset] ^ 1]) + self.data[offset + 1 : offset + limit]

    async def test() -> None:
        monkeypatch.setattr(chunked, "_PATIENCE", 0.01)
        monkeypatch.setattr(ranged, "_HASHED_AT_ONCE", 100_000)
        async with world(tmp_path) as w:
            remote = Late(chunks=(DATA[:900_000], DATA[900_000:1_300_000], *cut(DATA[1_300_000:])))
            remote.gate.clear()
            early = asyncio.create_task(w.read(remote, MIB, 100))
            await remote.begun.wait()
            remote.gate.set()
            await until(lambda: w.lists.find(remote.digest) is not None)
            assert await w.read(remote, 0, 100) == DATA[:100]
            blob = w.open[remote.digest]
            await until(lambda: blob._prefix.end > 0 and not blob._hashing)
            assert await w.read(remote, 900_000, 100) == DATA[900_000:900_100]
            await until(lambda: blob._prefix.end > MIB + 100)
            remote.released.set()
            await early
            # The chunks of the rest, without those that the stream has written over.
            for offset in range(1_300_000, len(DATA), 64 << 10):
                await w.read(remote, offset, 64 << 10)
            await until(lambda: w.store.has(remote.digest) or "have the digest" in caplog.text)
            assert not w.store.has(remote.digest)
            assert w.spoilt == [remote.digest]

    run(test)


def test_who_opens_it_later_asks_for_no_list_and_no_chunk_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            remote = Remote()
            await w.read(remote, 5 * MIB, 100)
            await w.close(remote)
            moved = remote.chunked
            assert await w.read(remote, 5 * MIB, 100) == DATA[5 * MIB :][:100]
            assert (remote.chunked, remote.splits) == (moved, 1)
            assert await w.read_all(remote) == DATA
        assert remote.chunked == len(DATA)

    run(test)


def test_chunks_that_another_blob_has_do_not_move(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            before, changed = cut(DATA), list(cut(DATA))
            changed[5] = b"another chunk" * 9_000
            first, second = Remote(DATA, before), Remote(b"".join(changed), changed)
            third = Remote(b"".join(reversed(changed)), list(reversed(changed)))
            await w.read_all(first)
            await until(lambda: w.store.has(first.digest))
            assert await w.read_all(second) == second.data
            assert second.chunked == len(changed[5])
            await w.close(first)
            await until(lambda: w.store.has(second.digest))
            # What is found where a chunk came last may have other bytes by now.
            path = w.store.layout.path(second.digest)
            os.chmod(path, 0o600)
            with open(path, "r+b") as file:
                file.write(bytes(MIB))
            assert await w.read_all(third) == third.data
            assert third.streamed == 0
            assert 0 < third.chunked < 2 * MIB

    run(test)


def test_a_chunk_that_is_a_blob_here_does_not_move(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            remote = Remote()
            chunks = cut(DATA)
            w.store.put(digest_of(chunks[0]), chunks[0])
            assert await w.read(remote, 0, 10) == DATA[:10]
            assert await w.read_all(remote) == DATA
            assert remote.chunked == len(DATA) - len(chunks[0])

    run(test)


def test_equal_chunks_move_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            data = bytes(8 * MIB)
            remote = Remote(data, [data[:MIB]] * 8)
            assert await w.read(remote, 7 * MIB, 10) == bytes(10)
            assert await w.read_all(remote) == data
            assert remote.chunked == MIB

    run(test)


def test_few_lists_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(chunked, "_REMEMBERED", 40)
        async with world(tmp_path) as w:
            for seed in range(5):
                data = random.Random(seed).randbytes(4 * MIB)
                await w.read(Remote(data), 0, 10)
            assert w.lists.find(digest_of(random.Random(0).randbytes(4 * MIB))) is None
            assert w.lists.find(digest_of(random.Random(4).randbytes(4 * MIB))) is not None
            assert sum(isinstance(known, ChunkList) for known in w.lists._lists.values()) < 5
            assert {place[0] for place in w.lists._places.values()} <= set(w.lists._lists)

    run(test)


def test_offsets_are_exact_beyond_4_gib() -> None:
    chunks = [Digest.make(SHA256, bytes(32), 16 * MIB)] * 1024
    known = ChunkList(Digest.make(SHA256, bytes(32), 16 << 30), chunks)
    assert known.offsets == array("q", range(0, (16 << 30) + 1, 16 * MIB))
    assert known.spanning((16 << 30) - 1, 16 << 30) == range(1023, 1024)
