"""Expanding: a collapsed directory gets its children as nodes, from a decoded listing and its attribute record.

Files of which nothing is known but what a packed file says become that, all other entries nodes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Final, NamedTuple

from outputd.digest import Digest
from outputd.errors import Corrupt
from outputd.tree.links import meet
from outputd.tree.node import (
    DIRECTORY_MODE,
    EXECUTABLE_MODE,
    FILE_MODE,
    NO_RECORD,
    Child,
    Directory,
    File,
    Local,
    Node,
    PackedFile,
    Symlink,
    pack,
    packable,
    packed_tail,
)
from outputd.tree.outdate import outdate_digest
from outputd.tree.records import Recorded, decode_record
from outputd.tree.rules import check_name
from outputd.tree.status import Status

_SLICE: Final = 256
"""Entries between two steps."""


class Listing(NamedTuple):
    """The entries of a REv2 Directory message, in its order, names and targets as bytes."""

    files: list[tuple[bytes, Digest, bool]]
    directories: list[tuple[bytes, Digest]]
    symlinks: list[tuple[bytes, bytes]]


def expand(directory: Directory, listing: Listing, record: bytes | None) -> None:
    """`expanding`, at a stretch."""
    for _ in expanding(directory, listing, record):
        pass


def expanding(directory: Directory, listing: Listing, record: bytes | None) -> Generator[None, None, None]:
    """Give a collapsed directory its children, with the last of many steps; no change if it has got others meanwhile.

    Digest and record stay known, for nothing has changed; but not where they say of a hard-linked node what is true no more, nor
    where local bytes lie. Raises Corrupt, and changes nothing, when the listing is not a possible directory (REv2: names are single
    components, unique over all three lists) or the record does not belong to it.
    """
    if _expanded(directory):
        return
    volume = directory.volume
    recorded: Recorded | None = None
    if record is not None:
        recorded = yield from decode_record(
            record, volume, len(listing.files), len(listing.directories), len(listing.symlinks)
        )
    children: dict[bytes, Child] = {}
    maker = _Maker(directory, recorded)
    for count, (name, child) in enumerate(maker.entries(listing), 1):
        _check_name(name, children, "Directory message")
        children[name] = child
        if count % _SLICE == 0:
            yield
    leftovers = {} if recorded is None else recorded.leftovers
    for name, node in leftovers.items():
        _check_name(name, children, "attribute record")
        maker.enter(name, node)
        children[name] = node
    if _expanded(directory):
        return  # it was emptied meanwhile
    outdated = False
    for name, node in maker.linked:
        known = meet(node, directory, name)
        outdated = outdated or not _agree(known, node)
        children[name] = known
    directory.children = children
    directory.subdirectories = maker.subdirectories
    directory.tree = None
    volume.unmet.pop(directory, None)
    for below in maker.unmet:
        volume.unmet[below] = None
    volume.inodes.meet(directory)
    # Local bytes may change without a word, so where they lie no digest lasts (merkle.py); that must hold now as before.
    if outdated or any(
        isinstance(node, File) and isinstance(node.content, Local) for node in leftovers.values()
    ):
        outdate_digest(directory)


def _check_name(name: bytes, children: dict[bytes, Child], where: str) -> None:
    if name in children:
        raise Corrupt(f"{where}: the name {name[:300]!r} stands in it twice")
    if check_name(name) is not Status.OK:
        raise Corrupt(f"{where}: {name[:300]!r} cannot be the name of an entry")


def _expanded(directory: Directory) -> bool:
    return directory.children is not None


class _Maker:
    """Makes the entries of one directory."""

    def __init__(self, directory: Directory, recorded: Recorded | None) -> None:
        self._directory = directory
        self._recorded = recorded
        self._mtime = directory.mtime
        self._tails: tuple[bytes, bytes] | None = None
        """Of packed files with no attributes of their own, not executable and executable, if these can be packed."""
        if recorded is None and packable(self._mtime) == self._mtime:
            self._tails = (
                packed_tail(self._mtime, executable=False),
                packed_tail(self._mtime, executable=True),
            )
        self.linked: list[tuple[bytes, Node]] = []
        """Names of hard-linked nodes, which may be known already."""
        self.unmet: list[Directory] = []
        """Subdirectories with names of hard-linked nodes."""
        self.subdirectories = 0

    def entries(self, listing: Listing) -> Iterator[tuple[bytes, Child]]:
        """What is in the message, in its order."""
        index = 0
        for name, digest, executable in listing.files:
            yield name, self._file(index, name, digest, executable)
            index += 1
        for place, (name, digest) in enumerate(listing.directories):
            yield name, self._subdirectory(index, place, name, digest)
            index += 1
        for name, target in listing.symlinks:
            if not target or b"\0" in target:
                raise Corrupt(
                    f"Directory message: symlink {name!r} has the target {target[:300]!r}, expected a path"
                )
            symlink = Symlink(target, self._mtime)
            self._apply(index, symlink)
            self.enter(name, symlink)
            yield name, symlink
            index += 1

    def enter(self, name: bytes, node: Node) -> None:
        """Note what is to be done with a node when the directory gets its children."""
        if node.extra is not None and node.extra.nlink > 1:
            self.linked.append((name, node))
            return
        node.parent = self._directory
        node.name = name
        if isinstance(node, Directory):
            self.subdirectories += 1
            if node.links:
                self.unmet.append(node)

    def _file(self, index: int, name: bytes, digest: Digest, executable: bool) -> Child:
        if self._tails is not None:
            return PackedFile(digest + self._tails[executable])
        recorded = self._recorded
        if recorded is not None and index not in recorded.extras:
            mtime = recorded.mtimes[index]
            if recorded.ctimes[index] == mtime:
                packed = pack(recorded.modes[index], mtime, digest, recorded.inos[index])
                if packed is not None:
                    return packed
        file = File(EXECUTABLE_MODE if executable else FILE_MODE, self._mtime, digest)
        self._apply(index, file)
        self.enter(name, file)
        return file

    def _subdirectory(self, index: int, place: int, name: bytes, digest: Digest) -> Directory:
        made = Directory(DIRECTORY_MODE, self._mtime, self._directory.volume)
        made.children = None
        made.digest = digest
        made.record = NO_RECORD
        if self._recorded is not None:
            made.record = self._recorded.below[place]
            made.links = bool(self._recorded.links[place])
            made.tree = self._recorded.trees.get(place)
        self._apply(index, made)
        self.enter(name, made)
        return made

    def _apply(self, index: int, node: Node) -> None:
        """Give a node its recorded attributes."""
        recorded = self._recorded
        if recorded is None:
            return
        node.mode = recorded.modes[index]
        node.ino = recorded.inos[index]
        node.mtime = mtime = recorded.mtimes[index]
        ctime = recorded.ctimes[index]
        node.ctime = mtime if ctime == mtime else ctime
        node.extra = recorded.extras.get(index)


def _agree(known: Node, recorded: Node) -> bool:
    """Whether a record still says the truth of a hard-linked node."""
    return known is recorded or _said(known) == _said(recorded)


def _said(node: Node) -> tuple[object, ...]:
    extra = node.extra
    assert extra is not None
    content = node.content if isinstance(node, File) else node.target if isinstance(node, Symlink) else None
    attributes = (extra.atime, extra.uid, extra.gid, extra.nlink, extra.xattrs, extra.blocks)
    return node.mode, node.mtime, node.ctime, content, attributes
