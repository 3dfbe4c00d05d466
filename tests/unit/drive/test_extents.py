"""Ranges of files: allocated, zeroed, punched, searched for holes, copied."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable
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
