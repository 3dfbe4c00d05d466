"""What a process that is killed leaves behind of its mount, for one that gets the device back: in a file mapped into memory.

The pages are the kernel's, so they outlive us without a system call; they count for nothing once the device is closed. A page for
what INIT settled, then a slot for each open handle. Names and numbers of what is in the tree are the journal's to keep.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import stat
import struct
import time
from contextlib import suppress
from typing import Final

from outputd.errors import OutputdError
from outputd.front.fuse.connection import connection_of
from outputd.front.fuse.handover import Agreed, Handover, Opened
from outputd.front.fuse.mount import FSTYPE, Mount, topmost
from outputd.wire.fuse_abi import INC_EPOCH_MINOR_VERSION

_log = logging.getLogger(__name__)

_VERSION: Final = 1
_HEAD: Final = 4096
_LENGTH: Final = struct.Struct("<I")
_SLOT: Final = struct.Struct(
    "<QQIB3x"
)  # number of the handle (0: free), of the inode, of the backing file; may write
_FH: Final = struct.Struct("<Q")
_FIRST: Final = 4096
"""Slots of a new file; it doubles."""
_FUSE_DEVICE: Final = (10, 229)


class KeptHandles:
    """The file, while we live. Never raises for want of room: then a crash loses more, and the log says so."""

    def __init__(self, path: str) -> None:
        """What an earlier process left at `path` stays until `publish`."""
        self._path = path
        self._fd = -1
        self._map: mmap.mmap | None = None
        self._free: list[int] = []
        self._slots = 0
        self._head = b""

    def begin(self, mount: Mount, agreed: Agreed, restarts: int) -> None:
        """Keep this mount's handles from now on."""
        self.close()
        self._head = json.dumps(
            {
                "version": _VERSION,
                "mount": [mount.path, mount.connection, mount.by_us],
                "agreed": [agreed.minor, agreed.features, agreed.passthrough],
                "restarts": restarts,
            }
        ).encode()
        try:
            self._fd = os.open(f"{self._path}.new", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            self._grow(_FIRST)
        except OSError as error:
            self._give_up(error)

    def publish(self) -> None:
        """What is kept now takes the place of what an earlier process left."""
        if self._map is not None:
            try:
                os.replace(f"{self._path}.new", self._path)
            except OSError as error:
                self._give_up(error)

    def opened(self, fh: int, ino: int, backing: int, *, writing: bool) -> int:
        """A handle was made; returns its slot, -1 if it is not kept."""
        if self._map is None:
            return -1
        if not self._free:
            try:
                self._grow(2 * self._slots)
            except OSError as error:
                self._give_up(error)
                return -1
        slot = self._free.pop()
        at = _HEAD + slot * _SLOT.size
        # The number last: a process that is killed in between leaves a free slot.
        _SLOT.pack_into(self._map, at, 0, ino, backing, writing)
        _FH.pack_into(self._map, at, fh)
        return slot

    def closed(self, slot: int) -> None:
        """A handle is gone."""
        if self._map is not None and slot >= 0:
            _FH.pack_into(self._map, _HEAD + slot * _SLOT.size, 0)
            self._free.append(slot)

    def remove(self) -> None:
        """The mount was taken off: nothing is to be found."""
        self.close()
        for path in (self._path, f"{self._path}.new"):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            except OSError as error:  # the next start sees that the connection it tells of is gone
                _log.warning("%s: cannot be removed: %s", path, error.strerror)

    def close(self) -> None:
        """Keep nothing more. The file stays."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._free, self._slots = [], 0

    def _grow(self, slots: int) -> None:
        size = _HEAD + slots * _SLOT.size
        # With blocks: to write to a hole on a full disk is SIGBUS.
        os.posix_fallocate(self._fd, 0, size)
        mapping = mmap.mmap(self._fd, size)
        if self._map is None:
            _LENGTH.pack_into(mapping, 0, len(self._head))
            mapping[_LENGTH.size : _LENGTH.size + len(self._head)] = self._head
        else:
            self._map.close()
        self._map = mapping
        self._free.extend(range(slots - 1, self._slots - 1, -1))
        self._slots = slots

    def _give_up(self, error: OSError) -> None:
        _log.warning("%s: open files would not survive a crash: %s", self._path, error.strerror)
        self.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)


def recall(path: str, device: int) -> Handover | None:
    """What was kept at `path` for the mount that a `device` belongs to; None where that cannot be gone on with, and the log says
    why. The descriptor is taken over then and only then."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        (length,) = _LENGTH.unpack_from(data)
        head = json.loads(data[_LENGTH.size : _LENGTH.size + length])
        if head["version"] != _VERSION:
            raise ValueError(f"version {head['version']}, expected {_VERSION}")
        mount_path, connection, by_us = head["mount"]
        mount = Mount(mount_path, device, connection, by_us, created=False, replaced=0)
        agreed = Agreed(*head["agreed"])
        restarts = int(head["restarts"])
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        _log.warning("the device that was kept cannot be used: %s: %s", path, error)
        return None
    trouble = _trouble(mount, agreed)
    if trouble:
        _log.warning("the device that was kept cannot be used: %s", trouble)
        return None
    # Numbers that were never given to anybody, also none that did not come to be written here.
    fresh = time.time_ns()
    return Handover(
        mount,
        agreed,
        opened=_opened(data),
        next_handle=fresh,
        next_directory_handle=fresh,
        restarts=restarts,
        crashed=True,
    )


def _opened(data: bytes) -> list[Opened]:
    found: dict[int, Opened] = {}
    end = _HEAD + (len(data) - _HEAD) // _SLOT.size * _SLOT.size
    for fh, ino, backing, writing in _SLOT.iter_unpack(data[_HEAD:end]):
        if fh:
            opened = found.setdefault(ino, Opened(ino, "", backing, 0, []))
            opened.handles.append((fh, bool(writing)))
    return list(found.values())


def _trouble(mount: Mount, agreed: Agreed) -> str:
    """Why a mount cannot be gone on with after a crash; empty when it can."""
    if agreed.minor < INC_EPOCH_MINOR_VERSION:
        return f"the kernel speaks FUSE 7.{agreed.minor}; names can be revoked from 7.{INC_EPOCH_MINOR_VERSION} on (Linux 6.16)"
    status = os.fstat(mount.fd)
    if (
        not stat.S_ISCHR(status.st_mode)
        or (os.major(status.st_rdev), os.minor(status.st_rdev)) != _FUSE_DEVICE
    ):
        return "it is no FUSE device"
    connection = connection_of(mount.fd)
    if connection not in (mount.connection, None):
        return f"it belongs to connection {connection}, not {mount.connection}"
    try:
        entry = topmost(mount.path)
    except OutputdError as error:
        return str(error)
    if entry is None or (entry.fstype, entry.minor) != (FSTYPE, mount.connection):
        return f"{mount.path} shows {entry or 'nothing'}, not connection {mount.connection}"
    return ""
