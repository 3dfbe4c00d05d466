"""Inode numbers: given when somebody outside first sees a node, kept from then on, never given twice. Counts no references."""

from __future__ import annotations

from collections.abc import Iterable

from outputd.tree.node import Directory, Node, PackedFile
from outputd.tree.outdate import outdate_record
from outputd.tree.rules import entries


def identify(node: Node, directory: Directory) -> int:
    """Give a node of `directory` that has none its inode number."""
    volume = node.volume if isinstance(node, Directory) else directory.volume
    node.ino = volume.next_ino
    volume.next_ino += 1
    outdate_record(directory)
    volume.log.identified(directory, node.ino, (node.name,))
    return node.ino


def identify_all(directory: Directory, names: Iterable[bytes]) -> list[Node]:
    """The nodes at these names, which are there, each with its inode number. Raises NotLoaded."""
    children = entries(directory)
    volume = directory.volume
    ino = volume.next_ino
    nodes: list[Node] = []
    new: list[bytes] = []
    node: Node | None = None
    for name in names:
        child = children[name]
        node = child.unpack(directory, name, node) if isinstance(child, PackedFile) else child
        if not node.ino:
            node.ino = ino  # of this volume: the root of another one has its number from the beginning
            ino += 1
            new.append(name)
        nodes.append(node)
    if new:
        first, volume.next_ino = volume.next_ino, ino
        outdate_record(directory)
        volume.log.identified(directory, first, new)
    return nodes
