"""Plays a journal back on an output path that is in the state the journal began with. Waits only to load directories.

What cannot be played back (a directory whose message is nowhere, a record that makes no sense) is logged and left out, and nothing
else is: each record stands for itself.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from outputd.builds import journal as j
from outputd.builds.loading import Loading
from outputd.builds.pace import Pace
from outputd.digest import Digest
from outputd.errors import Corrupt, OutputdError
from outputd.tree.node import (
    Directory,
    Extra,
    File,
    Local,
    Node,
    PackedFile,
    Special,
    Symlink,
    Volume,
    packed_ino,
    packed_numbered,
)
from outputd.tree.outdate import outdate_record
from outputd.tree.records import Reader
from outputd.tree.rules import entries, is_below
from outputd.tree.status import NotLoaded, Status
from outputd.tree.tree import Tree

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Replayed:
    """What a journal says beside the changes of the tree."""

    facts: dict[str, Any] = field(default_factory=dict)
    """The last of each name (journal.py, `note`)."""
    finalized: list[bytes] = field(default_factory=list)
    """What was finalized, in order (finalized.py has the form)."""
    adopted: list[tuple[File, int, Digest]] = field(default_factory=list)
    """Files that were about to become blobs, with their former private key."""
    records: int = 0
    left_out: int = 0


class Replay:
    """Of one output path, which nobody else changes meanwhile."""

    def __init__(self, tree: Tree, volume: Volume, loading: Loading) -> None:
        self._tree = tree
        self._volume = volume
        self._loading = loading
        self._directories: dict[int, Directory] = {}
        self._apply: dict[int, Callable[[Directory, int, bytes], None]] = {
            j.ENTERED: self._entered,
            j.RENEWED: self._renewed,
            j.STAGED: self._staged,
            j.LINKED: self._linked,
            j.REMOVED: self._removed,
            j.MOVED: self._moved,
            j.CLEARED: self._cleared,
            j.CHANGED: self._changed,
            j.IDENTIFIED: self._identified,
            j.ADOPTING: self._adopting,
            j.DIRECTORY: self._directory,
        }
        self.replayed = Replayed()

    async def run(self, records: Iterable[bytes]) -> None:
        """Play one file back, after the one before it."""
        self._directories = {j.ROOT: self._volume.root}
        pace = Pace()
        for record in records:
            self.replayed.records += 1
            try:
                await self._play(record)
            except (OutputdError, KeyError, ValueError, struct.error) as error:
                self.replayed.left_out += 1
                _log.error(
                    "output path %s: record %d of its journal is left out: %s",
                    self._volume.root.name.decode(errors="backslashreplace"),
                    self.replayed.records,
                    error if isinstance(error, OutputdError) else f"{type(error).__name__} {error}",
                )
            self._tree.stale.clear()  # nobody has seen the tree yet
            dropped, self._tree.dropped = self._tree.dropped, []
            for node in dropped:
                for _ in self._tree.dismantle(node):
                    pass  # private files that nobody needs are swept when all is played back
            if pace.due:
                await pace.turn()

    async def _play(self, record: bytes) -> None:
        kind = record[0]
        if kind == j.FACTS:
            self.replayed.facts |= j.facts_of(record)
        elif kind == j.FINALIZED:
            self.replayed.finalized.append(record[1:])
        else:
            _, number, when = j.CHANGE.unpack_from(record)
            apply = self._apply[kind]
            body = record[j.CHANGE.size :]
            directory = self._directories[number]
            if not is_below(directory, self._volume.root):
                return  # it was removed, and somebody still looked into it
            # First without a task's worth of detour: nearly everything is in memory.
            try:
                apply(directory, when, body)
            except NotLoaded:
                found = await self._loading.run(lambda: apply(directory, when, body))
                if isinstance(found, OutputdError):
                    raise found from None

    def _directory(self, above: Directory, number: int, name: bytes) -> None:
        node = self._tree.lookup(above, name)
        if not isinstance(node, Directory):
            raise Corrupt(f"{name!r} is no directory")
        self._directories[number] = node

    def _entered(self, directory: Directory, now: int, entry: bytes) -> None:
        _need(directory)
        name, node = self._entry(entry)
        self._tree.place(directory, name, node, now)

    def _renewed(self, directory: Directory, _: int, entry: bytes) -> None:
        _need(directory)
        mtime, ctime = directory.mtime, directory.ctime
        name, node = self._entry(entry)
        self._tree.place(directory, name, node, mtime)
        directory.mtime, directory.ctime = mtime, ctime

    def _staged(self, directory: Directory, now: int, body: bytes) -> None:
        _need(directory)
        count, size = j.STAGING.unpack_from(body)
        at = j.STAGING.size + count
        lengths = body[j.STAGING.size : at]
        files = at + sum(lengths)
        for length in lengths:
            name, at = body[at : at + length], at + length
            self._tree.place(directory, name, PackedFile(body[files : files + size]), now)
            files += size

    def _linked(self, directory: Directory, now: int, body: bytes) -> None:
        _, number, length, _ = j.MOVE.unpack_from(body)
        names = body[j.MOVE.size :]
        node = self._node(self._directories[number], names[length:])
        _need(directory)
        _expect(self._tree.link(node, directory, names[:length], now))

    def _removed(self, directory: Directory, now: int, name: bytes) -> None:
        self._tree.withdraw(directory, name, now)

    def _moved(self, source: Directory, now: int, body: bytes) -> None:
        flags, number, length, _ = j.MOVE.unpack_from(body)
        names = body[j.MOVE.size :]
        target = self._directories[number]
        _need(source)
        _need(target)
        _expect(self._tree.rename(source, names[:length], target, names[length:], flags, now))

    def _cleared(self, directory: Directory, now: int, _: bytes) -> None:
        self._tree.clear(directory, now)

    def _changed(self, directory: Directory, _: int, entry: bytes) -> None:
        name, said = self._entry(entry)
        node = self._node(directory, name) if name else directory
        if type(node) is not type(said):
            raise Corrupt(f"{name!r} is a {type(node).__name__}, and was a {type(said).__name__}")
        if isinstance(node, Directory) and node.children is None and node.mtime != said.mtime:
            raise NotLoaded(node)  # entries without a time of their own show the directory's
        node.mode, node.ino = said.mode, said.ino
        node.mtime, node.ctime = said.mtime, said.ctime
        names = (1, None) if node.extra is None else (node.extra.nlink, node.extra.linked)
        node.extra = said.extra
        if names != (1, None) or node.extra is not None:
            node.extra = node.extra or Extra()
            node.extra.nlink, node.extra.linked = names
        if isinstance(node, File) and isinstance(said, File):
            blocks = None if node.extra is None else node.extra.blocks
            self._tree.set_content(node, said.content)
            if blocks is not None:
                node.note_blocks(blocks)
        elif isinstance(node, Symlink | Special | Directory):
            self._tree.outdate_attributes(node)

    def _identified(self, directory: Directory, first: int, names: bytes) -> None:
        for ino, name in enumerate(names.split(b"/"), first):
            child = self._tree.children(directory).get(name)
            if child is None:
                raise Corrupt(f"there is no {name!r}")
            if not isinstance(child, bytes):
                child.ino = ino
            elif not packed_ino(child):
                entries(directory)[name] = packed_numbered(child, ino)
        outdate_record(directory)

    def _adopting(self, directory: Directory, key: int, body: bytes) -> None:
        name, digest = _named_digest(body)
        node = self._node(directory, name)
        if isinstance(node, File) and isinstance(node.content, Local) and node.content.key == key:
            self._tree.set_content(node, digest)
            self.replayed.adopted.append((node, key, digest))

    def _node(self, directory: Directory, name: bytes) -> Node:
        node = self._tree.lookup(directory, name)
        if node is None:
            raise Corrupt(f"there is no {name!r}")
        return node

    def _entry(self, entry: bytes) -> tuple[bytes, Node]:
        reader = Reader(entry)
        name, node = reader.leftover(self._volume)
        reader.end()
        return name, node


def _need(directory: Directory) -> None:
    if directory.children is None:
        raise NotLoaded(directory)


def _expect(status: Status) -> None:
    if status is not Status.OK:
        raise Corrupt(f"refused: {status.value}")


def _named_digest(body: bytes) -> tuple[bytes, Digest]:
    (length,) = j.NAME.unpack_from(body)
    at = j.NAME.size + length
    return body[j.NAME.size : at], Digest(body[at:])
