"""Nodes to reply bytes: attributes, entries, refusals. Reads the tree and counts kernel references; changes nothing else."""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

from outputd.drive.content import Content
from outputd.front.fuse.errnos import OF_STATUS
from outputd.tree.node import Directory, File, Local, Node, Special, Symlink
from outputd.tree.status import Status
from outputd.tree.tree import Tree
from outputd.wire.fuse_reply import (
    attr,
    attr_reply,
    attr_validity,
    entry_reply,
    entry_validity,
    error_reply,
    negative_entry_reply,
)

_BLOCK_SIZE: Final = 4096
"""st_blksize, and the size a directory shows, as on ext4."""
_MAX_NEGATIVES: Final = 4096
"""Absent names a directory remembers that the kernel remembers; beyond, the kernel asks each time."""


class Timeouts(NamedTuple):
    """How long the kernel may believe us without asking, in nanoseconds. Changes by RPC are told to it, so these are long."""

    entry: int
    attributes: int
    negative: int


class Answers:
    """Encodes what handlers found."""

    def __init__(self, tree: Tree, content: Content, timeouts: Timeouts) -> None:
        self._tree = tree
        self._content = content
        self.validity = entry_validity(timeouts.entry, timeouts.attributes)
        self._attributes_validity = attr_validity(timeouts.attributes)
        self._negative_validity = entry_validity(timeouts.negative, 0)
        self._remember_absence = timeouts.negative > 0

    def attributes(self, node: Node) -> bytes:
        """The attribute block (fuse_attr). The node must have an inode number."""
        rdev = 0
        if isinstance(node, File):
            content = node.content
            if isinstance(content, Local):
                blocks = self._content.blocks(node)  # brings the size up to date too
                size = content.size
            else:
                size = content.size
                blocks = node.blocks
        elif isinstance(node, Directory):
            size, blocks = _BLOCK_SIZE, _BLOCK_SIZE >> 9
        elif isinstance(node, Symlink):
            size, blocks = len(node.target), 0
        else:
            size = blocks = 0
            rdev = node.rdev if isinstance(node, Special) else 0
        mtime = atime = node.mtime
        if node.extra is None:
            uid, gid = self._tree.uid, self._tree.gid
        else:
            uid, gid = self._tree.owner(node)
            atime = node.atime
        return attr(
            node.ino,
            size,
            blocks,
            atime,
            mtime,
            node.ctime,
            node.mode,
            node.nlink,
            uid,
            gid,
            rdev,
            _BLOCK_SIZE,
        )

    def entry(self, unique: int, node: Node, directory: Directory) -> bytes:
        """A found or made entry; counts one kernel reference."""
        ino = self._tree.remember(node, directory)
        return entry_reply(unique, ino, 0, self.validity, self.attributes(node))

    def stat(self, unique: int, node: Node) -> bytes:
        return attr_reply(unique, self._attributes_validity, self.attributes(node))

    def absent(self, unique: int, directory: Directory, name: bytes) -> bytes:
        """No such name, to be remembered by the kernel where we can take it back later."""
        negatives = directory.negatives
        if negatives is None:
            negatives = directory.negatives = set()
        if not self._remember_absence or len(negatives) >= _MAX_NEGATIVES:
            return error_reply(unique, errno.ENOENT)
        negatives.add(name)
        return negative_entry_reply(unique, self._negative_validity)

    def refuse(self, unique: int, status: Status) -> bytes:
        """Also says "done" where the reply has no body (Status.OK)."""
        return error_reply(unique, OF_STATUS[status])
