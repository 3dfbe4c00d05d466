"""What the kernel knows from an earlier process, and nobody has looked for yet: by parent and name, till its directory is expanded.

So nothing is loaded for what nobody asks for; and since every change of a name needs its directory expanded, name and parent are
never outdated.
"""

from __future__ import annotations

from outputd.tree.node import (
    Child,
    Directory,
    Inodes,
    Node,
    Page,
    Searched,
    packed_ino,
    packed_numbered,
    unpack,
)
from outputd.tree.status import NotLoaded


class Identity:
    """What an earlier process told the kernel of a node that has a name."""

    __slots__ = ("lookups", "name", "negatives", "parent")

    def __init__(self, parent: int, name: bytes, lookups: int, negatives: set[bytes] | None = None) -> None:
        self.parent = parent
        """Inode number of the directory."""
        self.name = name
        self.lookups = lookups
        """References the kernel holds; 0 for a directory that is only on the way to others."""
        self.negatives = negatives
        """As `Directory.negatives`."""


class KernelInodes(Inodes):
    """All that the kernel knows of one tree. Subscription raises NotLoaded for what is still to take its identity back."""

    __slots__ = ("awaited",)

    def __init__(self) -> None:
        super().__init__()
        self.awaited: dict[int, Identity] = {}
        """By inode number; a number stands here, in `listed` or in the table itself, never in two of them."""

    def __missing__(self, ino: int) -> Node:
        if ino in self.listed:
            return super().__missing__(ino)
        at = ino
        while (identity := self.awaited.get(at)) is not None:
            parent = self.get(identity.parent)
            if parent is None:
                at = identity.parent
                continue
            if isinstance(parent, Directory) and parent.children is None:
                raise NotLoaded(parent)
            self._meet(parent, identity.name, at)
            if at in self.awaited:
                break  # something else is there
            if at == ino:
                return self[ino]
            at = ino
        raise KeyError(ino)

    def meet(self, directory: Directory) -> None:
        """The entries of a directory came into memory: the kernel may know some of them."""
        awaited, children = self.awaited, directory.children
        if not awaited or not children:
            return
        page = Page(directory, [], [])
        for name, child in list(children.items()):
            identity = awaited.get(number_of(child))
            if identity is None:
                continue
            if isinstance(child, bytes) and identity.lookups == 1:
                ino = packed_ino(child)
                page.names.append(name)
                page.inos.append(ino)
                self.listed[ino] = page
                del awaited[ino]
            else:
                self._meet(directory, name, number_of(child))

    def meet_below(self, top: Directory) -> None:
        """As `meet`, for all that is in memory below a directory."""
        stack = [top]
        while stack and self.awaited:
            directory = stack.pop()
            self.meet(directory)
            stack.extend(node for node in (directory.children or {}).values() if isinstance(node, Directory))

    def meet_directories(self, top: Directory) -> None:
        """The directories that are in memory below one; other nodes when they are asked for."""
        stack = [top]
        while stack and self.awaited:
            directory = stack.pop()
            for name, child in (directory.children or {}).items():
                if isinstance(child, Directory):
                    if child.ino in self.awaited:
                        self._meet(directory, name, child.ino)
                    stack.append(child)

    def forget_unmet(self, ino: int, count: int) -> None:
        """As `Tree.forget`, for what is no node in memory."""
        listed = self.listed
        if listed.pop(ino, None) is not None:
            if not listed:
                listed.clear()  # gives back the room of what was in it
            return
        identity = self.awaited.get(ino)
        if identity is not None:
            # It stays with no reference: it may lead to others.
            identity.lookups = max(0, identity.lookups - count)
            identity.negatives = None

    def known(self) -> dict[int, Identity]:
        """What is no node in memory, those of a listing included."""
        found = dict(self.awaited)
        for page in {id(page): page for page in self.listed.values()}.values():
            for ino, name in zip(page.inos, page.names, strict=True):
                if self.listed.get(ino) is page:
                    found[ino] = Identity(page.directory.ino, name, 1)
        return found

    def _meet(self, directory: Node, name: bytes, ino: int) -> None:
        assert isinstance(directory, Directory) and directory.children is not None
        child = directory.children.get(name)
        if child is None and isinstance(directory, Searched):
            child = directory.find(name)
        if child is None:
            return
        if not (child if isinstance(child, Directory) else directory).volume.saved and not number_of(child):
            # It was made anew, and is what it was: its name says all of it.
            if isinstance(child, bytes):
                child = directory.children[name] = packed_numbered(child, ino)
            else:
                child.ino = ino
        if number_of(child) != ino:
            return
        identity = self.awaited.pop(ino)
        node = unpack(child, directory, name) if isinstance(child, bytes) else child
        node.lookups += identity.lookups
        self[ino] = node
        if isinstance(node, Directory):
            node.negatives = identity.negatives


def number_of(child: Child) -> int:
    """Inode number, 0 until somebody outside has seen it."""
    return packed_ino(child) if isinstance(child, bytes) else child.ino
