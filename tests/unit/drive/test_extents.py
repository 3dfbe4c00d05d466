"""Ranges of files: allocated, zeroed, punched, searched for holes, copied."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from outputd.digest import Digest
from outputd.drive.extents import Extents
from outputd.drive.open_file import NotLocal, OpenFile
from outputd.errors import TooLarge
from outputd.tree.node import Local
from outputd.tree.status import Status
from tests.unit.drive.world import SHA256, World, world
from tests.unit.store.worlds import until

T = TypeVar("T")

KEEP_SIZE, PUNCH_HOLE = 1, 2
BLOCK = 4096


async def _done(outcome: T | Awaitable[T]) -> T:
    if inspect.isawaitable(outcome):
        result: T = await outcome
        return result
    return outcome


def _written(w: World, name: bytes, data: bytes) -> OpenFile:
    opened = w.content.open(w.written(name, data), writing=True)
    w.content.writable_descriptor(opened)
    return opened


def _read(w: World, opened: OpenFile) -> bytes:
    return os.pread(w.content.descriptor(opened), 1 << 25, 0)


def test_allocating_grows_the_file_and_changes_its_times(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            opened = _written(w, b"a", b"begin")
            file = opened.file
            file.mtime = file.ctime = 1
            assert isinstance(file.content, Local)
            version = file.content.version
            assert await _done(Extents(w.content).allocate(opened, 0, 0, 10)) is Status.OK
            assert (file.size, _read(w, opened)) == (10, b"begin" + bytes(5))
            assert file.content.version > version
            assert file.mtime > 1
            assert file.ctime > 1

    asyncio.run(run())


def test_what_takes_long_is_done_in_a_thread_while_the_file_counts_as_written(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            opened = _written(w, b"a", b"begin")
            file = opened.file
            assert isinstance(file.content, Local)
            outcome = Extents(w.content).allocate(opened, 0, 0, 8 << 20)
            assert not isinstance(outcome, Status)
            under_way = asyncio.ensure_future(outcome)
            await asyncio.sleep(0)
            w.content.release(opened, writing=True)
            assert file.content.writers == 1
            assert await under_way is Status.OK
            assert file.content.writers == 0
            assert file.size == 8 << 20
            assert w.content.blocks(file) >= (8 << 20) // 512

    asyncio.run(run())


def test_a_hole_is_punched_and_found(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            ranges = Extents(w.content)
            opened = _written(w, b"a", b"x" * 4 * BLOCK)
            assert await _done(ranges.allocate(opened, PUNCH_HOLE | KEEP_SIZE, BLOCK, BLOCK)) is Status.OK
            assert _read(w, opened) == b"x" * BLOCK + bytes(BLOCK) + b"x" * 2 * BLOCK
            assert ranges.seek(opened, 0, os.SEEK_HOLE) == BLOCK
            assert ranges.seek(opened, BLOCK, os.SEEK_DATA) == 2 * BLOCK
            assert ranges.seek(opened, 4 * BLOCK, os.SEEK_DATA) is None
            assert w.content.blocks(opened.file) == 3 * BLOCK // 512

    asyncio.run(run())


def test_what_the_disk_refuses_is_refused(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            ranges = Extents(w.content)
            opened = _written(w, b"a", b"x")
            assert await _done(ranges.allocate(opened, 1 << 20, 0, 1)) is Status.UNSUPPORTED
            assert await _done(ranges.allocate(opened, 0, 0, 0)) is Status.INVALID
            with pytest.raises(TooLarge, match="allocate a range: File too large"):
                await _done(ranges.allocate(opened, 0, (1 << 63) - 2, 10))
            opened.file.mtime = 1
            assert await _done(ranges.allocate(opened, 1 << 20, 0, 2 << 20)) is Status.UNSUPPORTED
            assert (_read(w, opened), opened.file.mtime) == (b"x", 1)

    asyncio.run(run())


def test_a_copy_goes_on_from_the_bytes_that_were_there_when_it_began(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            data = os.urandom(4 << 20)
            file = w.staged(b"a", data, local=True)
            source, target = w.content.open(file, writing=False), _written(w, b"b", b"")
            outcome = Extents(w.content).copy(source, 0, target, 0, len(data))
            assert not isinstance(outcome, int | Status)
            w.content.truncate(file, 0)  # exchanges the descriptor
            with open(tmp_path / "other", "xb"):  # takes its number
                assert await outcome == len(data)
            assert _read(w, target) == data

    asyncio.run(run())


def test_a_blob_that_is_not_here_is_data_from_end_to_end_and_stays_away(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            ranges = Extents(w.content)
            opened = w.content.open(w.staged(b"a", b"elsewhere"), writing=False)
            sought = [
                ranges.seek(opened, offset, whence)
                for offset in (0, 8, 9)
                for whence in (os.SEEK_DATA, os.SEEK_HOLE)
            ]
            assert sought == [0, 9, 8, 9, None, None]
            assert w.remote.fetched == []

    asyncio.run(run())


@pytest.mark.parametrize("size", [1000, 1 << 20], ids=["inline", "in a thread"])
def test_a_range_of_a_blob_is_copied_after_it_was_fetched(tmp_path: Path, size: int) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            data = os.urandom(size)
            source = w.content.open(w.staged(b"a", data), writing=False)
            target = _written(w, b"b", b"begin and end")
            ranges = Extents(w.content)
            with pytest.raises(NotLocal):
                ranges.copy(source, 0, target, 0, size)
            outcome = await _done(await w.driver.run(lambda: ranges.copy(source, 10, target, 6, size)))
            assert outcome == size - 10
            assert _read(w, target) == b"begin " + data[10:]
            assert target.file.size == size - 4
            w.content.release(target, writing=True)
            assert await w.ingest.digest_of(target.file, SHA256) == Digest.of(SHA256, b"begin " + data[10:])

    asyncio.run(run())


def _copied(w: World, data: bytes, *, instance: str = "") -> tuple[OpenFile, OpenFile]:
    """A blob that is here, opened, and a new file that only its writer has open."""
    source = w.content.open(w.staged(b"a", data, local=True), writing=False)
    source.instance_name = instance
    return source, _written(w, b"b", b"")


async def _copy_all(w: World, source: OpenFile, target: OpenFile, step: int) -> None:
    """As cp(1): until no more comes."""
    offset = 0
    while copied := await _done(Extents(w.content).copy(source, offset, target, offset, step, alone=True)):
        assert isinstance(copied, int)
        offset += copied


@pytest.mark.parametrize(
    ("size", "step"), [(1000, 1 << 30), (300_000, 100_000), (20 << 20, 1 << 30), (0, 10)]
)
def test_a_blob_that_is_copied_whole_is_that_blob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, step: int
) -> None:
    def hashed(*_: object) -> Digest:
        raise AssertionError("there is nothing to hash")

    async def run() -> None:
        async with world(tmp_path) as w:
            data = os.urandom(size)
            source, target = _copied(w, data)
            await _copy_all(w, source, target, step)
            assert _read(w, target) == data
            monkeypatch.setattr(Digest, "of", hashed)
            monkeypatch.setattr(Digest, "of_descriptor", hashed)
            w.content.release(target, writing=True)
            assert await w.ingest.digest_of(target.file, SHA256) == source.file.content
            assert target.file.content == source.file.content
            await until(lambda: w.private_files() == [])  # a large one goes in a thread

    asyncio.run(run())


def _write(w: World, target: OpenFile) -> None:
    w.content.write(target, 3, memoryview(b"x"), append=False)


_CHANGES: dict[str, Callable[[World, OpenFile], object]] = {
    "written": _write,
    "cut": lambda w, target: w.content.truncate(target.file, 10),
    "punched": lambda w, target: Extents(w.content).allocate(target, PUNCH_HOLE | KEEP_SIZE, 5, 10),
}


@pytest.mark.parametrize("change", _CHANGES)
@pytest.mark.parametrize("when", ["between", "after"])
def test_a_copy_that_was_changed_is_no_copy(tmp_path: Path, change: str, when: str) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            data = os.urandom(300_000)
            source, target = _copied(w, data)
            half = await _done(Extents(w.content).copy(source, 0, target, 0, 100_000, alone=True))
            assert half == 100_000
            if when == "between":
                _CHANGES[change](w, target)
            await _done(Extents(w.content).copy(source, 100_000, target, 100_000, 1 << 20, alone=True))
            if when == "after":
                _CHANGES[change](w, target)
            expected = Digest.of(SHA256, _read(w, target))
            assert expected != source.file.content
            w.content.release(target, writing=True)
            assert await w.ingest.digest_of(target.file, SHA256) == expected

    asyncio.run(run())


@pytest.mark.parametrize("why", ["opened again", "another instance", "part of it", "not alone", "lost"])
def test_what_is_hashed_all_the_same(tmp_path: Path, why: str) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            data = os.urandom(300_000)
            source, target = _copied(w, data, instance="other" if why == "another instance" else "")
            ranges = Extents(w.content)
            offset = 1 if why == "part of it" else 0
            outcome = ranges.copy(source, offset, target, 0, 1 << 20, alone=why != "not alone")
            if why == "opened again":
                w.content.release(w.content.open(target.file, writing=True), writing=True)
            await _done(outcome)
            assert isinstance(target.file.content, Local)
            assert (target.file.content.twin is None) is (why != "lost")
            if why == "lost":
                assert isinstance(source.file.content, Digest)
                os.unlink(w.store.layout.path(source.file.content))
            w.content.release(target, writing=True)
            assert await w.ingest.digest_of(target.file, SHA256) == Digest.of(SHA256, data[offset:])
            assert w.store.read(Digest.of(SHA256, data[offset:])) == data[offset:]

    asyncio.run(run())


def test_a_copy_that_the_disk_cannot_do_is_left_to_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    async def run() -> None:
        async with world(tmp_path) as w:
            monkeypatch.setattr(os, "copy_file_range", refuse)
            source, target = _written(w, b"a", b"x"), _written(w, b"b", b"y")
            assert await _done(Extents(w.content).copy(source, 0, target, 0, 1)) is Status.UNSUPPORTED

    asyncio.run(run())


def test_one_request_copies_a_bounded_piece(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            source, target = _written(w, b"a", b""), _written(w, b"b", b"")
            w.content.truncate(source.file, 40 << 20)
            assert await _done(Extents(w.content).copy(source, 0, target, 0, 40 << 20)) == 16 << 20

    asyncio.run(run())


def test_holes_are_remembered_when_the_file_becomes_a_blob(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            opened = _written(w, b"a", b"x" * BLOCK)
            w.content.truncate(opened.file, 1 << 20)
            w.content.release(opened, writing=True)
            file, full = opened.file, w.written(b"b", b"x" * BLOCK)
            await w.ingest.settle()
            assert isinstance(file.content, Digest)
            assert file.blocks == 8
            assert full.blocks == 8
            assert full.extra is None
            w.content.truncate(file, 0)
            await w.ingest.settle()
            assert file.blocks == 0

    asyncio.run(run())
