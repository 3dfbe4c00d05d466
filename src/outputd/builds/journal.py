"""The journal of one output path: every change since its last checkpoint, in a file that a SIGKILL cannot take back.

A record is copied into a shared mapping of the file before the change is answered: that costs no system call, and the pages are the
kernel's, not ours, so that they outlive the process. They are not synced: a journal counts only within one boot of the machine, and
after a power cut an output path is as its last checkpoint says (docs/explanation/durability.md).

A file begins with _MARK, the boot id and a record of what the output path is. A record is its length, a CRC-32, and what it says
(replay.py reads it). The length is written last: where it is zero, the journal ends.
"""

from __future__ import annotations

import errno
import json
import logging
import mmap
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from outputd.digest import Digest
from outputd.disk.disk import Disk
from outputd.errors import Corrupt, Exhausted, OutputdError, Unavailable
from outputd.tree.node import Child, Directory, File, Local, Node, PackedFile
from outputd.tree.records import encode_leftover
from outputd.tree.status import Status

_log = logging.getLogger(__name__)

_MARK: Final = b"outputd journal 1\n"
_RECORDS_FROM: Final = 64
"""Where the first record begins."""
RECORD: Final = struct.Struct("<II")  # length of what follows, CRC-32 of it
CHANGE: Final = struct.Struct("<BIq")  # what, number of the directory, nanoseconds since 1970
STAGING: Final = struct.Struct("<IB")  # files, bytes of each packed one
NAME: Final = struct.Struct("<H")
MOVE: Final = struct.Struct("<IIHH")  # flags, number of the target directory, lengths of the two names

# First byte of a record.
ENTERED: Final = 1
RENEWED: Final = 2
STAGED: Final = 3
LINKED: Final = 4
REMOVED: Final = 5
MOVED: Final = 6
CLEARED: Final = 7
CHANGED: Final = 8
IDENTIFIED: Final = 9
ADOPTING: Final = 10
DIRECTORY: Final = 11
FACTS: Final = 12
FINALIZED: Final = 13

ROOT: Final = 0
"""Number of the output path's root directory."""
NOWHERE: Final = 0xFFFFFFFF

_FIRST: Final = 128 << 10
_LARGEST_GROWTH: Final = 16 << 20
_RESERVE: Final = 64 << 10
"""Bytes kept for changes that add nothing, when the file cannot grow any more; and more than a slice of staged files takes."""
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_RETRY: Final = 1.0
"""Seconds between two attempts to let a file grow on a full disk."""


