"""What seals leave behind, kept in memory, and the way back: a stand-in for drive's loader and the state on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction
from outputd.tree.expand import Listing, expand
from outputd.tree.merkle import Sealed, seal
from outputd.tree.node import (
    Directory,
    File,
    Local,
    Node,
    Special,
    Symlink,
    Volume,
    unpacked,
)
from outputd.tree.records import Reader, encode_leftover, record_digest
from outputd.tree.status import NotLoaded
from outputd.tree.tree import Tree

T = TypeVar("T")

SHA256 = DigestFunction.SHA256


class Kept:
    """A Sink, and what loads from it. Refuses what is not canonical or does not match its digest."""

    def __init__(self) -> None:
        self.directories: dict[Digest, bytes] = {}
        self.records: dict[bytes, bytes] = {}
        self.sealed = 0
        """Directories sealed so far."""
        self.loaded: list[Directory] = []

    def directory(self, digest: Digest, message: bytes) -> None:
        self.sealed += 1
        assert digest == Digest.of(digest.function, message)
        assert canonical(message) == message
        self.directories[digest] = message

    def record(self, digest: bytes, record: bytes) -> None:
        assert digest == record_digest(record)
        self.records[digest] = record

    def load(self, directory: Directory) -> None:
        digest = directory.digest
        assert digest is not None
        record = self.records[directory.record] if directory.record else None
        expand(directory, listing(digest.function, self.directories[digest]), record)
        self.loaded.append(directory)

    def run(self, operation: Callable[[], T]) -> T:
        """Try, load, try again."""
        while True:
            try:
                return operation()
            except NotLoaded as need:
                self.load(need.directory)

    def load_all(self, directory: Directory) -> None:
        if directory.children is None:
            self.load(directory)
        assert directory.children is not None
        for node in directory.children.values():
            if isinstance(node, Directory):
                self.load_all(node)

    def seal(self, tree: Tree, volume: Volume, function: DigestFunction = SHA256) -> Sealed:
        while (lacking := tree.lacking(volume)) is not None:
            self.load(lacking)
        for step in seal(volume.root, function, self):
            if isinstance(step, Sealed):
                return step
        raise AssertionError("no result")

    def reopen(self, volume: Volume, sealed: Sealed, number: int = 77) -> tuple[Tree, Volume]:
        """The volume after a restart: another tree, in which the root is collapsed."""
        tree = Tree(uid=1000, gid=1000, now=1)
        again = tree.add_volume(number, volume.root.name or b"base", 1)
        _, root = Reader(encode_leftover(b"", volume.root, *sealed)).leftover(again)
        assert isinstance(root, Directory)
        for name in ("mode", "mtime", "ctime", "extra", "children", "digest", "record"):
            setattr(again.root, name, getattr(root, name))
        return tree, again


def canonical(message: bytes) -> bytes:
    """The Directory message as protobuf writes it, its lists sorted as REv2 demands; raises unless it is one."""
    directory = reapi.Directory.FromString(message)
    for entries in (directory.files, directory.directories, directory.symlinks):
        names = [entry.name for entry in entries]
        assert names == sorted(names, key=str.encode)
    return directory.SerializeToString(deterministic=True)


def listing(function: DigestFunction, message: bytes) -> Listing:
    decoded = reapi.Directory.FromString(message)

    def digest(d: reapi.Digest) -> Digest:
        return Digest.parse(function, d.hash, d.size_bytes)

    return Listing(
        [(f.name.encode(), digest(f.digest), f.is_executable) for f in decoded.files],
        [(d.name.encode(), digest(d.digest)) for d in decoded.directories],
        [(s.name.encode(), s.target.encode()) for s in decoded.symlinks],
    )


def collapsed(
    volume: Volume, digest: Digest | None, *, tree: Digest | None = None, now: int = 1
) -> Directory:
    """A directory as it is staged by digest."""
    directory = Directory(0o040755, now, volume)
    directory.children = None
    directory.digest = digest
    directory.tree = tree
    directory.record = b""
    return directory


def content(node: Node) -> object:
    """What a node holds, comparable over a restart."""
    if isinstance(node, File):
        return (node.content.key, node.content.size) if isinstance(node.content, Local) else node.content
    if isinstance(node, Symlink):
        return node.target
    return node.rdev if isinstance(node, Special) else None


def picture(kept: Kept, tree: Tree, directory: Directory, path: bytes = b"") -> dict[bytes, object]:
    """Everything one can see of a tree, by path; loads what is not loaded."""
    if not path:
        kept.load_all(directory)
    assert directory.children is not None
    seen: dict[bytes, object] = {}
    nodes = {
        name: unpacked(child) if isinstance(child, bytes) else child
        for name, child in directory.children.items()
    }
    for name, node in nodes.items():
        extra = node.extra
        seen[path + name] = (
            type(node),
            node.mode,
            node.ino,
            node.mtime,
            node.ctime,
            None if extra is None else extra.atime,
            tree.owner(node),
            extra.xattrs if extra is not None else None,
            content(node),
        )
        if isinstance(node, Directory):
            seen |= picture(kept, tree, node, path + name + b"/")
    seen[path + b"/links"] = {
        name: 1 if isinstance(child, bytes) else child.nlink for name, child in directory.children.items()
    }
    return seen


def check(volume: Volume) -> None:
    """The invariants of everything in memory below a volume's root."""
    names: dict[Node, list[tuple[Directory, bytes]]] = {}
    stack = [volume.root]
    while stack:
        directory = stack.pop()
        children = directory.children
        assert children is not None
        assert directory.subdirectories == sum(isinstance(node, Directory) for node in children.values())
        for name, node in children.items():
            if isinstance(node, bytes):
                continue
            names.setdefault(node, []).append((directory, name))
            if isinstance(node, Directory):
                assert node.volume is volume
                assert node.children is not None or node.digest is not None or node.tree is not None
                assert directory.record is None or node.record is not None, name
                assert directory.digest is None or node.children is None or node.digest is not None, name
                if node.children is not None:
                    stack.append(node)
            elif isinstance(node, File) and isinstance(node.content, Local):
                assert directory.digest is None
    for node, places in names.items():
        assert node.parent is not None
        linked = [] if node.extra is None else node.extra.linked or []
        assert sorted([(node.parent, node.name), *linked], key=str) == sorted(places, key=str)
        if not isinstance(node, Directory):
            assert node.nlink >= len(places)
            assert (volume.linked.get(node.ino) is node) is (node.nlink > 1)
    for node in volume.linked.values():
        assert node.nlink > 1 or node.parent is None
        if node.parent is None:
            assert node.nlink >= 1 and node not in names
