"""A disk that loses power at any call: what was not synced by then is there, or is not, or is there in part.

It works on a real directory, which stands for what running programs see. Beside it it remembers what was synced, and at every call
it makes images of what a machine may find after the power comes back. Names that were not synced are chosen one by one, old or new
(a rename as a whole); of bytes that were not synced there is a beginning, and what is missing is missing or zeros.

SQLite does not go through a Disk. Its files are taken as a pair: as of the last commit that it had synced, as of now, or with a
part of what was added to the write-ahead log since, of which its checksums know the end.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from outputd.disk.disk import RealDisk

T = TypeVar("T")

_DATABASE: Final = "state.db"
_LOG: Final = "state.db-wal"


@dataclass(frozen=True, slots=True)
class Image:
    """What is found after a power cut, and when that was."""

    moment: int
    """How many calls there had been."""
    call: str
    """The last one, or what had just been done."""
    acknowledged: int
    """`SimulatedDisk.acknowledged` at that moment."""
    files: dict[str, bytes]
    """By path from the top of the disk."""
    directories: set[str]

    def write(self, top: Path) -> None:
        """Put it into an empty directory."""
        for path in sorted(self.directories):
            (top / path).mkdir(parents=True, exist_ok=True)
        for path, data in self.files.items():
            (top / path).write_bytes(data)


@dataclass(slots=True)
class _Names:
    """What names lead to: files by inode number, directories."""

    files: dict[str, int] = field(default_factory=dict)
    directories: set[str] = field(default_factory=set)


class SimulatedDisk:
    """Implements Disk on the directory `top`."""

    def __init__(self, top: Path, seed: str, *, variants: int = 2, deaf: bool = False) -> None:
        """At each call `variants` images are made. A `deaf` disk forgets nothing but what it was told to sync."""
        self.images: list[Image] = []
        self.acknowledged = 0
        """To be counted up by whoever promises something."""
        self._real = RealDisk()
        self._top = os.path.realpath(top)
        self._random = random.Random(seed)
        self._variants = variants
        self._deaf = deaf
        self._moment = 0
        self._lock = threading.Lock()
        """Of everything below: calls come from several threads."""
        self._synced = _Names()
        self._bytes: dict[int, bytes] = {}
        """Of each inode what was synced."""
        self._database: dict[str, bytes] = {}
        """Its files as of the last synced commit."""
        self._held: dict[int, int] = {}
        """A descriptor of every inode ever seen, so that no number comes again."""

    def close(self) -> None:
        for fd in self._held.values():
            os.close(fd)

    def committed(self, path: str) -> None:
        """SQLite has synced a commit to the database at `path`."""
        if not self._deaf:
            with self._lock:
                self._database = {
                    self._name(path + suffix): Path(path + suffix).read_bytes()
                    for suffix in ("", "-wal")
                    if os.path.exists(path + suffix)
                }
        self.cut("commit")

    def cut(self, call: str) -> None:
        """Make images of what there is after a power cut now."""
        with self._lock:
            self._moment += 1
            now = self._look()
            self.images += [self._image(call, now) for _ in range(self._variants)]

    # Disk

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        return self._around(f"open {path}", lambda: self._real.open(path, flags, mode))

    def write(self, fd: int, data: bytes | bytearray | memoryview) -> None:
        self._around("write", lambda: self._real.write(fd, data))

    def copy(self, source: int, target: int) -> None:
        self._around("copy", lambda: self._real.copy(source, target))

    def allocate(self, fd: int, offset: int, size: int) -> None:
        self._around("allocate", lambda: self._real.allocate(fd, offset, size))

    def sync(self, fd: int) -> None:
        self._around("sync", lambda: self._note_sync(os.fstat(fd).st_ino, os.readlink(f"/proc/self/fd/{fd}")))

    def sync_file_system(self, fd: int) -> None:
        self._around("sync_file_system", self._note_sync_of_all)

    def chmod(self, path: str, mode: int) -> None:
        self._around(f"chmod {path}", lambda: self._real.chmod(path, mode))

    def rename(self, source: str, target: str) -> None:
        self._around(f"rename {source} {target}", lambda: self._real.rename(source, target))

    def unlink(self, path: str) -> None:
        self._around(f"unlink {path}", lambda: self._real.unlink(path))

    def make_directory(self, path: str, mode: int = 0o700) -> None:
        self._around(f"mkdir {path}", lambda: self._real.make_directory(path, mode))

    def remove_directory(self, path: str) -> None:
        self._around(f"rmdir {path}", lambda: self._real.remove_directory(path))

    def list(self, path: str) -> list[str]:
        return self._real.list(path)

    # within

    def _around(self, call: str, work: Callable[[], T]) -> T:
        self.cut(f"before {call}")
        result = work()
        self.cut(call)
        return result

    def _name(self, path: str) -> str:
        return os.path.relpath(path, self._top)

    def _look(self) -> _Names:
        names = _Names()
        for directory, _, files in os.walk(self._top):
            if directory != self._top:
                names.directories.add(self._name(directory))
            for file in files:
                path = f"{directory}/{file}"
                try:
                    fd = os.open(path, os.O_RDONLY)
                except FileNotFoundError:
                    continue  # another thread has just removed it
                number = os.fstat(fd).st_ino
                if self._held.setdefault(number, fd) != fd:
                    os.close(fd)
                names.files[self._name(path)] = number
        return names

    def _note_sync(self, number: int, path: str) -> None:
        if self._deaf:
            return
        with self._lock:
            now = self._look()
            if not os.path.isdir(path):
                self._bytes[number] = self._content(number)
                return
            here = self._name(path)
            kept = {name: n for name, n in self._synced.files.items() if os.path.dirname(name) != here}
            new = {name: n for name, n in now.files.items() if os.path.dirname(name) == here}
            self._synced.files = kept | new
            elsewhere = {name for name in self._synced.directories if os.path.dirname(name) != here}
            self._synced.directories = elsewhere | {n for n in now.directories if os.path.dirname(n) == here}

    def _note_sync_of_all(self) -> None:
        if not self._deaf:
            with self._lock:
                self._synced = self._look()
                for number in self._synced.files.values():
                    self._bytes[number] = self._content(number)

    def _content(self, number: int) -> bytes:
        fd = self._held[number]
        return os.pread(fd, os.fstat(fd).st_size, 0)

    def _image(self, call: str, now: _Names) -> Image:
        before, after = self._synced.files, now.files
        arrived = {
            number for number in sorted({*before.values(), *after.values()}) if self._random.random() < 0.5
        }
        files: dict[str, int] = {}
        for name in sorted({*before, *after}):
            old, new = before.get(name), after.get(name)
            if new is not None and (new == old or new in arrived):
                files[name] = new
            elif old is not None and (new is not None or old not in arrived):
                files[name] = old
        directories = {
            name
            for name in now.directories | self._synced.directories
            if (name in now.directories and name in self._synced.directories) or self._random.random() < 0.5
        }
        found = {
            name: self._found(number)
            for name, number in files.items()
            if os.path.dirname(name) in directories and not os.path.basename(name).startswith(_DATABASE)
        }
        found |= self._found_database(now)
        return Image(
            self._moment, call, self.acknowledged, found, directories | {os.path.dirname(f) for f in found}
        )

    def _found(self, number: int) -> bytes:
        """The bytes of a file."""
        now, synced = self._content(number), self._bytes.get(number, b"")
        if now == synced:
            return now
        if not now.startswith(synced):
            return self._random.choice((now, synced))
        return now[
            : self._random.choice((len(synced), len(now), self._random.randint(len(synced), len(now))))
        ]

    def _found_database(self, now: _Names) -> dict[str, bytes]:
        at_present = {
            name: self._content(number)
            for name, number in now.files.items()
            if os.path.basename(name) in (_DATABASE, _LOG)
        }
        if not self._database:
            return self._random.choice((at_present, {}))
        choice = self._random.randrange(3)
        if choice == 0:
            return self._database
        if choice == 1:
            return at_present
        torn = dict(at_present)
        for name, synced in self._database.items():
            log = at_present.get(name, b"")
            if name.endswith(_LOG) and log.startswith(synced):
                torn[name] = log[: self._random.randint(len(synced), len(log))]
        # Where the log was written back into the database since, what was synced is as it was.
        return (
            torn
            if all(torn.get(n) == d for n, d in self._database.items() if n.endswith(_DATABASE))
            else self._database
        )