class Journal:
    """Implements the tree's Log. Written on the event loop; never raises but where it says so."""

    def __init__(
        self, path: str, sequence: int, disk: Disk, boot: bytes, facts: Callable[[], dict[str, Any]]
    ) -> None:
        """The file is made with the first record, or by `create`, and begins with the `facts` of that moment."""
        self.path = path
        self.sequence = sequence
        self._disk = disk
        self._boot = boot
        self._facts = facts
        self._map: mmap.mmap | None = None
        self._fd = -1
        self._at = _RECORDS_FROM
        self._size = 0
        self._refused = 0.0
        """When the disk last refused to let the file grow, by time.monotonic(); 0: it did not, or may be asked again."""
        self._refusal: OutputdError | None = None
        """Why it did; None once it does not any more."""
        self._lost = False
        """Something could not be written, so what comes later could not be played back."""
        self._closed = False
        self._numbers: dict[Directory, int] = {}
        self._next_number = ROOT + 1
        self._staged_in: Directory | None = None
        """The directory of the packed files below, which one record will say."""
        self._staged_number = NOWHERE
        self._staged_at = 0
        self._staged_size = 0
        self._staged_names: list[bytes] = []
        self._staged: list[PackedFile] = []

    def check_room(self) -> None:
        """For what does not go through the rules of the tree. Raises Exhausted or Unavailable where `room` is not OK."""
        if self.room is not Status.OK:
            assert self._refusal is not None
            raise self._refusal

    def create(self) -> None:
        """Make the file now. Raises Exhausted or Unavailable."""
        if self._map is None and not self._closed:
            try:
                self._fd = self._disk.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                try:
                    self._grow(_FIRST)[: len(_MARK) + 16] = _MARK + self._boot
                except BaseException:
                    os.close(self._fd)
                    self._fd = -1
                    with suppress(OSError):
                        self._disk.unlink(self.path)
                    raise
            except OSError as error:
                raise self._failed(error) from error
            self.note(self._facts())

    def close(self) -> None:
        """Take nothing more. The file stays."""
        self.settle()
        self._closed = True
        self._numbers.clear()
        if self._map is not None:
            self._map.close()
            self._map = None
            os.close(self._fd)

    @property
    def exists(self) -> bool:
        """Whether anything was written."""
        return self._at > _RECORDS_FROM

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._at - _RECORDS_FROM

    @property
    def incomplete(self) -> bool:
        """Something could not be written: only a checkpoint makes the output path safe again."""
        return self._lost

    # what is no change of the tree

    def note(self, facts: dict[str, Any]) -> None:
        """Facts about the output base and its build, to replace those of the same names."""
        self.settle()
        self._append(bytes((FACTS,)) + json.dumps(facts).encode())

    def finalized(self, entries: bytes) -> None:
        """Paths were finalized (finalized.py has the form)."""
        self._append(bytes((FINALIZED,)) + entries)

    # Log

    @property
    def room(self) -> Status:
        if self._refused and time.monotonic() - self._refused > _RETRY:
            self._refused = 0.0
        if self._map is None and not self._refused:
            try:
                self.create()
            except OutputdError as error:
                self._refuse(error)
        elif self._size - self._at < _RESERVE and not self._refused:
            self._try_to_grow(0)
        if not self._refused:
            return Status.OK
        return Status.NO_ROOM if isinstance(self._refusal, Exhausted) else Status.READ_ONLY

    def entered(self, directory: Directory, name: bytes, child: Child, now: int) -> None:
        if isinstance(child, bytes):
            if directory is not self._staged_in or now != self._staged_at or len(child) != self._staged_size:
                self.settle()
                # Now, for by the time of `settle` it may be gone, or have another name.
                self._staged_number = self._number(directory)
                self._staged_in, self._staged_at, self._staged_size = directory, now, len(child)
            self._staged_names.append(name)
            self._staged.append(child)
        else:
            self._change(ENTERED, directory, now, _entry(name, child))

    def renewed(self, directory: Directory, name: bytes, node: Node) -> None:
        self._change(RENEWED, directory, 0, _entry(name, node))

    def linked(self, node: Node, directory: Directory, name: bytes, now: int) -> None:
        if node.parent is None:
            # Its other names lie in directories that are not loaded: a restart finds a file of its own.
            self.entered(directory, name, node, now)
            return
        number = self._number(node.parent)
        head = MOVE.pack(0, number, len(name), len(node.name))
        self._change(LINKED, directory, now, head + name + node.name)

    def removed(self, directory: Directory, name: bytes, now: int) -> None:
        self._change(REMOVED, directory, now, name)

    def moved(
        self, source: Directory, old: bytes, target: Directory, new: bytes, flags: int, now: int
    ) -> None:
        head = MOVE.pack(flags, self._number(target), len(old), len(new))
        self._change(MOVED, source, now, head + old + new)

    def cleared(self, directory: Directory, now: int) -> None:
        self._change(CLEARED, directory, now, b"")

    def changed(self, node: Node) -> None:
        directory = node.parent
        if isinstance(node, Directory) and node.volume.root is node:
            self._change(CHANGED, node, 0, _entry(b"", node))
        elif directory is not None:
            self._change(CHANGED, directory, 0, _entry(node.name, node))

    def identified(self, directory: Directory, first: int, names: Sequence[bytes]) -> None:
        if (
            self.room is Status.OK
        ):  # else they get other numbers after a crash: the reserve is for what matters more
            self._change(IDENTIFIED, directory, first, b"/".join(names))

    def adopting(self, file: File, digest: Digest) -> None:
        assert isinstance(file.content, Local)
        if file.parent is not None:
            body = NAME.pack(len(file.name)) + file.name + digest
            self._change(ADOPTING, file.parent, file.content.key, body)

    def settle(self) -> None:
        if self._staged_in is not None:
            names, files = self._staged_names, self._staged
            self._staged_in, self._staged_names, self._staged = None, [], []
            head = STAGING.pack(len(names), self._staged_size)
            body = b"".join((head, bytes(map(len, names)), *names, *files))
            if self._staged_number != NOWHERE:
                self._append(CHANGE.pack(STAGED, self._staged_number, self._staged_at) + body)

    # within

    def _change(self, what: int, directory: Directory, now: int, body: bytes) -> None:
        if self._staged_in is not None:
            self.settle()
        number = self._numbers.get(directory)
        if number is None:
            number = self._number(directory)
        if number != NOWHERE:
            self._append(CHANGE.pack(what, number, now) + body)

    def _number(self, directory: Directory) -> int:
        """What stands for a directory in this file; told when it is first needed, by its name as of now.

        NOWHERE for one that was removed, which somebody still looks into.
        """
        number = self._numbers.get(directory)
        if number is not None:
            return number
        if directory.volume.root is directory:
            number = ROOT
        else:
            above = NOWHERE if directory.parent is None else self._number(directory.parent)
            if above == NOWHERE:
                return NOWHERE
            number = self._next_number
            self._next_number += 1
            self._append(CHANGE.pack(DIRECTORY, above, number) + directory.name)
        self._numbers[directory] = number
        return number

    def _append(self, body: bytes) -> None:
        if self._map is None and not self._make_room(0):
            return
        end = self._at + RECORD.size + len(body)
        # Always room for one more length: the zero that ends the journal.
        if end + RECORD.size > self._size and not self._make_room(end + RECORD.size):
            return
        mapping = self._map
        assert mapping is not None
        at = self._at
        mapping[at + RECORD.size : end] = body
        # The length last: a process that is killed in between leaves a journal that ends here.
        RECORD.pack_into(mapping, at, 0, zlib.crc32(body))
        mapping[at : at + 4] = len(body).to_bytes(4, "little")
        self._at = end

    def _make_room(self, size: int) -> bool:
        """Whether `size` bytes fit; else what could not be written, and all that follows, is lost to a restart."""
        if self._closed or self._lost:
            return False
        try:
            if self._map is None:
                self.create()
            if size > self._size:
                self._grow(size)
        except OSError as error:
            self._lose(self._failed(error))
            return False
        except OutputdError as error:
            self._lose(error)
            return False
        return True

    def _lose(self, error: OutputdError) -> None:
        self._lost = True
        self._refuse(error)
        _log.error("%s: a crash would lose a change, and what follows until the next checkpoint", self.path)

    def _try_to_grow(self, size: int) -> None:
        try:
            self._grow(size)
        except OSError as error:
            self._refuse(self._failed(error))

    def _refuse(self, error: OutputdError) -> None:
        self._refused = time.monotonic()
        if self._refusal is None:  # told once, however often it is tried
            _log.error("nothing can be added to the output path: %s", error)
        self._refusal = error

    def _failed(self, error: OSError) -> OutputdError:
        """What a failed system call means."""
        if error.errno not in _NO_ROOM:
            return Unavailable(f"journal {self.path}: {error.strerror}")
        try:
            room = os.statvfs(os.path.dirname(self.path))
            left = f"{room.f_bavail * room.f_frsize} bytes and {room.f_favail} files are left"
        except OSError:
            left = "the room left is not known"
        return Exhausted(f"journal {self.path}: {error.strerror}; {left} on its file system; free some")

    def _grow(self, size: int) -> mmap.mmap:
        """Let the file have at least `size` bytes and some more; the mapping. Raises OSError; then it is as before.

        The blocks are allocated here: to write to a mapping of a file with holes on a full disk is SIGBUS.
        """
        grown = max(2 * self._size, _FIRST)
        grown = min(grown, self._size + _LARGEST_GROWTH)
        while grown < size:
            grown += _FIRST
        try:
            self._disk.allocate(self._fd, self._size, grown - self._size)
        except OSError as error:
            grown = max(size, self._size + _FIRST)
            if error.errno not in _NO_ROOM or not self._size:
                raise
            self._disk.allocate(self._fd, self._size, grown - self._size)  # the least that is worth it
        mapping = mmap.mmap(self._fd, grown)
        if self._map is not None:
            self._map.close()
        self._map = mapping
        self._size = grown
        self._refused, self._refusal = 0.0, None
        return mapping


