"""Open, read, write, copy out, ingest: what drive promises about bytes."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.disk.disk import RealDisk
from outputd.drive.open_file import NotLocal, TooLong
from outputd.errors import NotFound, TimedOut
from outputd.tree.node import EXECUTABLE_MODE, File, Local, blob_of, pack
from tests.unit.drive.world import SHA256, World, world


async def _read(w: World, file: File, size: int = 1 << 20) -> bytes:
    opened = w.content.open(file, writing=False)
    try:
        return await w.driver.run(lambda: bytes(w.content.read(opened, 0, size)))
    finally:
        w.content.release(opened, writing=False)


def test_opening_for_reading_fetches_nothing_and_the_first_read_fetches_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            file = w.staged(b"a", b"hello")
            opened = w.content.open(file, writing=False)
            assert w.remote.fetched == []
            with pytest.raises(NotLocal):
                w.content.read(opened, 0, 10)
            results = await asyncio.gather(*(_read(w, file) for _ in range(5)))
            assert results == [b"hello"] * 5
            assert len(w.remote.fetched) == 1
            w.content.release(opened, writing=False)

    asyncio.run(run())


def test_a_blob_that_is_nowhere_fails_the_read_only(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            file = w.staged(b"a", b"gone", known=False)
            with pytest.raises(NotFound):
                await _read(w, file)
            assert await _read(w, w.staged(b"b", b"here")) == b"here"

    asyncio.run(run())


def test_a_wait_ends_and_a_cancelled_reader_does_not_end_the_others(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, read_timeout=1.0) as w:
            file = w.staged(b"a", b"slow")
            w.remote.gate.clear()
            with pytest.raises(TimedOut, match="not here after"):
                await _read(w, file)
            first, second = (asyncio.ensure_future(_read(w, file)) for _ in range(2))
            await asyncio.sleep(0)
            first.cancel()
            w.remote.gate.set()
            assert await second == b"slow"
            with pytest.raises(asyncio.CancelledError):
                await first

    asyncio.run(run())


def test_writing_in_place_copies_out_and_never_touches_the_blob(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            file = w.staged(b"a", b"original")
            digest = file.content
            assert isinstance(digest, Digest)
            reader = w.content.open(file, writing=False)
            opened = await w.driver.run(lambda: w.content.open(file, writing=True))
            assert w.content.write(opened, 0, memoryview(b"CHANGED"), append=False) == 7
            assert bytes(w.content.read(reader, 0, 100)) == b"CHANGEDl", "readers see what writers write"
            assert w.store.read(digest) == b"original"
            w.content.release(opened, writing=True)
            w.content.release(reader, writing=False)
            assert await w.ingest.digest_of(file, SHA256) == Digest.of(SHA256, b"CHANGEDl")
            assert w.private_files() == []

    asyncio.run(run())


def test_truncating_an_absent_blob_fetches_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            file = w.staged(b"a", b"never read", known=False)
            opened = w.content.open(file, writing=True, truncate=True)
            w.content.write(opened, 0, memoryview(b"new"), append=False)
            w.content.release(opened, writing=True)
            assert await w.ingest.digest_of(file, SHA256) == Digest.of(SHA256, b"new")
            assert w.remote.fetched == []

    asyncio.run(run())


def test_a_truncation_to_a_length_keeps_the_beginning(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            file = w.staged(b"a", b"0123456789")
            await w.driver.run(lambda: w.content.truncate(file, 4))
            assert await w.ingest.digest_of(file, SHA256) == Digest.of(SHA256, b"0123")
            await w.driver.run(lambda: w.content.truncate(file, 6))
            assert await w.ingest.digest_of(file, SHA256) == Digest.of(SHA256, b"0123\0\0")

    asyncio.run(run())


def test_a_file_open_for_writing_has_no_digest(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            file = w.written(b"a", b"one")
            opened = w.content.open(file, writing=True)
            assert await w.ingest.digest_of(file, SHA256) is None
            w.content.write(opened, 3, memoryview(b"two"), append=False)
            second = w.content.open(file, writing=True)
            w.content.release(opened, writing=True)
            assert await w.ingest.digest_of(file, SHA256) is None
            w.content.release(second, writing=True)
            assert await w.ingest.digest_of(file, SHA256) == Digest.of(SHA256, b"onetwo")

    asyncio.run(run())


def test_a_file_reopened_while_it_is_hashed_keeps_its_private_bytes(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            file = w.written(b"a", b"x" * 300_000)
            await asyncio.sleep(0)  # the hashing thread has it
            opened = w.content.open(file, writing=True)
            w.content.write(opened, 0, memoryview(b"y"), append=False)
            await w.ingest.settle()
            assert isinstance(file.content, Local)
            assert not w.store.has(Digest.of(SHA256, b"x" * 300_000))
            w.content.release(opened, writing=True)
            expected = Digest.of(SHA256, b"y" + b"x" * 299_999)
            assert await w.ingest.digest_of(file, SHA256) == expected
            assert w.store.has(expected)

    asyncio.run(run())


def test_a_digest_of_another_function_is_not_known(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            file = w.written(b"a", b"x")
            assert await w.ingest.digest_of(file, SHA256) == Digest.of(SHA256, b"x")
            assert await w.ingest.digest_of(file, DigestFunction.BLAKE3) is None

    asyncio.run(run())


def test_an_unlinked_open_file_lives_until_its_last_handle(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            local, fd = w.content.private.new()
            file = File(0o100644, 1, local)
            w.tree.place(w.root, b"a", file, 1)
            opened = w.content.open_created(file, fd)
            w.tree.unlink(w.root, b"a", 2)
            w.reaper.wake()
            await asyncio.sleep(0)
            w.content.write(opened, 0, memoryview(b"still"), append=False)
            assert bytes(w.content.read(opened, 0, 10)) == b"still"
            w.content.release(opened, writing=True)
            w.reaper.wake()
            await asyncio.sleep(0)
            assert w.private_files() == []

    asyncio.run(run())


def test_a_large_file_is_cut_and_deleted_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop_thread = threading.get_ident()
    slow: list[str] = []

    def watched(call: Callable[..., object]) -> Callable[..., object]:
        def called(*args: object) -> object:
            assert threading.get_ident() != loop_thread
            slow.append(call.__name__)
            return call(*args)

        return called

    monkeypatch.setattr(os, "ftruncate", watched(os.ftruncate))
    monkeypatch.setattr(os, "unlink", watched(os.unlink))

    async def run() -> None:
        async with world(tmp_path) as w:
            local, fd = w.content.private.new()
            file = File(0o100644, 1, local)
            w.tree.place(w.root, b"a", file, 1)
            ino = w.tree.remember(file, w.root)
            opened = w.content.open_created(file, fd)
            for size, left in ((100 << 20, 5), (200 << 20, 0)):
                w.content.truncate(file, size)
                with pytest.raises(TooLong):
                    w.content.truncate(file, left)
                assert file.size == size, "nothing was changed"
                version = local.version
                await w.driver.run(lambda left=left: w.content.truncate(file, left))  # type: ignore[misc]
                assert (file.size, os.fstat(opened.fd).st_size) == (left, left)
                assert local.version > version
            assert slow == ["ftruncate"] * 2
            w.content.truncate(file, 100 << 20)
            w.tree.unlink(w.root, b"a", 2)
            w.content.release(opened, writing=True)
            w.tree.forget(ino, 1)
            w.reaper.wake()
            await asyncio.sleep(0)
        assert slow[2:] == ["unlink"], "seen through although the daemon stopped"

    asyncio.run(run())


def test_dropped_trees_give_their_private_files_back(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            local, fd = w.content.private.new()
            os.close(fd)
            directory = w.tree.descend(w.root, b"d", 1)
            w.tree.place(directory, b"f", File(0o100644, 1, local), 1)
            assert len(w.private_files()) == 1
            w.tree.remove_volume(w.volume, 2)
            w.reaper.wake()
            while w.private_files():  # noqa: ASYNC110  # a directory tells nobody that it changed
                await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(run(), 30))


def test_appending_goes_to_the_end_whatever_offset_comes(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            file = w.written(b"a", b"one")
            opened = await w.driver.run(lambda: w.content.open(file, writing=True))
            w.content.write(opened, 0, memoryview(b"two"), append=True)
            assert bytes(w.content.read(opened, 0, 10)) == b"onetwo"
            w.content.release(opened, writing=True)

    asyncio.run(run())


def test_a_copy_for_a_file_that_was_forgotten_meanwhile_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            content = w.staged(b"a", b"hello", local=True).content
            assert isinstance(content, Digest)
            packed = pack(EXECUTABLE_MODE, 0, content)
            assert packed is not None
            w.tree.place(w.root, b"a", packed, 0)
            file = w.tree.lookup(w.root, b"a")
            assert isinstance(file, File)
            ino = w.tree.remember(file, w.root)
            # An open(2) for writing is interrupted, and the kernel drops the inode, while the bytes are being copied.
            monkeypatch.setattr(RealDisk, "copy", lambda *_: w.tree.forget(ino, 1))
            await w.content.localise(file, writable=True)
            assert w.private_files() == [] and blob_of(w.tree.children(w.root)[b"a"]) == content

    asyncio.run(run())
