"""A small tree to try operations on."""

from __future__ import annotations

from outputd.digest import Digest, DigestFunction
from outputd.tree.node import (
    FILE_MODE,
    Directory,
    File,
    Local,
    Node,
)
from outputd.tree.status import Status
from outputd.tree.tree import Tree

EMPTY = Digest.of(DigestFunction.SHA256, b"")
OTHER = Digest.of(DigestFunction.SHA256, b"other")


class World:
    """A tree with one volume, and a clock that moves with every operation."""

    def __init__(self) -> None:
        self.tree = Tree(uid=1000, gid=1000, now=1)
        self.volume = self.tree.add_volume(1, b"base", 1)
        self.root = self.volume.root
        self.now = 1
        self.tree.stale.clear()

    def tick(self) -> int:
        self.now += 1
        return self.now

    def file(
        self, name: bytes, directory: Directory | None = None, content: Digest | Local | None = None
    ) -> File:
        node = File(FILE_MODE, self.tick(), content if content is not None else EMPTY)
        assert self.enter(name, node, directory) is Status.OK
        return node

    def enter(self, name: bytes, node: Node, directory: Directory | None = None) -> Status:
        return self.tree.create(directory or self.root, name, node, uid=1000, gid=1000, now=self.tick())

    def mkdir(self, name: bytes, directory: Directory | None = None) -> Directory:
        made = self.tree.make_directory(
            directory or self.root, name, 0o755, uid=1000, gid=1000, now=self.tick()
        )
        assert isinstance(made, Directory)
        return made

    def link(self, node: Node, name: bytes, directory: Directory | None = None) -> Status:
        return self.tree.link(node, directory or self.root, name, self.tick())

    def unlink(self, name: bytes, directory: Directory | None = None) -> Status:
        return self.tree.unlink(directory or self.root, name, self.tick())

    def rename(
        self,
        old: bytes,
        new: bytes,
        flags: int = 0,
        *,
        source: Directory | None = None,
        target: Directory | None = None,
    ) -> Status:
        return self.tree.rename(source or self.root, old, target or self.root, new, flags, self.tick())

    def freed(self) -> list[int]:
        """Keys of the private files that drive may delete now, taking what was dropped."""
        dropped, self.tree.dropped = self.tree.dropped, []
        files = [file for node in dropped for file in self.tree.dismantle(node) if file is not None]
        return [file.content.key for file in files if isinstance(file.content, Local)]

    def remember(self, node: Node) -> int:
        assert node.parent is not None
        return self.tree.remember(node, node.parent)


def known(*directories: Directory) -> list[bool]:
    return [directory.digest is not None for directory in directories]
