"""A FUSE connection by its number: which one a device belongs to, and its end by force. Knows of no mount point."""

from __future__ import annotations

import ctypes
import os
import select
from typing import Final

from outputd.errors import Unavailable

CONNECTIONS: Final = "/sys/fs/fuse/connections"

# sys/mount.h
_MNT_DETACH: Final = 2

_libc: Final = ctypes.CDLL(None, use_errno=True)


def connection_of(fd: int) -> int | None:
    """The number of a device's connection; None where the kernel does not tell (fuse_dev_show_fdinfo, newer than Linux 6.12)."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file:
            name, _, value = line.partition(b":")
            if name == b"fuse_connection":
                return int(value)
    return None


def abort_device(fd: int) -> None:
    """As `abort_connection`, for a device that somebody else holds open too; nothing where its number cannot be known, or where it
    has ended with its mount."""
    connection = connection_of(fd)
    # With its mount goes its claim to the number, which the next FUSE file system gets, whoever's that is.
    if connection is None or _ended(fd):
        return
    try:
        abort_connection(connection)
    except Unavailable as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise


def _ended(fd: int) -> bool:
    """Whether the device has no connection any more (fuse_dev_poll)."""
    device = select.poll()
    device.register(fd, 0)
    return any(events & select.POLLERR for _, events in device.poll(0))


def abort_connection(connection: int) -> None:
    """Fail every request the kernel still waits for, and all later ones. Raises Unavailable.

    Closing every copy of the device does the same, but while a write to it hangs it is not closed (fdget()).
    """
    control = f"{CONNECTIONS}/{connection}/abort"
    try:
        if os.path.exists(control):
            _write_one(control)
        else:
            _abort_without_fusectl(control)
    except OSError as error:
        raise Unavailable(f"{control}: cannot be written: {error.strerror}") from error


def _abort_without_fusectl(control: str) -> None:
    # systemd mounts fusectl; a container has none. The directory is there, so lend it one for a moment.
    if _libc.mount(b"fusectl", CONNECTIONS.encode(), b"fusectl", ctypes.c_ulong(0), None):
        code = ctypes.get_errno()
        raise Unavailable(f"{CONNECTIONS}: fusectl is not mounted and cannot be: {os.strerror(code)}")
    try:
        _write_one(control)
    finally:
        if _libc.umount2(CONNECTIONS.encode(), _MNT_DETACH):
            raise Unavailable(
                f"{CONNECTIONS}: fusectl cannot be taken off again: {os.strerror(ctypes.get_errno())}"
            )


def _write_one(path: str) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(b"1")
