"""Expanding: a collapsed directory gets its children as nodes, from a decoded listing and its attribute record."""

from __future__ import annotations

from typing import NamedTuple

from outputd.digest import Digest
from outputd.errors import Corrupt
from outputd.tree.node import (
    DIRECTORY_MODE,
    EXECUTABLE_MODE,
    FILE_MODE,
    NO_RECORD,
    Directory,
    File,
    Node,
    Symlink,
)
from outputd.tree.records import apply_record
from outputd.tree.status import Status
from outputd.tree.tree import check_name


class Listing(NamedTuple):
    """The entries of a REv2 Directory message, in its order, names and targets as bytes."""

    files: list[tuple[bytes, Digest, bool]]
    directories: list[tuple[bytes, Digest]]
    symlinks: list[tuple[bytes, bytes]]


def expand(directory: Directory, listing: Listing, record: bytes | None) -> None:
    """Give a collapsed directory its children. Digest and record stay known: nothing has changed.

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
    subdirectories = len(directories)
    if record is not None:
        leftovers = apply_record(record, directory, (files, directories, symlinks))
        names.extend(leftovers)
        children.update(leftovers)
        subdirectories += sum(isinstance(node, Directory) for node in leftovers.values())
    if len(children) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Corrupt(f"Directory message: the name {twice!r} stands in it twice")
    for name in names:
        if check_name(name) is not Status.OK:
            raise Corrupt(f"Directory message: {name[:300]!r} cannot be the name of an entry")
    for name, node in children.items():
        if node.extra is not None and node.extra.nlink > 1 and isinstance(node, File):
            known = volume.linked.setdefault(node.ino, node)
            if known is not node:
                assert known.extra is not None
                known.extra.linked = known.extra.linked or []
                known.extra.linked.append((directory, name))
                children[name] = known
                continue
        node.parent = directory
        node.name = name
    directory.children = children
    directory.subdirectories = subdirectories
    directory.tree = None
