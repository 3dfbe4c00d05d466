"""Directories read while they change, positions in them, big ones, statfs."""

from __future__ import annotations

import ctypes
import os

from tests.posix.at import At, Cases, shown, told

CASES = Cases("listing")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fdopendir.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_ushort),
        ("d_type", ctypes.c_ubyte),
        ("d_name", ctypes.c_char * 256),
    )


_libc.readdir.restype = ctypes.POINTER(_Dirent)


class _Stream:
    """A DIR of the C library."""

    def __init__(self, path: str) -> None:
        self._stream = ctypes.c_void_p(_libc.fdopendir(os.open(path, os.O_RDONLY | os.O_DIRECTORY)))

    def read(self) -> str | None:
        entry = _libc.readdir(self._stream)
        return os.fsdecode(entry.contents.d_name) if entry else None

    def rest(self) -> list[str]:
        names = []
        while (name := self.read()) is not None:
            names.append(name)
        return names

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, ctypes.c_long(position))

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)


def _fill(at: At, count: int) -> set[str]:
    names = {f"entry {number:05}" for number in range(count)}
    for name in names:
        os.symlink("x", at / name)
    return names


@CASES.add
def of_everything(at: At) -> object:
    names = _fill(at, 1000)
    stream = _Stream(at.path)
    listed = stream.rest()
    stream.close()
    return len(listed), set(listed) == names | {".", ".."}


@CASES.add
def has_types_and_inodes(at: At) -> object:
    at.file("file")
    os.mkdir(at / "directory")
    os.symlink("file", at / "symlink")
    os.mkfifo(at / "fifo")
    with os.scandir(at.path) as entries:
        found = {
            e.name: (
                e.is_file(follow_symlinks=False),
                e.is_dir(follow_symlinks=False),
                e.is_symlink(),
                e.inode() == os.lstat(e.path).st_ino,
            )
            for e in entries
        }
    return sorted(found.items())


@CASES.each((1, 100, 997))
def goes_on_from_where_it_was(at: At, after: int) -> object:
    _fill(at, 1000)
    stream = _Stream(at.path)
    for _ in range(after):
        stream.read()
    position = stream.tell()
    rest = stream.rest()
    stream.seek(position)
    again = stream.rest()
    stream.rewind()
    everything = stream.rest()
    stream.close()
    return rest == again, len(rest), len(everything), everything[-len(rest) :] == rest


@CASES.add
def of_any_position(at: At) -> object:
    _fill(at, 300)
    stream = _Stream(at.path)
    positions = []
    while (position := stream.tell()) is not None and (name := stream.read()) is not None:
        positions.append((position, name))
    right = 0
    for position, name in reversed(positions):
        stream.seek(position)
        right += stream.read() == name
    stream.close()
    return right


@CASES.each(("one by one", "all after the first"))
def while_entries_are_removed(at: At, how: str) -> object:
    """Each name is shown at most once; each that stays, exactly once."""
    names = _fill(at, 1000)
    stream = _Stream(at.path)
    seen: list[str] = []
    while (name := stream.read()) is not None:
        if name in (".", ".."):
            continue
        seen.append(name)
        if how == "one by one":
            os.unlink(at / name)
        elif len(seen) == 1:
            for other in names - {name}:
                os.unlink(at / other)
    stream.close()
    return len(seen) == len(set(seen)), how != "one by one" or set(seen) == names, len(os.listdir(at.path))


@CASES.add
def while_entries_come(at: At) -> object:
    names = _fill(at, 1000)
    stream = _Stream(at.path)
    seen = [stream.read() for _ in range(300)]
    for number in range(300):
        os.symlink("x", at / f"later {number}")
    seen += stream.rest()
    stream.rewind()
    everything = set(stream.rest())
    stream.close()
    old = [name for name in seen if name in names]
    return set(old) == names, len(old) == len(set(old)), len(everything)


@CASES.add
def while_entries_are_renamed(at: At) -> object:
    names = _fill(at, 1000)
    stream = _Stream(at.path)
    seen = [stream.read() for _ in range(500)]
    for name in names:
        os.rename(at / name, at / f"{name} renamed")
    stream.rest()
    stream.rewind()
    everything = stream.rest()
    stream.close()
    return len(seen), len(everything), sum(name.endswith("renamed") for name in everything)


@CASES.add
def after_every_change(at: At) -> object:
    counts = []
    for number in range(20):
        os.symlink("x", at / f"n{number}")
        counts.append(len(os.listdir(at.path)))
    os.rename(at / "n0", at / "n1")
    counts.append(len(os.listdir(at.path)))
    os.mkdir(at / "d")
    os.rename(at / "n2", at / "d/n2")
    counts += [len(os.listdir(at.path)), len(os.listdir(at / "d"))]
    return counts


@CASES.add
def of_a_directory_that_was_removed(at: At) -> object:
    os.mkdir(at / "d")
    at.file("d/f")
    stream = _Stream(at / "d")
    os.unlink(at / "d/f")
    os.rmdir(at / "d")
    names = stream.rest()
    stream.close()
    return names, told(os.listdir, at / "d")


@CASES.add
def of_what_is_no_directory(at: At) -> object:
    at.file("f")
    return told(os.listdir, at / "f"), told(os.open, at / "f", os.O_DIRECTORY | os.O_RDONLY)


@CASES.add
def of_100000_entries(at: At) -> object:
    names = _fill(at, 100_000)
    count = len(os.listdir(at.path))
    stream = _Stream(at.path)
    seen = 0
    while (name := stream.read()) is not None:
        if name in names:
            seen += 1
            os.unlink(at / name)
    stream.close()
    return count, seen, os.listdir(at.path), told(os.rmdir, at / "d"), shown(at.path)["links"]


@CASES.add
def bytes_of_a_directory_cannot_be_read(at: At) -> object:
    with at.opened(".", os.O_RDONLY) as fd:
        return told(os.read, fd, 10), told(os.write, fd, b"x"), told(os.ftruncate, fd, 0)


@CASES.add
def statfs(at: At) -> object:
    """Room is that of the disk: what a file takes is seen, and given back."""
    before = os.statvfs(at.path)
    with at.opened("f", os.O_RDWR | os.O_CREAT) as fd:
        os.posix_fallocate(fd, 0, 256 << 20)
        during = os.statvfs(at.path)
        through = os.fstatvfs(fd)
    return [
        before.f_namemax,
        before.f_bsize,
        before.f_frsize,
        before.f_blocks == during.f_blocks == through.f_blocks > 0,
        before.f_bavail <= before.f_bfree <= before.f_blocks,
        (before.f_bfree - during.f_bfree) * before.f_frsize > 128 << 20,
        0 < before.f_ffree <= before.f_files,
    ]


@CASES.add
def pathconf(at: At) -> object:
    return [
        told(os.pathconf, at.path, name)
        for name in ("PC_NAME_MAX", "PC_PATH_MAX", "PC_NO_TRUNC", "PC_SYMLINK_MAX", "PC_PIPE_BUF")
    ]
