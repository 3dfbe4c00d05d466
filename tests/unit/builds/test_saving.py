"""Saving and restoring: everything that makes a tree comes back, in constant time, also files that were not blobs yet."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from pathlib import Path

import pytest

from outputd.builds.unfinished import Unfinished, decode, encode
from outputd.digest import Digest
from outputd.errors import Corrupt
from outputd.tree.node import Directory, File, Local, Special
from outputd.tree.status import Status
from tests.unit.builds.world import BASE, SHA256, World, until, world

A, B = (Digest.of(SHA256, data) for data in (b"a", b"bb"))
HERE = Digest.of(SHA256, b"here")
NOW = 1_700_000_000_123_456_789


def _make_all_kinds(w: World) -> None:
    """Beside files by digest: everything that a REv2 message cannot say."""
    w.write("written", b"here")
    w.symlink("link", "elsewhere/\u00e4")
    w.mkdir("empty")
    root = w.root()
    fifo = Special(stat.S_IFIFO | 0o640, NOW, 0)
    assert w.tree.create(root, b"fifo", fifo, uid=1, gid=2, now=NOW) is Status.OK
    node = w.at("d/a")
    assert node is not None
    assert w.tree.link(node, root, b"hard", NOW) is Status.OK
    node.mode = stat.S_IFREG | 0o555
    node.mtime = NOW
    w.tree.outdate_attributes(node)
    odd = File(stat.S_IFREG | 0o600, NOW, B)
    assert w.tree.create(root, b"odd-\xff", odd, uid=os.getuid(), gid=os.getgid(), now=NOW) is Status.OK
    root.mode = stat.S_IFDIR | 0o700
    root.mtime = NOW
    w.tree.outdate_attributes(root)


def test_everything_comes_back(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start()
            await w.stage(("d/a", A), ("d/e/b", B))
            _make_all_kinds(w)
            number = w.tree.identify(w.root(), w.tree.outputs)
            inode = w.tree.identify(w.at("d/e/b"), w.at("d/e"))  # type: ignore[arg-type]
            await w.finalize("b1", successful=True)
            before = await w.listing()
            assert before == {
                "d/": None,
                "d/a": A,
                "d/e/": None,
                "d/e/b": B,
                "hard": A,
                "written": HERE,
                "link": "elsewhere/\u00e4".encode(),
                "empty/": None,
                "fifo": "Special",
                "odd-\udcff": B,
            }
        async with world(tmp_path) as w:
            root = w.root()
            assert root.children is None
            assert (root.mode, root.mtime, root.ino) == (stat.S_IFDIR | 0o700, NOW, number)
            assert await w.listing() == before
            assert w.at("hard") is w.at("d/a")
            file = w.at("hard")
            assert file is not None
            assert (file.mode, file.mtime, file.nlink) == (stat.S_IFREG | 0o555, NOW, 2)
            fifo = w.at("fifo")
            assert fifo is not None
            assert (fifo.mode, w.tree.owner(fifo)) == (stat.S_IFIFO | 0o640, (1, 2))
            kept = w.at("d/e/b")
            assert kept is not None
            assert kept.ino == inode
            assert w.store.read(HERE) == b"here"

    asyncio.run(run())


def test_a_restart_touches_one_row_and_changes_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(*((f"d{index}/f", A) for index in range(100)))
        for _ in range(3):
            async with world(tmp_path) as w:
                assert w.root().children is None
                (base,) = await w.builds.describe()
                assert (base.entries, base.dirty) == (0, False)
        async with world(tmp_path) as w:
            assert len(await w.listing()) == 200

    asyncio.run(run())


def test_unchanged_directories_are_not_written_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(*((f"d{index}/f{index}", A) for index in range(50)))
            await w.finalize("b1", successful=True)
            sealed: list[Digest] = []
            w.state.seal_directory = lambda digest, message: sealed.append(digest)  # type: ignore[method-assign]
            await w.start("b2")
            await w.stage(("d7/new", B), build_id="b2")
            await w.finalize("b2", successful=True)
            assert len(sealed) == 2  # d7 and the root

    asyncio.run(run())


def test_inode_numbers_outlive_a_crash_and_do_not_come_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start()
            await w.stage(("a", A), ("b", B))
            await w.finalize("b1", successful=True)
            node = w.at("a")
            assert node is not None
            given = w.tree.identify(node, w.root())
        async with world(tmp_path, crash=True) as w:
            await w.load()
            first, second = w.at("a"), w.at("b")
            assert first is not None and second is not None
            assert first.ino == given
            assert w.tree.identify(second, w.root()) > given

    asyncio.run(run())


def test_a_file_open_at_the_end_of_its_build_keeps_what_it_had(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start()
            w.mkdir("d")
            w.write("d/log", b"first ", close=False)
            await w.finalize("b1", successful=True)
            file = w.at("d/log")
            assert isinstance(file, File)
            # It goes on being written after it was saved.
            opened = w.content._open[file]
            w.content.write(opened, 0, memoryview(b"first and second"), append=False)
            assert len(w.private_files()) == 1
        async with world(tmp_path, crash=True) as w:
            digest = Digest.of(SHA256, b"first and second")
            assert await w.listing() == {"d/": None, "d/log": digest}
            assert w.store.read(digest) == b"first and second"
            assert w.private_files() == []
        async with world(tmp_path) as w:
            # Restoring has saved that: nothing depends on the private file any more.
            assert await w.listing() == {"d/": None, "d/log": digest}

    asyncio.run(run())


def test_a_hard_link_of_an_open_file_comes_back_as_one_file(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start()
            w.mkdir("d")
            w.mkdir("e")
            file = w.write("d/log", b"here", close=False)
            directory = w.at("e")
            assert isinstance(directory, Directory)
            assert w.tree.link(file, directory, b"same", time.time_ns()) is Status.OK
            await w.finalize("b1", successful=True)
        async with world(tmp_path) as w:
            assert await w.listing() == {"d/": None, "d/log": HERE, "e/": None, "e/same": HERE}
            assert w.at("d/log") is w.at("e/same")

    asyncio.run(run())


def test_a_hard_link_changed_by_one_name_after_a_restart_is_changed_by_all(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("d/one", A))
            w.mkdir("e")
            file, directory = w.at("d/one"), w.at("e")
            assert isinstance(file, File) and isinstance(directory, Directory)
            assert w.tree.link(file, directory, b"two", NOW) is Status.OK
        async with world(tmp_path) as w:
            await w.loader.load(w.root())
            directory = w.at("d")
            assert isinstance(directory, Directory)
            await w.loader.load(directory)
            file = w.at("d/one")
            assert isinstance(file, File)
            w.tree.set_content(file, B)
        async with world(tmp_path) as w:
            assert await w.listing() == {"d/": None, "d/one": B, "e/": None, "e/two": B}

    asyncio.run(run())


def test_private_files_that_nobody_needs_are_swept_at_the_start(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start()
            w.write("saved", b"here", close=False)
            await w.finalize("b1", successful=True)
            w.write("removed", b"x", close=False)
            assert w.tree.unlink(w.root(), b"removed", NOW) is Status.OK
            assert len(w.private_files()) == 2
            Path(w.store.private, "not ours").write_bytes(b"")
        async with world(tmp_path) as w:
            assert await w.listing() == {"saved": HERE}
            assert w.private_files() == ["not ours"]

    asyncio.run(run())


def test_nothing_is_swept_when_the_state_was_set_aside(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start()
            w.write("open", b"here", close=False)
            await w.finalize("b1", successful=True)
        Path(tmp_path, "state", "state.db").write_bytes(b"garbage " * 1000)
        async with world(tmp_path) as w:
            assert await w.builds.describe() == []
            assert len(w.private_files()) == 1

    asyncio.run(run())


def test_a_base_whose_row_is_damaged_is_left_out_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start("b1")
            await w.start("o1", "other")
            w.write("open", b"here", close=False)
        async with world(tmp_path, crash=True) as w:
            w.state._writing_connection.execute("UPDATE output_base SET root = x'00' WHERE id = 'other'")
        async with world(tmp_path) as w:
            assert [base.id for base in await w.builds.describe()] == [BASE]
            await w.start("o2", "other")
            assert await w.listing("other") == {}

    asyncio.run(run())
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert any("output base other cannot be restored and is left out" in error for error in errors)


def test_a_base_that_changes_all_the_time_is_saved_nevertheless(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(*((f"d{index % 50}/f{index}", A) for index in range(5000)))

            async def busy() -> None:
                for index in range(1_000_000):
                    await w.stage((f"d{index % 50}/new{index}", B))
                    await asyncio.sleep(0)

            writer = asyncio.create_task(busy())
            async with asyncio.timeout(20):
                await w.builds.checkpoints.all()
            writer.cancel()

    asyncio.run(run())


def test_the_list_of_unfinished_files_reads_what_it_wrote_and_refuses_the_rest() -> None:
    files = [Unfinished(7, (b"a", b"b\xff")), Unfinished(1 << 62, (b"c",))]
    data = encode(files)
    assert decode(data) == files
    assert decode(b"") == []
    for end in range(1, len(data)):
        if end != len(encode(files[:1])):
            with pytest.raises(Corrupt, match="list of unfinished files: ends within"):
                decode(data[:end])


def test_local_files_of_a_cleaned_base_are_not_ingested(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            file = w.write("open", b"here", close=False)
            await w.builds.clean(BASE)
            w.close(file)
            await until(lambda: not w.private_files())
            assert isinstance(file.content, Local)

    asyncio.run(run())
