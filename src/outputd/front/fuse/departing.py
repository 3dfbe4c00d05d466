"""What is taken along when another process goes on serving the mount: the kernel's side of the tree. Changes nothing in it.

To be called while nothing moves: no request is read and no call runs. What has a name is known by that name, for it was saved with
its inode number; what has none goes over in full.
"""

from __future__ import annotations

from collections.abc import Iterator

from outputd.digest import Digest, DigestFunction
from outputd.front.fuse.handover import Nameless
from outputd.tree.inodes import Identity
from outputd.tree.node import Directory, File, Node
from outputd.tree.records import encode_leftover
from outputd.tree.tree import Tree

_NOTHING = Digest.of(DigestFunction.SHA256, b"")
"""A directory without a name is empty, or is being emptied."""


def number_ancestors(tree: Tree) -> None:
    """Give each directory above a node that the kernel knows its inode number: before the tree is saved, for that is where it is
    kept."""
    for ino in [ino for ino, page in tree.inodes.listed.items() if not _in_tree(tree, page.directory)]:
        tree.inodes[ino]  # from here on it is a node, without a name
    directories = {id(page): page.directory for page in tree.inodes.listed.values()}
    for node in [*tree.inodes.values(), *directories.values()]:
        if isinstance(node, Directory) and node.parent is not None:
            tree.identify(node, node.parent)
        for directory, parent in _ancestry(node):
            tree.identify(directory, parent)


def identities(tree: Tree) -> dict[int, Identity]:
    """Everything the kernel knows that has a name, and the directories on the way there."""
    found = tree.inodes.known()
    directories = {id(page): page.directory for page in tree.inodes.listed.values()}
    for node in [*tree.inodes.values(), *directories.values()]:
        if node.parent is None or not _in_tree(tree, node):
            continue
        found[node.ino] = _identity(node)
        for directory, _ in _ancestry(node):
            if directory.ino in found:
                break  # and so are all above
            found[directory.ino] = _identity(directory)
    return found


def nameless(tree: Tree) -> list[Nameless]:
    """Everything the kernel knows that has no name."""
    return [
        Nameless(
            node.lookups,
            encode_leftover(b"", node, _NOTHING)
            if isinstance(node, Directory)
            else encode_leftover(b"", node),
            tree.nameless[node].root.ino if isinstance(node, File) and node in tree.nameless else 0,
        )
        for node in tree.inodes.values()
        if not _in_tree(tree, node)
    ]


def _identity(node: Node) -> Identity:
    assert node.parent is not None
    negatives = node.negatives if isinstance(node, Directory) else None
    return Identity(node.parent.ino, node.name, node.lookups, negatives)


def _ancestry(node: Node) -> Iterator[tuple[Directory, Directory]]:
    """Each directory above a node, with the one it is in; not the root."""
    directory = node.parent
    while directory is not None and directory.parent is not None:
        yield directory, directory.parent
        directory = directory.parent


def _in_tree(tree: Tree, node: Node) -> bool:
    top = node
    while top.parent is not None:
        top = top.parent
    return top is tree.root
