"""The real disk: what the Protocol promises, on the file system the tests run on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from outputd.disk.atomic import make_directories, replace_file, sync_directory
from outputd.disk.disk import Disk, RealDisk


@pytest.fixture
def disk() -> Disk:
    return RealDisk()


def make(disk: Disk, path: Path, data: bytes) -> None:
    fd = disk.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    disk.write(fd, data)
    os.close(fd)


def test_what_is_opened_is_not_inherited(disk: Disk, tmp_path: Path) -> None:
    fd = disk.open(str(tmp_path / "a"), os.O_RDWR | os.O_CREAT, 0o444)
    assert not os.get_inheritable(fd)
    assert os.fstat(fd).st_mode & 0o222 == 0
    os.close(fd)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_write_goes_on_until_all_is_written(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[bytes], bytes]
) -> None:
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, bytes(data)[:3]))
    make(disk, tmp_path / "a", kind(b"0123456789"))
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_a_full_disk_is_told(disk: Disk) -> None:
    fd = disk.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space"):
        disk.write(fd, b"x")
    os.close(fd)


@pytest.mark.parametrize("kernel_helps", [True, False])
def test_copy(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel_helps: bool) -> None:
    if not kernel_helps:

        def refuse(*_: object) -> int:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    content = os.urandom((1 << 20) + 7)
    (tmp_path / "source").write_bytes(content)
    source = disk.open(str(tmp_path / "source"), os.O_RDONLY)
    target = disk.open(str(tmp_path / "target"), os.O_WRONLY | os.O_CREAT)
    disk.copy(source, target)
    # What is written next follows what was copied.
    disk.write(target, b"more")
    os.close(source)
    os.close(target)
    assert (tmp_path / "target").read_bytes() == content + b"more"


def test_syncing(disk: Disk, tmp_path: Path) -> None:
    make(disk, tmp_path / "a", b"1")
    fd = disk.open(str(tmp_path / "a"), os.O_RDONLY)
    disk.sync(fd)
    disk.sync_file_system(fd)
    os.close(fd)
    sync_directory(disk, str(tmp_path))
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.sync_file_system(fd)


def test_names(disk: Disk, tmp_path: Path) -> None:
    make(disk, tmp_path / "a", b"1")
    make(disk, tmp_path / "b", b"2")
    disk.rename(str(tmp_path / "a"), str(tmp_path / "b"))
    disk.chmod(str(tmp_path / "b"), 0o444)
    disk.make_directory(str(tmp_path / "d"))
    assert sorted(disk.list(str(tmp_path))) == ["b", "d"]
    assert (tmp_path / "b").read_bytes() == b"1"
    disk.unlink(str(tmp_path / "b"))
    disk.remove_directory(str(tmp_path / "d"))
    assert disk.list(str(tmp_path)) == []


class Recorder:
    """A disk that notes its calls; the order is what a crash sees."""

    def __init__(self, disk: Disk) -> None:
        self.calls: list[str] = []
        self._disk = disk

    def __getattr__(self, name: str) -> object:
        def call(*args: object) -> object:
            self.calls.append(name)
            return getattr(self._disk, name)(*args)

        return call


def test_a_file_is_replaced_in_an_order_that_no_crash_can_spoil(disk: Disk, tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")
    (tmp_path / "state.new").write_bytes(b"left by a crash, and longer")
    recorder = Recorder(disk)
    replace_file(recorder, str(path), b"new", 0o640)  # type: ignore[arg-type]
    assert recorder.calls == ["open", "write", "sync", "rename", "open", "sync"]
    assert path.read_bytes() == b"new"
    assert disk.list(str(tmp_path)) == ["state"]


def test_a_failed_replacement_leaves_the_old_file(disk: Disk, tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")

    class Full(RealDisk):
        def write(self, fd: int, data: bytes | bytearray | memoryview) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        replace_file(Full(), str(path), b"new")
    assert path.read_bytes() == b"old"


def test_directories_are_made_down_to_the_last(disk: Disk, tmp_path: Path) -> None:
    make_directories(disk, str(tmp_path / "a" / "b" / "c"))
    make_directories(disk, str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b" / "c").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_directories(disk, str(tmp_path / "file"))
