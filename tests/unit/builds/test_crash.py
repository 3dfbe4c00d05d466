"""What a crash of the daemon leaves, at the moments that a storm of kills has shown to matter (tests/crash)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from outputd.builds.state import State
from outputd.digest import Digest
from outputd.errors import Unavailable
from outputd.tree.node import File, Local
from outputd.tree.status import Status
from tests.unit.builds.world import BASE, SHA256, world

A = Digest.of(SHA256, b"a")
NOW = 1_700_000_000_123_456_789


def test_a_running_build_outlives_a_crash_after_a_checkpoint_that_nothing_followed(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start()
            await w.stage(("a", A))
        for _ in range(2):
            async with world(tmp_path, crash=True) as w:
                await w.builds.checkpoints.all()  # as a restart asks for, and then nothing happens
        async with world(tmp_path) as w:
            assert await w.stage(("b", A)) == [None]
            assert set(await w.listing()) == {"a", "b"}

    asyncio.run(run())


def test_a_file_without_a_name_leaves_no_word_that_cannot_be_played_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start()
            local, fd = w.content.private.new()
            os.close(fd)
            file = File(0o100600, NOW, local)
            root = w.root()
            assert w.tree.create_nameless(root, file, uid=os.getuid(), gid=os.getgid()) is Status.OK
            number = w.tree.remember(file, root)
            assert w.tree.link(file, root, b"named", NOW) is Status.OK
        async with world(tmp_path) as w:
            found = w.at("named")
            assert found is not None and found.ino == number

    asyncio.run(run())
    assert not caplog.records


@pytest.mark.parametrize("data", (b"", b"x" * 100))
def test_opening_a_blob_for_writing_leaves_its_time_alone(tmp_path: Path, data: bytes) -> None:
    async def run() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start()
            digest = w.cas.add(data)
            await w.stage(("f", digest))
            staged = w.at("f")
            assert isinstance(staged, File)
            staged.mtime = staged.ctime = NOW
            w.tree.outdate_attributes(staged)
            if data:
                await w.content.localise(staged, writable=True)
            w.content.open(staged, writing=True)
        async with world(tmp_path) as w:
            found = w.at("f")
            assert found is not None
            assert (found.mtime, (await w.listing())["f"]) == (NOW, digest)

    asyncio.run(run())


def test_what_somebody_can_still_write_to_becomes_no_blob(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start()
            file = w.write("f", b"before", close=False)
            assert isinstance(file.content, Local)
            orphan = os.open(w.content.private.path(file.content), os.O_WRONLY | os.O_APPEND)
        try:
            async with world(tmp_path) as w:
                await w.ingest.settle()
                assert await w.listing() == {"f": Digest.of(SHA256, b"before")}
                os.write(orphan, b" and after")
                assert w.store.read(Digest.of(SHA256, b"before")) == b"before"
                assert w.private_files() == []
        finally:
            os.close(orphan)

    asyncio.run(run())


def test_a_clean_that_a_crash_cuts_short_has_not_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start()
            await w.stage(("checkpointed", A))
            await w.builds.checkpoints.all()
            await w.stage(("later", A))
            monkeypatch.setattr(w.state, "forget", _killed)
            with pytest.raises(Unavailable):
                await w.builds.clean(BASE)
        async with world(tmp_path) as w:
            assert set(await w.listing()) == {"checkpointed", "later"}

    asyncio.run(run())


def test_a_clean_base_that_was_begun_anew_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start()
            await w.stage(("old", A))
            await w.builds.checkpoints.all()
            monkeypatch.setattr(w.state, "forget", _killed)
            with pytest.raises(Unavailable):
                await w.builds.clean(BASE)
            await w.start("b2")
            await w.stage(("new", A), build_id="b2")
        async with world(tmp_path) as w:
            assert set(await w.listing()) == {"new"}

    asyncio.run(run())


def test_inode_numbers_are_new_although_their_range_could_not_be_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        monkeypatch.setattr(
            State, "_reserve", lambda state: None
        )  # the daemon was killed, or the disk is full
        async with world(tmp_path, crash=True) as w:
            await w.start()
        numbers: list[int] = []
        for run in range(4):
            async with world(tmp_path, crash=True) as w:
                w.write(f"file {run}", b"", close=False)
                file = w.at(f"file {run}")
                assert file is not None
                numbers.append(w.tree.identify(file, w.root()))
        assert len(set(numbers)) == len(numbers)

    asyncio.run(run())


async def _killed(output_base_id: str) -> None:
    raise Unavailable(f"{output_base_id}: its row cannot be removed")


def test_a_file_open_at_the_checkpoint_whose_directory_moved_later_keeps_what_was_written(
    tmp_path: Path,
) -> None:
    data = b"first and second"

    async def run() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start()
            w.mkdir("d")
            file = w.write("d/log", b"first ", close=False)
            await w.finalize()
            w.content.write(w.content._open[file], 0, memoryview(data), append=False)
            assert w.tree.rename(w.root(), b"d", w.root(), b"moved", 0, NOW) is Status.OK
        async with world(tmp_path) as w:
            assert await w.listing() == {"moved/": None, "moved/log": Digest.of(SHA256, data)}

    asyncio.run(run())
