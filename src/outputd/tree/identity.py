"""Inode numbers: given when somebody outside first sees a node, kept from then on, never given twice; and who knows them."""

from __future__ import annotations

from outputd.tree.node import Child, Directory, Node, Page, packed_ino, packed_numbered, unpack
from outputd.tree.outdate import outdate_record
from outputd.tree.rules import entries


def identify(node: Node, directory: Directory) -> int:
    """Give a node of `directory` that has none its inode number."""
    volume = node.volume if isinstance(node, Directory) else directory.volume
    node.ino = volume.next_ino
    volume.next_ino += 1
    outdate_record(directory)
    if node.parent is not None:  # else it has no name yet (O_TMPFILE), and with that its number will be told
        volume.log.identified(directory, node.ino, (node.name,))
    return node.ino


def identify_all(directory: Directory, names: list[bytes]) -> tuple[list[int], list[Child]]:
    """The entries of these names, which are there, each with its inode number now. Raises NotLoaded."""
    children = entries(directory)
    volume = directory.volume
    next_ino = volume.next_ino
    new: list[bytes] = []
    inos: list[int] = []
    found: list[Child] = []
    for name in names:
        child = children[name]
        ino = packed_ino(child) if isinstance(child, bytes) else child.ino
        if not ino:
            ino = next_ino  # of this volume: the root of another one has its number from the beginning
            next_ino += 1
            new.append(name)
            if isinstance(child, bytes):
                child = children[name] = packed_numbered(child, ino)
            else:
                child.ino = ino
        inos.append(ino)
        found.append(child)
    if new:
        first, volume.next_ino = volume.next_ino, next_ino
        outdate_record(directory)
        volume.log.identified(directory, first, new)
    return inos, found


def remember_all(directory: Directory, names: list[bytes]) -> tuple[list[int], list[Child]]:
    """As `identify_all`, and count one more kernel reference to each. A packed file becomes a node with the second only."""
    inos, found = identify_all(directory, names)
    inodes = directory.volume.inodes
    listed = inodes.listed
    page = Page(directory, names, inos)
    for index, (ino, child) in enumerate(zip(inos, found, strict=True)):
        if isinstance(child, bytes):
            if ino not in listed:
                listed[ino] = page
                continue
            child = found[index] = unpack(child, directory, names[index])
        elif not child.lookups:
            inodes[ino] = child
        child.lookups += 1
    return inos, found
