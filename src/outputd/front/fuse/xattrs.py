"""Requests about extended attributes: SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR; and the ones that outputd itself answers.

`user.outputd.*` tell what outputd knows of a node. They are answered when asked for by name and not listed, so that nothing which
copies attributes (cp -a, rsync -X, tar --xattrs) takes them along.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Final

from outputd.digest import Digest
from outputd.drive.content import Content
from outputd.front.fuse.answers import Answers
from outputd.tree.node import Directory, File, Node
from outputd.tree.rules import may_change
from outputd.tree.status import Status
from outputd.tree.tree import Tree
from outputd.tree.xattrs import NAMESPACE, get_xattr, remove_xattr, set_xattr, xattr_names
from outputd.wire.fuse_reply import data_reply, error_reply, xattr_size_reply
from outputd.wire.fuse_request import decode_getxattr, decode_listxattr, decode_name, decode_setxattr

OURS: Final = b"user.outputd."
DIGEST: Final = OURS + b"digest"
"""`function:hash/size`, of a file's bytes or of a directory's REv2 Directory message."""
HASH: Final = OURS + b"hash"
"""The raw hash of a file's bytes, as Bazel's --unix_digest_hash_attribute_name wants it."""
LOCAL: Final = OURS + b"local"
"""`1` if a file's bytes lie on this machine, `0` if the first read has to fetch them."""


class Xattrs:
    """Handlers, as in names.py."""

    def __init__(self, tree: Tree, content: Content, answers: Answers) -> None:
        self._tree = tree
        self._content = content
        self._answers = answers
        self._inodes = tree.inodes

    def setxattr(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        name, value, flags, _ = decode_setxattr(message, end, extended=False)
        return self._change(unique, nodeid, name, lambda node: set_xattr(node, name, value, flags))

    def removexattr(
        self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int
    ) -> bytes:
        name = decode_name(message, end)
        return self._change(unique, nodeid, name, lambda node: remove_xattr(node, name))

    def getxattr(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        size, name = decode_getxattr(message, end)
        if not name.startswith(NAMESPACE):
            # ENODATA would do for the kernel, which asks for `security.capability` before it writes (cap_inode_need_killpriv);
            # but ls(1) and cp(1) go on asking for `security.selinux` and access control lists until they hear this.
            return error_reply(unique, errno.EOPNOTSUPP)
        if name == NAMESPACE:
            return error_reply(unique, errno.EINVAL)
        node = self._inodes[nodeid]
        value = self._known(node, name) if name.startswith(OURS) else get_xattr(node, name)
        if value is None:
            return error_reply(unique, errno.ENODATA)
        return _sized(unique, value, size)

    def listxattr(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        size = decode_listxattr(message, end)
        return _sized(unique, b"".join(name + b"\0" for name in xattr_names(self._inodes[nodeid])), size)

    def _change(self, unique: int, nodeid: int, name: bytes, change: Callable[[Node], Status]) -> bytes:
        node = self._inodes[nodeid]
        if not may_change(node):
            return error_reply(unique, errno.EROFS)
        if name.startswith(OURS):
            return error_reply(unique, errno.EPERM)
        status = change(node)
        if status is Status.OK:
            node.ctime = time.time_ns()
            self._tree.outdate_attributes(node)
        return self._answers.refuse(unique, status)

    def _known(self, node: Node, name: bytes) -> bytes | None:
        if isinstance(node, Directory):
            digest = node.digest if name == DIGEST else None
        elif isinstance(node, File):
            if name == LOCAL:
                return b"1" if self._content.is_local(node) else b"0"
            digest = node.content if isinstance(node.content, Digest) else None
        else:
            return None
        if digest is None:
            return None
        if name == DIGEST:
            return f"{digest.function.lower}:{digest}".encode()
        return digest.hash if name == HASH else None


def _sized(unique: int, value: bytes, size: int) -> bytes:
    """The value, or its length where `size` is 0, as getxattr(2) has it."""
    if size == 0:
        return xattr_size_reply(unique, len(value))
    return data_reply(unique, value) if len(value) <= size else error_reply(unique, errno.ERANGE)
