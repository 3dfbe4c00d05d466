"""Replace a whole small file so that after any crash either the old or the new content is there; never appends or reads."""

from __future__ import annotations

import os

from outputd.disk.disk import Disk


def replace_file(disk: Disk, path: str, data: bytes, mode: int = 0o600) -> None:
    """Make `path` hold `data`, durably: when this returns, a power cut cannot take it back. Raises OSError.

    One writer per path. The new content is first written to `path` + `.new`; what a crash left there is overwritten.
    """
    fresh = path + ".new"
    fd = disk.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        disk.write(fd, data)
        # Without this the rename may reach the disk before the bytes, and a crash leaves an empty file (rename(2) orders
        # nothing).
        disk.sync(fd)
    finally:
        os.close(fd)
    disk.rename(fresh, path)
    sync_directory(disk, os.path.dirname(path))


def sync_directory(disk: Disk, path: str) -> None:
    """Make the names in a directory durable. Raises OSError."""
    fd = disk.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        disk.sync(fd)
    finally:
        os.close(fd)


def make_directories(disk: Disk, path: str, mode: int = 0o700) -> None:
    """Make a directory and those above it that do not exist; fine when it is there. Raises OSError."""
    try:
        disk.make_directory(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    except FileNotFoundError:
        make_directories(disk, os.path.dirname(path), mode)
        make_directories(disk, path, mode)
