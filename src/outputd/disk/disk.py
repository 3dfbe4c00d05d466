"""The calls through which durable state changes on a disk: the Protocol, and the real thing; decides nothing, keeps nothing.

Everybody who needs something to outlive a crash takes a `Disk`, so that a simulated one can stand behind it, be cut at every
call and show what is left. Bytes of an open file may be read with plain `os.pread`: reading changes nothing.

All calls raise OSError: what it means depends on who asked, so the rooms above translate it into errors.py.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final, Protocol

_COPY_STEP: Final = 1 << 30
_READ_STEP: Final = 1 << 20


class Disk(Protocol):
    """Paths are absolute. Descriptors are real ones, and the caller's to close with `os.close`."""

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        """open(2) with O_CLOEXEC."""

    def write(self, fd: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at the descriptor's place."""

    def copy(self, source: int, target: int) -> None:
        """Make the empty file `target` a copy of `source`, sharing its extents where the file system can."""

    def allocate(self, fd: int, offset: int, size: int) -> None:
        """Make sure that these bytes of a file are on the disk, zeros at its end: to write to them cannot fail for want of room."""

    def sync(self, fd: int) -> None:
        """fsync(2): this file's bytes and size outlive a power cut. For a directory: the names in it do."""

    def sync_file_system(self, fd: int) -> None:
        """syncfs(2): everything written so far to the file system of `fd` outlives a power cut, names included."""

    def chmod(self, path: str, mode: int) -> None: ...

    def rename(self, source: str, target: str) -> None:
        """Atomic; replaces `target`."""

    def unlink(self, path: str) -> None: ...

    def make_directory(self, path: str, mode: int = 0o700) -> None: ...

    def remove_directory(self, path: str) -> None: ...

    def list(self, path: str) -> list[str]:
        """Names in a directory, in any order."""


class RealDisk:
    """The operating system's own calls."""

    __slots__ = ("_libc",)

    def __init__(self) -> None:
        # The os module has no syncfs; elsewhere than on Linux, sync(2) promises as much for every file system at once.
        self._libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def write(self, fd: int, data: bytes | bytearray | memoryview) -> None:
        written = os.write(fd, data)
        if written == len(data):
            return
        # A short write happens at 2 GiB, at a quota's edge and on a signal; what follows says which.
        with memoryview(data) as view:
            while written < len(view):
                written += os.write(fd, view[written:])

    def copy(self, source: int, target: int) -> None:
        offset = 0
        if sys.platform == "linux":
            # copy_file_range(2) shares extents where it can (btrfs, XFS) and else copies without passing through us.
            try:
                while count := os.copy_file_range(source, target, _COPY_STEP, offset):
                    offset += count
            except OSError:
                # Refused in as many ways as there are file systems (EXDEV, EINVAL, EOPNOTSUPP, ENOSYS); going on by hand is
                # always right, and a true fault of the disk comes back from it.
                pass
        while piece := os.pread(source, _READ_STEP, offset):
            self.write(target, piece)
            offset += len(piece)

    def allocate(self, fd: int, offset: int, size: int) -> None:
        if sys.platform == "linux":
            os.posix_fallocate(fd, offset, size)
        else:
            os.lseek(fd, offset, os.SEEK_SET)
            self.write(fd, bytes(size))

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def sync_file_system(self, fd: int) -> None:
        if self._libc is None:
            os.sync()
        elif self._libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def make_directory(self, path: str, mode: int = 0o700) -> None:
        os.mkdir(path, mode)

    def remove_directory(self, path: str) -> None:
        os.rmdir(path)

    def list(self, path: str) -> list[str]:
        return os.listdir(path)
