"""Ingest: what waits for what, and that a hash counts only for the bytes it was made of."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.tree.node import Local
from tests.unit.drive.world import SHA256, World, world

SMALL, MIDDLING, LARGE = 4096, 1 << 20, 17 << 20


class _Gate:
    """Holds back the hashing of files of one size, and counts the pieces that were hashed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self.pieces = 0
        real = Digest.of_descriptor

        def of_descriptor(function: DigestFunction, fd: int, go_on: Callable[[], object]) -> Digest:
            def held_back() -> None:
                go_on()
                self.pieces += 1
                self.reached.set()
                assert self.open.wait(10)

            return real(function, fd, held_back if os.fstat(fd).st_size == size else go_on)

        monkeypatch.setattr(Digest, "of_descriptor", of_descriptor)

    async def hashing(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, 10)


def test_a_large_file_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = _Gate(monkeypatch, LARGE)

    async def run() -> None:
        async with world(tmp_path) as w:
            large = w.written(b"large", b"l" * LARGE)
            await gate.hashing()
            for name, size in ((b"small", SMALL), (b"middling", MIDDLING)):
                file = w.written(name, b"s" * size)
                async with asyncio.timeout(5):
                    assert await w.ingest.digest_of(file, SHA256) == Digest.of(SHA256, b"s" * size)
            assert isinstance(large.content, Local)
            gate.open.set()
            assert await w.ingest.digest_of(large, SHA256) == Digest.of(SHA256, b"l" * LARGE)
            await w.ingest.settle()
            assert w.private_files() == []

    asyncio.run(run())


def test_a_small_file_is_hashed_when_it_is_asked_for(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            others = [w.written(b"%d" % number, b"o%d" % number) for number in range(500)]
            asked = w.written(b"asked", b"now")
            assert await w.ingest.digest_of(asked, SHA256) == Digest.of(SHA256, b"now")
            assert isinstance(others[-1].content, Local), "its turn has not come"
            await w.ingest.settle()
            assert [file.content for file in others] == [Digest.of(SHA256, b"o%d" % n) for n in range(500)]

    asyncio.run(run())


@pytest.mark.parametrize("size", [MIDDLING, LARGE])
def test_bytes_that_change_while_they_are_hashed_are_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    gate = _Gate(monkeypatch, size)

    async def run() -> None:
        async with world(tmp_path) as w:
            file = w.written(b"a", b"1" * size)
            await gate.hashing()
            opened = w.content.open(file, writing=True)
            w.content.write(opened, 0, memoryview(b"2"), append=False)
            gate.open.set()
            w.content.release(opened, writing=True)
            assert await w.ingest.digest_of(file, SHA256) == Digest.of(SHA256, b"2" + b"1" * (size - 1))

    asyncio.run(run())


@pytest.mark.parametrize("how", ["reopened", "unlinked", "stopped"])
def test_hashing_ends_when_nobody_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    gate = _Gate(monkeypatch, LARGE)

    async def run() -> None:
        async with world(tmp_path) as w:
            file = w.written(b"a", b"1" * LARGE)
            await gate.hashing()
            if how == "reopened":
                w.content.open(file, writing=True)
            elif how == "unlinked":
                w.tree.unlink(w.root, b"a", 1)
            if how != "stopped":
                gate.open.set()
                await w.ingest.settle()
                assert isinstance(file.content, Local)
        gate.open.set()

    asyncio.run(run())
    assert gate.pieces == 1


@pytest.mark.parametrize(("before", "after"), [(SMALL, MIDDLING), (MIDDLING, SMALL), (SMALL, LARGE)])
def test_a_file_that_grew_or_shrank_since_it_was_closed(tmp_path: Path, before: int, after: int) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            file = w.written(b"a", b"x" * before)
            await w.driver.run(lambda: w.content.truncate(file, after))
            expected = b"x" * min(before, after) + bytes(max(0, after - before))
            assert await w.ingest.digest_of(file, SHA256) == Digest.of(SHA256, expected)
            assert file.content is not None and _bytes(w, file.content) == expected

    asyncio.run(run())


def test_a_lost_private_file_is_reported_and_holds_up_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            for name, size in ((b"small", SMALL), (b"middling", MIDDLING)):
                lost = w.written(name, b"x" * size)
                assert isinstance(lost.content, Local)
                os.unlink(w.content.private.path(lost.content))
                assert await w.ingest.digest_of(lost, SHA256) is None
                next_one = w.written(name + b"2", b"y" * size)
                assert await w.ingest.digest_of(next_one, SHA256) == Digest.of(SHA256, b"y" * size)

    asyncio.run(run())
    assert [record.message.split(":")[0].split(" for ")[1] for record in caplog.records] == [
        "b'small'",
        "b'middling'",
    ]


def _bytes(w: World, content: Digest | Local) -> bytes | None:
    assert isinstance(content, Digest)
    return w.store.read(content)
