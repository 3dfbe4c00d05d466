"""The same operations on a real directory, answering in the tree's words: the oracle of what POSIX does."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable

from outputd.tree.status import Status

OF_ERRNO = {
    errno.ENOENT: Status.ABSENT,
    errno.EEXIST: Status.EXISTS,
    errno.ENOTDIR: Status.NOT_DIRECTORY,
    errno.EISDIR: Status.IS_DIRECTORY,
    errno.ENOTEMPTY: Status.NOT_EMPTY,
    errno.EINVAL: Status.INVALID,
    errno.ENAMETOOLONG: Status.NAME_TOO_LONG,
    errno.EPERM: Status.NOT_PERMITTED,
}

_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100


def attempt(operation: Callable[[], object]) -> Status:
    """OK, or why the kernel refused."""
    try:
        operation()
    except OSError as error:
        assert error.errno is not None
        return OF_ERRNO[error.errno]
    return Status.OK


def create(path: bytes, label: bytes) -> Status:
    """A new file of mode 0644 that holds `label`."""

    def operation() -> None:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.fchmod(fd, 0o644)
        os.write(fd, label)
        os.close(fd)

    return attempt(operation)


def make_directory(path: bytes) -> Status:
    status = attempt(lambda: os.mkdir(path))
    if status is Status.OK:
        os.chmod(path, 0o755)
    return status


def link(old: bytes, new: bytes) -> Status:
    return attempt(lambda: os.link(old, new, follow_symlinks=False))


def rename(old: bytes, new: bytes, flags: int) -> Status:
    def operation() -> None:
        if _LIBC.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, flags):
            raise OSError(ctypes.get_errno(), "renameat2")

    return attempt(operation)


def remove(path: bytes) -> None:
    """Whatever stands there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def counts_subdirectories(path: bytes) -> bool:
    """Whether this file system counts subdirectories as links, as ext4 and tmpfs do and btrfs does not."""
    probe = path + b"/probe"
    os.makedirs(probe + b"/below")
    counts = os.stat(probe).st_nlink == 3
    shutil.rmtree(probe)
    return counts


def content(path: bytes) -> bytes:
    """The target of a symlink, the bytes of a file."""
    if os.path.islink(path):
        return os.readlink(path)
    with open(path, "rb") as file:
        return file.read()
