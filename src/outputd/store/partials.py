"""The directory of blobs of which only some bytes are here; each is open once, for all who read it. Never fetches.

Those that nobody reads are left for later, for a day, and go first when the disk is full.
"""

from __future__ import annotations

import os
import time
from typing import Final

from outputd.digest import Digest
from outputd.disk.atomic import make_directories
from outputd.disk.boot import boot_id
from outputd.disk.disk import Disk
from outputd.errors import Exhausted, OutputdError, Unavailable
from outputd.store.partial import MAP, PartialBlob
from outputd.store.room import is_full

_KEPT: Final = 24 * 3600.0
"""Seconds for which one that nobody reads is kept."""


class Partials:
    """Safe for any number of threads, but for `open`."""

    def __init__(self, directory: str, disk: Disk) -> None:
        """Make it if need be, and remove what is too old. Raises Unavailable."""
        self._directory = directory
        self._disk = disk
        self._boot = boot_id()
        self._open: dict[str, None] = {}
        try:
            make_directories(disk, directory)
            self._sweep(time.time() - _KEPT)
        except OSError as error:
            raise self._failed(error) from error

    def open(self, digest: Digest) -> PartialBlob:
        """The bytes of a blob that are here; `closed` is to be called when it is closed. Raises Exhausted or Unavailable."""
        name = f"{digest.function.lower}-{digest.hash_hex}-{digest.size}"
        try:
            opened = PartialBlob(f"{self._directory}/{name}", digest, self._disk, self._boot)
        except OSError as error:
            raise self._failed(error) from error
        self._open[name] = None
        return opened

    def closed(self, partial: PartialBlob) -> None:
        """It is not open any more."""
        self._open.pop(os.path.basename(partial.path), None)

    def relieve(self, _: int) -> bool:
        """The disk is full: remove all that nobody has open; whether that freed anything. For any thread."""
        try:
            return self._sweep(time.time()) > 0
        except OSError:
            return False  # who asks finds the disk as full as it was, and says so

    def _sweep(self, before: float) -> int:
        """Remove what was last read before a time, in seconds since 1970; bytes freed. Raises OSError."""
        freed = 0
        for name in self._disk.list(self._directory):
            if name.removesuffix(MAP) in self._open:
                continue
            path = f"{self._directory}/{name}"
            try:
                status = os.stat(path)
                if status.st_mtime < before:
                    self._disk.unlink(path)
                    freed += status.st_blocks * 512
            except FileNotFoundError:
                continue
        return freed

    def _failed(self, error: OSError) -> OutputdError:
        kind = Exhausted if is_full(error) else Unavailable
        return kind(f"{self._directory}: {error.strerror}")
