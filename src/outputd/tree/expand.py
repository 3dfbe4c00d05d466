"""Expanding: a collapsed directory gets its children as nodes, from a decoded listing and its attribute record."""

from __future__ import annotations

from typing import NamedTuple

from outputd.digest import Digest
from outputd.errors import Corrupt
from outputd.tree.links import meet
from outputd.tree.node import (
    DIRECTORY_MODE,
    EXECUTABLE_MODE,
    FILE_MODE,
    NO_RECORD,
    Directory,
    File,
    Local,
    Node,
    Symlink,
)
from outputd.tree.outdate import outdate_digest
from outputd.tree.records import apply_record
from outputd.tree.rules import check_name
from outputd.tree.status import Status


class Listing(NamedTuple):
    """The entries of a REv2 Directory message, in its order, names and targets as bytes."""

    files: list[tuple[bytes, Digest, bool]]
    directories: list[tuple[bytes, Digest]]
    symlinks: list[tuple[bytes, bytes]]


def expand(directory: Directory, listing: Listing, record: bytes | None) -> None:
    """Give a collapsed directory its children. Digest and record stay known, for nothing has changed; but not where they say of a
    hard-linked node what is true no more, nor where local bytes lie.

    Raises Corrupt, and changes nothing, when the listing is not a possible directory (REv2: names are single components, unique
    over all three lists) or the record does not belong to it.
    """
    if directory.children is not None:
        return
    mtime = directory.mtime
    volume = directory.volume
    files: list[Node] = [
        File(EXECUTABLE_MODE if executable else FILE_MODE, mtime, digest)
        for _, digest, executable in listing.files
    ]
    directories: list[Node] = []
    for _, digest in listing.directories:
        child = Directory(DIRECTORY_MODE, mtime, volume)
        child.children = None
        child.digest = digest
        child.record = NO_RECORD
        directories.append(child)
    symlinks: list[Node] = [Symlink(target, mtime) for _, target in listing.symlinks]
    names = [entry[0] for group in listing for entry in group]
    children: dict[bytes, Node] = dict(zip(names, (*files, *directories, *symlinks), strict=True))
    leftovers: dict[bytes, Node] = {}
    if record is not None:
        leftovers = apply_record(record, directory, (files, directories, symlinks))
        names.extend(leftovers)
        children.update(leftovers)
        directories.extend(node for node in leftovers.values() if isinstance(node, Directory))
    _check(names, children, listing)

    outdated = False
    for name, node in children.items():
        if node.extra is not None and node.extra.nlink > 1:
            known = meet(node, directory, name)
            outdated = outdated or not _agree(known, node)
            children[name] = known
        else:
            node.parent = directory
            node.name = name
    directory.children = children
    directory.subdirectories = len(directories)
    directory.tree = None
    volume.unmet.pop(directory, None)
    for node in directories:
        if isinstance(node, Directory) and node.links:
            volume.unmet[node] = None
    # Local bytes may change without a word, so where they lie no digest lasts (merkle.py); that must hold now as before.
    if outdated or any(
        isinstance(node, File) and isinstance(node.content, Local) for node in leftovers.values()
    ):
        outdate_digest(directory)


def _check(names: list[bytes], children: dict[bytes, Node], listing: Listing) -> None:
    """Raises Corrupt unless these can be the entries of a directory."""
    if len(children) != len(names):
        seen: set[bytes] = set()
        for name in names:
            if name in seen:
                raise Corrupt(f"Directory message: the name {name[:300]!r} stands in it twice")
            seen.add(name)
    for name in names:
        if check_name(name) is not Status.OK:
            raise Corrupt(f"Directory message: {name[:300]!r} cannot be the name of an entry")
    for name, target in listing.symlinks:
        if not target or b"\0" in target:
            raise Corrupt(
                f"Directory message: symlink {name!r} has the target {target[:300]!r}, expected a path"
            )


def _agree(known: Node, recorded: Node) -> bool:
    """Whether a record still says the truth of a hard-linked node."""
    return known is recorded or _said(known) == _said(recorded)


def _said(node: Node) -> tuple[object, ...]:
    extra = node.extra
    assert extra is not None
    content = node.content if isinstance(node, File) else node.target if isinstance(node, Symlink) else None
    attributes = (extra.atime, extra.uid, extra.gid, extra.nlink, extra.xattrs, extra.blocks)
    return node.mode, node.mtime, node.ctime, content, attributes
