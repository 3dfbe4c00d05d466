"""Taking dropped subtrees apart, in small steps. Never decides that something is dropped: that is tree.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from outputd.tree.links import lose_name
from outputd.tree.node import Directory, File, Local, Node, unpack_nameless
from outputd.tree.outdate import outdate_holders

_STRIDE: Final = 128
"""Entries between two moments at which others may work."""


def dismantle(top: Node) -> Iterator[File | None]:
    """As `Tree.dismantle`."""
    if isinstance(top, File):
        if is_free(top):
            yield top
        return
    stack = [top]
    while stack:
        directory = stack.pop()
        if not isinstance(directory, Directory) or directory.children is None:
            continue
        children, directory.children = directory.children, {}
        directory.subdirectories = 0
        while children:
            # Taken out one by one: to free a table of 100,000 entries at once takes ten milliseconds.
            name, child = children.popitem()
            if isinstance(child, bytes) and directory.volume.inodes.knows(child):
                child = unpack_nameless(child, directory.volume)
            if isinstance(child, Directory):
                child.parent = None
                stack.append(child)
            elif isinstance(child, Node):
                lose_name(child, directory, name)
                if child.nlink:
                    outdate_holders(child, digests=False)  # the link count stands there
                elif isinstance(child, File) and is_free(child):
                    yield child
            if children and len(children) % _STRIDE == 0:
                yield None
        yield None


def is_free(file: File) -> bool:
    """Whether local bytes of a file are of no use to anybody any more: no name leads there, and the kernel does not know it."""
    return isinstance(file.content, Local) and file.nlink == 0 and file.lookups == 0
