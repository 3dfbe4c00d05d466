"""The directory of blobs of which only some bytes are here; each is open once, for all who read it. Never fetches.

Those that nobody reads stay until room is wanted, as blobs of the local store do, and count as such (eviction.py). The machine's
boot ends their use: nothing of them was synced.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from outputd.digest import Digest, DigestFunction
from outputd.disk.boot import boot_id
from outputd.disk.disk import Disk
from outputd.errors import Invalid, OutputdError
from outputd.store.partial import MAP, PartialBlob, Room


@dataclass(frozen=True, slots=True)
class Part:
    """A blob of which some bytes are here."""

    digest: Digest
    room: int
    """Bytes it takes on the disk."""
    used: float
    """When it was open for the last time, in seconds since 1970."""
    open: bool


class Home(Room, Protocol):
    """The store that they belong to."""

    def failed(self, error: OSError, doing: str, path: str) -> OutputdError: ...


class Partials:
    """Safe for any number of threads."""

    def __init__(self, directory: str, disk: Disk, home: Home) -> None:
        """`load` is to be called before anything else."""
        self._directory = directory
        self._disk = disk
        self._home = home
        self._boot = boot_id()
        self._lock = threading.RLock()
        """Held while one is opened, or removed."""
        self._open: dict[Digest, PartialBlob] = {}
        self._idle: dict[Digest, Part] = {}

    def load(self) -> None:
        """Find what an earlier run of this boot has left, and remove what no reader can use any more. Raises OSError."""
        names = set(self._disk.list(self._directory))
        for name in names:
            digest = _digest(name)
            path = f"{self._directory}/{name}"
            if digest is not None and name + MAP in names and self._usable(path):
                used = max(os.stat(path).st_mtime, os.stat(path + MAP).st_mtime)
                self._idle[digest] = Part(digest, self._room(digest) or 0, used, open=False)
        kept = {_name(digest) for digest in self._idle}
        for name in names:
            if name.removesuffix(MAP) not in kept:
                try:
                    self._disk.unlink(f"{self._directory}/{name}")
                except FileNotFoundError:
                    continue  # another process uses the store, and was first

    def open(self, digest: Digest) -> PartialBlob:
        """The bytes of a blob that are here; `closed` is to be called when it is closed. Raises Exhausted or Unavailable."""
        path = self._path(digest)
        with self._lock:
            try:
                opened = PartialBlob(path, digest, self._disk, self._boot, self._home)
            except OSError as error:
                raise self._home.failed(error, "open the partial blob", path) from error
            self._idle.pop(digest, None)
            self._open[digest] = opened
        return opened

    def closed(self, partial: PartialBlob) -> None:
        """It is not open any more; its bytes may have become a blob of the store."""
        digest = partial.digest
        with self._lock:
            del self._open[digest]
            room = self._room(digest)
            if room is not None:
                self._idle[digest] = Part(digest, room, time.time(), open=False)

    def open_to_read(self, digest: Digest) -> int | None:
        """A descriptor of the bytes of a blob that are here, holes where they are not; None when none are. Raises OSError."""
        try:
            return self._disk.open(self._path(digest), os.O_RDONLY)
        except FileNotFoundError:
            return None

    def list(self) -> Sequence[Part]:
        """All of them. Costs a stat(2) for each that is open."""
        with self._lock:
            now = time.time()
            busy = [Part(digest, self._room(digest) or 0, now, open=True) for digest in self._open]
            return [*self._idle.values(), *busy]

    def has(self, digest: Digest) -> bool:
        """Whether some bytes of this blob are here."""
        return digest in self._idle or digest in self._open

    def remove(self, digest: Digest, unused_since: float | None = None) -> int | None:
        """Remove one, unless it is open, or was since some time (seconds since 1970). The bytes of room that this freed; None when
        it stays. Raises Unavailable."""
        with self._lock:
            part = self._idle.get(digest)
            if part is None or (unused_since is not None and part.used > unused_since):
                return None
            path = self._path(digest)
            try:
                # The map last: bytes without it count for nothing, and without the bytes it is found and removed.
                for gone in (path, path + MAP):
                    try:
                        self._disk.unlink(gone)
                    except FileNotFoundError:
                        continue
            except OSError as error:
                raise self._home.failed(error, "remove the partial blob", path) from error
            del self._idle[digest]
            return part.room

    def _usable(self, path: str) -> bool:
        try:
            return PartialBlob.is_of_boot(path, self._disk, self._boot)
        except FileNotFoundError:
            return False

    def _room(self, digest: Digest) -> int | None:
        try:
            return os.stat(self._path(digest)).st_blocks * 512
        except FileNotFoundError:
            return None

    def _path(self, digest: Digest) -> str:
        return f"{self._directory}/{_name(digest)}"


def _name(digest: Digest) -> str:
    return f"{digest.function.lower}-{digest.hash_hex}-{digest.size}"


def _digest(name: str) -> Digest | None:
    """What a file is of, by its name; None for a file that is of another sort."""
    function, _, rest = name.partition("-")
    hash_hex, _, size = rest.partition("-")
    try:
        return Digest.parse(DigestFunction[function.upper()], hash_hex, int(size))
    except (KeyError, ValueError, Invalid):
        return None
