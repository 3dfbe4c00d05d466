"""A small tree that can be sealed, and opened again as after a restart."""

from __future__ import annotations

from outputd.digest import Digest, DigestFunction
from outputd.tree.merkle import Sealed
from outputd.tree.node import FILE_MODE, Directory, File, Local, Node
from outputd.tree.status import Status
from outputd.tree.tree import Tree
from tests.unit.tree.kept import SHA256, Kept
from tests.unit.tree.world import EMPTY


class SavedWorld:
    """A tree whose volume can be sealed and opened again."""

    def __init__(self) -> None:
        self.tree = Tree(uid=1000, gid=1000, now=1)
        self.volume = self.tree.add_volume(1, b"base", 1)
        self.kept = Kept()
        self.now = 1
        self.number = 1

    @property
    def root(self) -> Directory:
        return self.volume.root

    def tick(self) -> int:
        self.now += 1
        return self.now

    def at(self, path: bytes) -> Directory:
        directory = self.root
        for name in filter(None, path.split(b"/")):
            node = self.kept.run(lambda name=name, d=directory: self.tree.lookup(d, name))  # type: ignore[misc]
            assert isinstance(node, Directory)
            directory = node
        return directory

    def place(self, path: bytes, node: Node) -> Node:
        """Enter a node, making directories on the way."""
        directory, name = self.parent(path)
        self.kept.run(lambda: self.tree.place(directory, name, node, self.tick()))
        return node

    def parent(self, path: bytes) -> tuple[Directory, bytes]:
        *steps, name = path.split(b"/")
        directory = self.root
        for step in steps:
            directory = self.kept.run(
                lambda d=directory, step=step: self.tree.descend(d, step, self.tick())  # type: ignore[misc]
            )
        return directory, name

    def file(self, path: bytes, content: Digest | Local = EMPTY, mode: int = FILE_MODE) -> File:
        file = File(mode, self.tick(), content)
        self.place(path, file)
        return file

    def node(self, path: bytes) -> Node:
        parent, _, name = path.rpartition(b"/")
        directory = self.at(parent)
        node = self.kept.run(lambda: self.tree.lookup(directory, name))
        assert node is not None
        return node

    def link(self, old: bytes, new: bytes) -> None:
        directory, name = self.parent(new)
        node = self.node(old)
        assert self.kept.run(lambda: self.tree.link(node, directory, name, self.tick())) is Status.OK

    def unlink(self, path: bytes) -> None:
        parent, _, name = path.rpartition(b"/")
        directory = self.at(parent)
        assert self.kept.run(lambda: self.tree.unlink(directory, name, self.tick())) is Status.OK

    def seal(self, function: DigestFunction = SHA256) -> Sealed:
        return self.kept.seal(self.tree, self.volume, function)

    def sealed_now(self) -> int:
        """How many directories sealing takes now."""
        before = self.kept.sealed
        self.seal()
        return self.kept.sealed - before

    def reopen(self) -> None:
        """What a restart does."""
        sealed = self.seal()
        self.number += 1
        self.tree, self.volume = self.kept.reopen(self.volume, sealed, self.number)
        self.kept.loaded.clear()
