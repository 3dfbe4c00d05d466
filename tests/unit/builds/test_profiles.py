"""Profiles on a disk: begun, ended, found again after every kind of end, spoilt, shared; and on a disk that refuses."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from outputd.builds import profiles as module
from outputd.builds.profiles import Profiles
from outputd.disk.disk import RealDisk
from outputd.drive.profile import WHOLE, Part, Profile, decode
from outputd.drive.recording import Recordings
from outputd.errors import Exhausted, Invalid, NotFound, Precondition

SIZE = 100 << 20
TEXT = b"outputd-profile: 1\n\na\nb\n"


class FullDisk(RealDisk):
    """A disk without room, while `full`."""

    __slots__ = ("full",)

    def __init__(self) -> None:
        super().__init__()
        self.full = False

    def write(self, fd: int, data: bytes | bytearray | memoryview) -> None:
        if self.full:
            super().write(fd, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(fd, data)


class World:
    """One run of a daemon."""

    def __init__(self, path: Path) -> None:
        self.disk = FullDisk()
        self.recordings = Recordings()
        self.profiles = Profiles(str(path), self.disk, self.recordings)

    def read(self, name: str, path: bytes, size: int = 5, offset: int = 0, length: int = 5) -> None:
        self.profiles._under_way[name].recording.read(path, size, offset, length)

    def flush(self) -> None:
        for name, under_way in self.profiles._under_way.items():
            self.profiles._flush(name, under_way)


def played(path: Path, play: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        w = World(path)
        try:
            await play(w)
        finally:
            w.profiles.close()

    asyncio.run(run())


def test_recorded_kept_listed_and_deleted(tmp_path: Path) -> None:
    async def play(w: World) -> None:
        assert await w.profiles.all() == []
        await w.profiles.start("p", "base")
        w.read("p", b"a")
        w.read("p", b"large", SIZE)
        [about] = await w.profiles.all()
        assert (about.name, about.output_base_id, about.files, about.in_part) == ("p", "base", 2, 1)
        assert about.recording and about.complete
        assert decode(await w.profiles.text("p"), "p").files.keys() == {b"a", b"large"}
        stopped = await w.profiles.stop("p")
        assert not w.recordings.on
        assert [stopped] == await w.profiles.all()
        found = await w.profiles.get("p")
        assert found.files == {b"a": WHOLE, b"large": Part(SIZE, ((0, 65536),))}
        assert os.listdir(tmp_path) == ["p.profile"]
        await w.profiles.delete("p")
        assert os.listdir(tmp_path) == []
        for gone in (w.profiles.get, w.profiles.delete, w.profiles.stop, w.profiles.text):
            with pytest.raises(NotFound):
                await gone("p")

    played(tmp_path, play)


def test_an_earlier_profile_stays_until_the_end_and_when_discarded(tmp_path: Path) -> None:
    async def play(w: World) -> None:
        await w.profiles.put("p", TEXT)
        await w.profiles.start("p", "base")
        with pytest.raises(Precondition):
            await w.profiles.start("p", "base")
        w.read("p", b"new")
        assert await w.profiles.text("p") == TEXT
        assert [about.recording for about in await w.profiles.all()] == [False, True]
        await w.profiles.stop("p", discard=True)
        assert await w.profiles.text("p") == TEXT
        await w.profiles.start("p", "base")
        w.read("p", b"new")
        await w.profiles.stop("p")
        assert list((await w.profiles.get("p")).files) == [b"new"]
        await w.profiles.start("p", "base")
        await w.profiles.delete("p")
        assert os.listdir(tmp_path) == [] and not w.recordings.on

    played(tmp_path, play)


@pytest.mark.parametrize("orderly", [True, False])
def test_a_recording_goes_on_in_the_next_run(tmp_path: Path, orderly: bool) -> None:
    async def first() -> None:
        w = World(tmp_path)
        await w.profiles.start("p", "base")
        w.read("p", b"a")
        w.read("p", b"large", SIZE)
        w.flush()
        w.read("p", b"large", SIZE, SIZE - 5)
        w.flush()
        w.read("p", b"late")
        if orderly:
            w.profiles.close()

    async def second(w: World) -> None:
        assert w.recordings.on
        w.read("p", b"b")
        w.flush()
        await w.profiles.stop("p")
        found = await w.profiles.get("p")
        assert list(found.files) == [b"a", b"large", *([b"late"] if orderly else []), b"b"]
        assert found.files[b"large"].runs == ((0, 65536), (SIZE - 65536, SIZE))
        assert found.output_base_id == "base"

    asyncio.run(first())
    played(tmp_path, second)


def test_of_a_recording_that_was_cut_the_whole_lines_count(tmp_path: Path) -> None:
    (tmp_path / "p.recording").write_bytes(b"outputd-profile: 1\noutput-base: base\n\na\nbin/ap")

    async def play(w: World) -> None:
        w.read("p", b"b")
        w.flush()
        assert (tmp_path / "p.recording").read_bytes().endswith(b"\n\na\nb\n")

    played(tmp_path, play)


@pytest.mark.parametrize("text", [b"", b"\0" * 50, b"outputd-profile: 1\n\na\n"])
def test_what_is_no_recording_is_left_alone(
    tmp_path: Path, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "p.recording").write_bytes(text)

    async def play(w: World) -> None:
        assert not w.recordings.on

    played(tmp_path, play)
    assert (tmp_path / "p.recording").read_bytes() == text
    assert "is left alone" in caplog.text


def test_a_spoilt_profile_is_listed_with_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "p.profile").write_bytes(TEXT + b"../x\n")
    (tmp_path / "p.profile.new").write_bytes(b"left by a crash")

    async def play(w: World) -> None:
        [about] = await w.profiles.all()
        assert about.name == "p" and ":5: ../x" in about.error
        with pytest.raises(Invalid):
            await w.profiles.get("p")
        with pytest.raises(Invalid):
            await w.profiles.put("q", b"no profile")
        with pytest.raises(Invalid):
            await w.profiles.start("../q", "base")
        with pytest.raises(Invalid):
            await w.profiles.start("q", "")

    played(tmp_path, play)


def test_a_full_disk_costs_no_half_lines_and_no_recording(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def play(w: World) -> None:
        await w.profiles.start("p", "base")
        w.read("p", b"a")
        w.flush()
        before = (tmp_path / "p.recording").read_bytes()
        w.disk.full = True
        w.read("p", b"some/long/name")
        w.flush()
        w.flush()  # says nothing again, for a while
        assert (tmp_path / "p.recording").read_bytes() == before
        with pytest.raises(Exhausted):
            await w.profiles.stop("p")
        with pytest.raises(Exhausted):
            await w.profiles.put("q", TEXT)
        with pytest.raises(Exhausted):
            await w.profiles.start("q", "base")
        assert w.recordings.on
        w.disk.full = False
        w.read("p", b"b")
        assert (await w.profiles.stop("p")).files == 3

    played(tmp_path, play)
    assert len(caplog.records) == 1


def test_a_recording_ends_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_FLUSH", 0.001)
    monkeypatch.setattr(module, "_LONGEST", -10)

    async def play(w: World) -> None:
        await w.profiles.start("p", "base")
        running = asyncio.create_task(w.profiles.run())
        async with asyncio.timeout(10):
            while w.recordings.on or not os.path.exists(tmp_path / "p.profile"):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        running.cancel()

    played(tmp_path, play)
    assert "it ends here" in caplog.text


def test_there_is_an_end_to_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 1)
    monkeypatch.setattr(module, "MOST_BYTES", 100)

    async def play(w: World) -> None:
        await w.profiles.start("p", "base")
        with pytest.raises(Exhausted, match="delete some"):
            await w.profiles.start("q", "base")
        with pytest.raises(Exhausted):
            await w.profiles.put("q", TEXT)
        w.read("p", b"a")
        w.flush()
        w.read("p", b"x" * 100)
        w.flush()
        assert not (await w.profiles.stop("p")).complete

    played(tmp_path, play)


def test_the_head_is_kept() -> None:
    assert decode(b"outputd-profile: 1\noutput-base: b\n\n", "p") == Profile("b")
