"""A blob of which only some bytes are here: a sparse file, and which granules of it are filled. Never fetches, never checks.

What is filled is written down beside the file, so that a restart goes on from there; after a power cut it counts for nothing,
because neither of the two files is synced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, Protocol

from outputd.digest import Digest
from outputd.disk.disk import Disk
from outputd.store.base import Piece
from outputd.store.room import is_full

GRANULE: Final = 64 << 10
"""Bytes that are filled or missing together."""
MAP: Final = ".map"
_MARK: Final = b"outputd partial 1\n"


class Room(Protocol):
    """Who tends the disk."""

    def make_room(self, size: int) -> bool:
        """The disk is full; whether it is worth trying once more."""

    def grew(self, size: int) -> None:
        """So many bytes have come."""


class PartialBlob:
    """One such blob, open. For one thread at a time, but for `write`, which may run in others for bytes that nobody else writes."""

    __slots__ = ("_boot", "_disk", "_filled", "_left", "_path", "_room", "digest", "fd", "size")

    def __init__(self, path: str, digest: Digest, disk: Disk, boot: bytes, room: Room) -> None:
        """Open it as an earlier run of this boot has left it, else empty. Raises OSError."""
        self.digest: Final = digest
        self.size: Final = digest.size
        self._path = path
        self._disk = disk
        self._boot = boot
        self._room = room
        granules = -(-self.size // GRANULE)
        self.fd: Final = disk.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        """To read from what is filled."""
        try:
            filled = self._read_map(granules) if os.fstat(self.fd).st_size == self.size else None
            if filled is None:
                os.ftruncate(self.fd, 0)
                os.ftruncate(self.fd, self.size)
        except BaseException:
            os.close(self.fd)
            raise
        self._filled = filled or bytearray(granules)
        self._left = self._filled.count(0)

    @property
    def path(self) -> str:
        return self._path

    @property
    def complete(self) -> bool:
        return self._left == 0

    @property
    def bytes_left(self) -> int:
        """About how much is missing."""
        return min(self.size, self._left * GRANULE)

    def has(self, offset: int, size: int) -> bool:
        """Whether all of these bytes are here, as far as the blob reaches."""
        end = min(offset + size, self.size)
        return offset >= end or self._filled.find(0, offset // GRANULE, -(-end // GRANULE)) < 0

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What is missing of these bytes, in whole granules; the last one ends with the blob."""
        at, last = start // GRANULE, min(-(-end // GRANULE), len(self._filled))
        while (first := self._filled.find(0, at, last)) >= 0:
            at = self._filled.find(1, first, last)
            if at < 0:
                at = last
            yield first * GRANULE, min(at * GRANULE, self.size)

    @staticmethod
    def whole_granules(offset: int) -> int:
        """Where the granule of a byte begins."""
        return offset - offset % GRANULE

    def write(self, offset: int, data: Piece) -> None:
        """Put bytes into their place; they count once `fill` says so. Raises OSError."""
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                try:
                    done += os.pwrite(self.fd, view[done:], offset + done)
                except OSError as error:
                    if not is_full(error) or not self._room.make_room(len(view) - done):
                        raise
                    done += os.pwrite(self.fd, view[done:], offset + done)
        self._room.grew(len(data))

    def fill(self, start: int, end: int) -> None:
        """These bytes are here now; granules that they cover in part do not count."""
        first = -(-start // GRANULE)
        last = len(self._filled) if end >= self.size else end // GRANULE
        if first < last:
            self._filled[first:last] = b"\1" * (last - first)
            self._left = self._filled.count(0)

    def empty(self) -> None:
        """Nothing of it counts any more. Raises OSError."""
        self._filled = bytearray(len(self._filled))
        self._left = len(self._filled)
        os.ftruncate(self.fd, 0)
        os.ftruncate(self.fd, self.size)

    def save(self) -> None:
        """Write down what is filled. Raises OSError."""
        fresh = f"{self._path}.new"
        fd = self._disk.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            self._disk.write(fd, _MARK + self._boot + self._filled)
        finally:
            os.close(fd)
        self._disk.rename(fresh, self.map_path)

    def discard(self) -> None:
        """Remove what is left on the disk of it under its own name."""
        for path in (self._path, self.map_path):
            with suppress(FileNotFoundError):
                self._disk.unlink(path)

    def close(self) -> None:
        os.close(self.fd)

    @property
    def map_path(self) -> str:
        """Where is written down what is filled."""
        return f"{self._path}{MAP}"

    @staticmethod
    def is_of_boot(path: str, disk: Disk, boot: bytes) -> bool:
        """Whether what is written down beside the bytes there was written in this boot. Raises OSError."""
        fd = disk.open(path + MAP, os.O_RDONLY)
        try:
            return os.pread(fd, len(_MARK) + len(boot), 0) == _MARK + boot
        finally:
            os.close(fd)

    def _read_map(self, granules: int) -> bytearray | None:
        try:
            fd = self._disk.open(self.map_path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            head = len(_MARK) + len(self._boot)
            data = os.pread(fd, head + granules + 1, 0)
        finally:
            os.close(fd)
        if data[:head] != _MARK + self._boot or len(data) != head + granules or data[head:].strip(b"\0\1"):
            return None
        return bytearray(data[head:])
