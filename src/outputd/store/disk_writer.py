"""One blob on its way into the store on disk: hashed while it is written, whole and verified before it gets its name."""

from __future__ import annotations

import os
from typing import Protocol

from outputd.digest import Digest
from outputd.disk.disk import Disk
from outputd.errors import Corrupt, OutputdError
from outputd.store.room import is_full


class Home(Protocol):
    """What a writer asks of its store."""

    def create(self, path: str, *, local_only: bool) -> int:
        """A new file. Raises OSError."""

    def publish(self, source: str, digest: Digest, *, local_only: bool) -> None:
        """Give a whole, verified, read-only file its blob's name. Raises OSError."""

    def make_room(self, size: int) -> bool:
        """The disk is full: have something freed. Whether that worked."""

    def failed(self, error: OSError, doing: str, path: str) -> OutputdError:
        """What a failed call means to whoever uses the store."""


class DiskWriter:
    """A BlobWriter. For one thread at a time."""

    __slots__ = ("_digest", "_disk", "_fd", "_hasher", "_home", "_local_only", "_path", "_size")

    def __init__(self, home: Home, disk: Disk, digest: Digest, path: str, *, local_only: bool) -> None:
        self._home = home
        self._disk = disk
        self._digest = digest
        self._path = path
        self._local_only = local_only
        self._hasher = digest.function.hasher()
        self._size = 0
        try:
            self._fd = self._create()
        except OSError as error:
            raise home.failed(error, f"store blob {digest} in", path) from error

    def write(self, data: bytes | memoryview) -> None:
        """Append. Raises Corrupt as soon as there are more bytes than the digest says, Exhausted when the disk is full."""
        before = self._size
        self._size += len(data)
        if self._size > self._digest.size:
            raise Corrupt(
                f"blob {self._digest}: got {self._size} bytes or more; the digest says {self._digest.size}"
            )
        self._hasher.update(data)
        try:
            try:
                self._disk.write(self._fd, data)
            except OSError as error:
                if not is_full(error) or not self._home.make_room(self._digest.size - before):
                    raise
                # Some of it may have been written before the disk was full.
                done = os.lseek(self._fd, 0, os.SEEK_CUR) - before
                self._disk.write(self._fd, memoryview(data)[done:])
        except OSError as error:
            raise self._home.failed(error, f"store blob {self._digest} in", self._path) from error

    def commit(self) -> None:
        digest = self._digest
        if self._size != digest.size:
            raise Corrupt(f"blob {digest}: got {self._size} bytes; the digest says {digest.size}")
        if (found := self._hasher.digest()) != digest.hash:
            raise Corrupt(f"blob {digest}: the bytes have the {digest.function.name} hash {found.hex()}")
        try:
            self._home.publish(self._path, digest, local_only=self._local_only)
        except OSError as error:
            raise self._home.failed(error, f"store blob {digest} in", self._path) from error
        self._path = ""

    def __enter__(self) -> DiskWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)
        if self._path:
            try:
                self._disk.unlink(self._path)
            except OSError:
                pass  # It must not hide why we are here; the sweep at the next start finds it.

    def _create(self) -> int:
        try:
            return self._home.create(self._path, local_only=self._local_only)
        except OSError as error:
            if not is_full(error) or not self._home.make_room(self._digest.size):
                raise
            return self._home.create(self._path, local_only=self._local_only)
