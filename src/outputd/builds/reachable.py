"""What output paths need: the blobs, Directory messages and attribute records that can be reached from their roots. Moves nothing.

Directories are walked where they are in memory, else by their messages as far as these lie on this machine; what does not lie here
the remote has, with all that is in it. Who renames during the walk could carry a name past it, so it ends with a pass over all that
is unsealed, in one turn of the event loop: a change anywhere below a directory takes its digest and record away (tree/outdate.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, Protocol

from outputd.builds.pace import Pace
from outputd.digest import Digest
from outputd.drive.loader import decode_tree, decoding_directory
from outputd.drive.slices import at_once
from outputd.errors import Corrupt
from outputd.store.base import LocalStore
from outputd.store.marks import Marks
from outputd.tree.expand import expand
from outputd.tree.node import DIRECTORY_MODE, Child, Directory, Volume, blob_of

_log = logging.getLogger(__name__)

_MAX_MESSAGE: Final = 64 << 20
"""Bytes of the largest Directory or Tree message that is looked into."""


class Messages(Protocol):
    """Where Directory messages and attribute records lie. Looking at one here does not count as a use of it."""

    def peek_directory(self, digest: Digest) -> bytes | None: ...
    def peek_record(self, digest: bytes) -> bytes | None: ...


class _Place(NamedTuple):
    """A directory to be walked, as it was when its parent was."""

    directory: Directory
    digest: Digest | None
    record: bytes | None

    @classmethod
    def of(cls, directory: Directory) -> _Place:
        return cls(directory, directory.digest, directory.record)

    @property
    def sealed(self) -> bool:
        """What it holds is named by digest and record, and everything below as well."""
        return self.digest is not None and self.record is not None


class Reachable:
    """Collects marks from roots."""

    def __init__(self, messages: Messages, local: LocalStore) -> None:
        self.marks: Final = Marks()
        self._messages = messages
        self._local = local
        self._walked: set[bytes] = set()
        """Digest and record of the sealed directories that were walked."""

    async def walk(self, roots: Iterable[Directory]) -> None:
        """Mark all that is below these. Raises Unavailable or Corrupt when the state database cannot be read."""
        pace = Pace()
        stack = [_Place.of(root) for root in roots]
        while stack:
            self._visit(stack.pop(), stack)
            if pace.due:
                await pace.turn()

    def finish(self, roots: Iterable[Directory]) -> None:
        """The last pass, over the roots of everything that may have changed since it was walked. As `walk`."""
        stack = [_Place.of(root) for root in roots]
        while stack:
            self._visit(stack.pop(), stack)

    def _visit(self, place: _Place, stack: list[_Place]) -> None:
        directory, digest, record = place
        add = self.marks.add
        if digest is not None:
            add(digest)
        if record:
            add(record)
        if place.sealed:
            key = (digest or b"") + (record or b"")
            if key in self._walked:
                return
            self._walked.add(key)
        children: Mapping[bytes, Child]
        if directory.children is not None and _Place.of(directory) == place:
            children = directory.children
        elif digest is not None:
            children = self._read(digest, record)
        else:
            children = {}
        if directory.tree is not None and (digest is None or not children):
            self._mark_tree(directory.tree)
        for node in children.values():
            blob = blob_of(node)
            if blob is not None:
                add(blob)
            elif isinstance(node, Directory):
                stack.append(_Place.of(node))

    def _read(self, digest: Digest, record: bytes | None) -> Mapping[bytes, Child]:
        """The entries of a collapsed directory; none when its message does not lie here."""
        message = self._messages.peek_directory(digest)
        if message is None and digest.size <= _MAX_MESSAGE:
            message = self._local.read(digest)
        if message is None:
            return {}
        aside = _collapsed()
        try:
            attributes = self._messages.peek_record(record) if record else None
            expand(aside, at_once(decoding_directory(digest, message)), attributes)
        except Corrupt as error:
            _log.warning("a directory cannot be looked into, what it alone names may go: %s", error)
        return aside.children or {}

    def _mark_tree(self, tree: Digest) -> None:
        """A staged Tree that nobody has looked into."""
        self.marks.add(tree)
        if tree.size > _MAX_MESSAGE or (data := self._local.read(tree)) is None:
            return
        try:
            for digest, message in decode_tree(tree, data)[1].items():
                self.marks.add(digest)
                for _, file, _ in at_once(decoding_directory(digest, message)).files:
                    self.marks.add(file)
        except Corrupt as error:
            _log.warning("a Tree cannot be looked into, what it alone names may go: %s", error)


def _collapsed() -> Directory:
    """A directory that lies in no tree, to be expanded."""
    made = Directory(DIRECTORY_MODE, 0, Volume(0, 0, writable=False))
    made.children = None
    return made