def facts_of(record: bytes) -> dict[str, Any]:
    """What `note` wrote. Raises Corrupt."""
    try:
        facts = json.loads(record[1:])
    except ValueError as error:
        raise Corrupt(f"journal: {error}") from error
    if not isinstance(facts, dict):
        raise Corrupt("journal: facts are no table")
    return facts


def _entry(name: bytes, node: Node) -> bytes:
    if isinstance(node, Directory):
        if node.children is not None:
            return encode_leftover(name, node)
        return encode_leftover(name, node, node.digest or b"", node.record or b"")
    return encode_leftover(name, node)


def read_journal(path: str, boot: bytes) -> Iterator[bytes]:
    """What a journal of this boot says, record by record, up to where it ends or cannot be read; of another boot's, nothing.

    Raises Corrupt when it is no journal, or of a version that we do not know; Unavailable.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(_RECORDS_FROM)
            if not head.strip(b"\0"):
                return  # the process was killed when it was about to begin
            if not head.startswith(_MARK):
                raise Corrupt(f"journal {path}: does not begin with {_MARK!r}")
            if head[len(_MARK) : len(_MARK) + 16] != boot:
                return
            while len(record := file.read(RECORD.size)) == RECORD.size:
                length, crc = RECORD.unpack(record)
                if not length:
                    return
                body = file.read(length)
                if len(body) != length or zlib.crc32(body) != crc:
                    _log.error("journal %s: cannot be read from byte %d on", path, file.tell() - len(body))
                    return
                yield body
    except OSError as error:
        raise Unavailable(f"journal {path}: {error.strerror}") from error
