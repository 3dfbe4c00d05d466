"""Which blobs a power cut may have damaged: those that changed after the last sync before it; never reads a blob itself.

Blobs get their names without being synced, so after a power cut a file may be shorter than it was, or have its length and zeros
in it. The file `synced` keeps the time up to which everything stored was synced, and the id of the kernel's boot: at a start in
another boot, every blob whose ctime is later is in doubt until its bytes were hashed once. rename(2), chmod(2) and utimensat(2) all
move the ctime, so no blob can be younger than it looks. What was verified is remembered until all that was in doubt is settled.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from typing import Final

from outputd.digest import Digest
from outputd.disk.atomic import replace_file, sync_directory
from outputd.disk.boot import boot_id
from outputd.disk.disk import Disk
from outputd.store.room import is_full

_log = logging.getLogger(__name__)

_UNKNOWN: Final = bytes(16).hex()
"""The boot id of a system that has none."""
_NEVER: Final = 1 << 63
_CLOCK_STEP: Final = 1_000_000_000
"""Nanoseconds that a ctime may lie before the clock's time of the call: the kernel's coarse clock, generously."""


class Doubt:
    """The record of one store. For any number of threads."""

    def __init__(self, path: str, disk: Disk, *, fresh: bool, boot: str | None = None) -> None:
        """`fresh`: the store was made just now. `boot` stands for the kernel's boot id, in hex. Raises OSError."""
        self._path = path
        self._disk = disk
        self._boot = boot_id().hex() if boot is None else boot
        self._lock = threading.Lock()
        """Guards the fields below, but for reading one."""
        self._synced = 0
        """Nanoseconds since 1970: whatever has an earlier ctime is on the disk."""
        self._verified: set[Digest] = set()
        """Blobs that are in no doubt any more, for as long as there is doubt."""
        self.trusted_until = self._trusted_until(fresh)
        """Nanoseconds since 1970: blobs with a later ctime are in doubt; beyond all times where none is."""
        self._write(clean=False)

    @property
    def pending(self) -> bool:
        """Whether there is any."""
        return self.trusted_until != _NEVER

    def settled(self, digest: Digest) -> bool:
        """Whether a blob with a late ctime was verified, or written, by this process."""
        return digest in self._verified

    def settle(self, digest: Digest) -> None:
        """A blob was verified, or written just now."""
        with self._lock:
            if self.pending:
                self._verified.add(digest)

    def synced(self, began: int) -> None:
        """Everything that was stored at `began` (nanoseconds since 1970) is on the disk. Raises OSError."""
        with self._lock:
            self._synced = began - _CLOCK_STEP
            self._write(clean=False)

    def all_settled(self) -> None:
        """Everything in doubt was verified. Raises OSError."""
        with self._lock:
            self.trusted_until = _NEVER
            self._verified.clear()
            self._write(clean=False)

    def closed(self) -> None:
        """Everything is synced and nothing will come any more. Raises OSError."""
        with self._lock:
            self._write(clean=True)

    def _trusted_until(self, fresh: bool) -> int:
        """What the record of the last run says. Without one, nothing is trusted."""
        if fresh:
            self._synced = time.time_ns() - _CLOCK_STEP
            return _NEVER
        try:
            with open(self._path, encoding="ascii") as file:
                boot, synced, trusted, clean = file.read(500).split()
            self._synced, trusted_until = int(synced), int(trusted)
        except FileNotFoundError:
            return 0
        except ValueError as error:
            _log.warning("%s cannot be understood (%s): every blob will be hashed once", self._path, error)
            return 0
        if clean == "clean":
            self._synced = time.time_ns() - _CLOCK_STEP
            return trusted_until
        if boot == self._boot != _UNKNOWN:
            return trusted_until  # what an earlier power cut left in doubt still is
        return min(trusted_until, self._synced)

    def _write(self, *, clean: bool) -> None:
        words = f"{self._boot} {self._synced} {self.trusted_until} {'clean' if clean else 'open'}\n"
        try:
            replace_file(self._disk, self._path, words.encode("ascii"))
        except OSError as error:
            if not is_full(error):
                raise
            # On a full disk everything else must go on. The old words may be wrong by now; without any, all is in doubt.
            _log.warning(
                "%s cannot be written (%s): after a power cut every blob would be hashed",
                self._path,
                error.strerror,
            )
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink(self._path)
            sync_directory(self._disk, os.path.dirname(self._path))
