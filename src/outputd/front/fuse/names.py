"""Requests about names and attributes: LOOKUP to RENAME, GETATTR, SETATTR, READLINK. Each is one tree operation."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Final

from outputd.drive.content import Content
from outputd.front.fuse.answers import Answers
from outputd.tree.cas import copy_of
from outputd.tree.node import Directory, File, Node, Special, Symlink
from outputd.tree.rules import entry, may_change
from outputd.tree.status import NotLoaded, Status
from outputd.tree.tree import Tree
from outputd.wire.fuse_abi import (
    FATTR_ATIME,
    FATTR_ATIME_NOW,
    FATTR_FH,
    FATTR_GID,
    FATTR_KILL_SUIDGID,
    FATTR_LOCKOWNER,
    FATTR_MODE,
    FATTR_MTIME,
    FATTR_MTIME_NOW,
    FATTR_SIZE,
    FATTR_UID,
)
from outputd.wire.fuse_reply import data_reply, empty_reply, error_reply
from outputd.wire.fuse_request import (
    decode_access,
    decode_batch_forget,
    decode_forget,
    decode_link,
    decode_mkdir,
    decode_mknod,
    decode_name,
    decode_rename,
    decode_rename2,
    decode_setattr,
    decode_symlink,
)

_NOTHING: Final = FATTR_FH | FATTR_LOCKOWNER
"""A SETATTR with nothing else is what is left of file_remove_privs() and of chown(2) with -1 and -1 once fuse_setattr() has taken
out what HANDLE_KILLPRIV_V2 leaves to us."""


_SLICE: Final = 0.001
"""Seconds of forgetting between two turns of the event loop."""


class Names:
    """Handlers; each takes the header's fields and the message, and returns the reply (None: there is none).

    Raises NotLoaded or NotLocal where the request must wait; then nothing was changed.
    """

    def __init__(self, tree: Tree, content: Content, answers: Answers, dropped: Callable[[], None]) -> None:
        """`dropped` is told when the tree has let go of something outside of any request."""
        self._tree = tree
        self._dropped = dropped
        self._content = content
        self._answers = answers
        self._inodes = tree.inodes
        self.forgetting = 0
        """Messages with FORGETs that are being worked off."""

    def lookup(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        directory = self._inodes[nodeid]
        name = decode_name(message, end)
        if not isinstance(directory, Directory):
            return error_reply(unique, errno.ENOTDIR)
        node = entry(directory, name)
        if node is not None:
            return self._answers.entry(unique, node, directory)
        if len(name) > 255:
            return error_reply(unique, errno.ENAMETOOLONG)
        return self._answers.absent(unique, directory, name)

    def forget(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> None:
        self._tree.forget(nodeid, decode_forget(message, end))

    def batch_forget(
        self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int
    ) -> None:
        self.forgetting += 1
        self._forget(decode_batch_forget(message, end))

    def _forget(self, forgets: Iterator[tuple[int, int]]) -> None:
        """Some now and the others later: when the kernel drops its caches it sends 65,000 at once, and nobody waits for them."""
        until = time.monotonic() + _SLICE
        for ino, count in forgets:
            self._tree.forget(ino, count)
            if time.monotonic() > until:
                asyncio.get_running_loop().call_soon(self._forget, forgets)
                break
        else:
            self.forgetting -= 1
        if self._tree.dropped:
            self._dropped()

    def getattr(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        return self._answers.stat(unique, self._inodes[nodeid])

    def access(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        """access(2) and chdir(2) by root; for others the kernel checks itself (front.py). Rule: CAP_DAC_OVERRIDE."""
        node = self._inodes[nodeid]
        if (
            decode_access(message, end) & os.X_OK
            and not isinstance(node, Directory)
            and not node.mode & 0o111
        ):
            return error_reply(unique, errno.EACCES)
        return empty_reply(unique)

    def setattr(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        valid, _, size, _, atime, mtime, _, mode, new_uid, new_gid = decode_setattr(message, end)
        node = self._inodes[nodeid]
        if not may_change(node):
            return error_reply(unique, errno.EROFS)
        now = time.time_ns()
        if isinstance(node, File):
            self._content.catch_up(node)
        if valid & FATTR_SIZE:
            if not isinstance(node, File):
                return error_reply(unique, errno.EISDIR if isinstance(node, Directory) else errno.EINVAL)
            self._content.truncate(node, size)
        if valid & (FATTR_MTIME | FATTR_ATIME):
            if isinstance(node, Directory) and node.children is None:
                raise NotLoaded(node)  # entries without a time of their own show the directory's
            if not valid & FATTR_ATIME:
                atime = node.atime
            elif valid & FATTR_ATIME_NOW:
                atime = now
            else:
                atime = _storable(atime)
            if valid & FATTR_MTIME:
                node.mtime = now if valid & FATTR_MTIME_NOW else _storable(mtime)
            node.set_atime(atime)
        if valid & FATTR_KILL_SUIDGID or (not valid & ~_NOTHING and not isinstance(node, Directory)):
            self._tree.drop_privileges(node)
        if valid & FATTR_MODE:
            executable = bool(node.mode & 0o100)
            node.mode = stat.S_IFMT(node.mode) | (mode & 0o7777)
            if isinstance(node, File) and bool(mode & 0o100) != executable:
                self._tree.set_content(node, node.content)  # REv2 counts the executable bit as content
        if valid & (FATTR_UID | FATTR_GID):
            self._tree.set_owner(
                node, new_uid if valid & FATTR_UID else None, new_gid if valid & FATTR_GID else None
            )
        node.ctime = now
        self._tree.outdate_attributes(node)
        return self._answers.stat(unique, node)

    def readlink(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        node = self._inodes[nodeid]
        if not isinstance(node, Symlink):
            return error_reply(unique, errno.EINVAL)
        return data_reply(unique, node.target)

    def symlink(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        name, target = decode_symlink(message, end)
        return self._enter(unique, nodeid, name, Symlink(target, time.time_ns()), uid, gid)

    def mknod(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        mode, rdev, _, name = decode_mknod(message, end)
        now = time.time_ns()
        if not stat.S_ISREG(
            mode
        ):  # a device can be made by those who may (CAP_MKNOD), and opened by nobody: the mount is nodev
            return self._enter(unique, nodeid, name, Special(mode, now, rdev), uid, gid)
        local, fd = self._content.private.new()
        file = File(stat.S_IFREG | (mode & 0o7777), now, local)
        answer = self._enter(unique, nodeid, name, file, uid, gid)
        self._content.close_created(file, fd)
        return answer

    def mkdir(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        mode, _, name = decode_mkdir(message, end)
        directory = self._inodes[nodeid]
        assert isinstance(directory, Directory)
        made = self._tree.make_directory(directory, name, mode, uid=uid, gid=gid, now=time.time_ns())
        if isinstance(made, Status):
            return self._answers.refuse(unique, made)
        return self._answers.entry(unique, made, directory)

    def unlink(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        directory = self._inodes[nodeid]
        assert isinstance(directory, Directory)
        return self._answers.refuse(
            unique, self._tree.unlink(directory, decode_name(message, end), time.time_ns())
        )

    def rmdir(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        directory = self._inodes[nodeid]
        assert isinstance(directory, Directory)
        return self._answers.refuse(
            unique, self._tree.remove_directory(directory, decode_name(message, end), time.time_ns())
        )

    def link(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        ino, name = decode_link(message, end)
        node = self._inodes[ino]
        directory = self._inodes[nodeid]
        assert isinstance(directory, Directory)
        copy = copy_of(node, directory.volume)
        if copy is not None:
            return self._enter(unique, nodeid, name, copy, uid, gid)
        status = self._tree.link(node, directory, name, time.time_ns())
        if status is not Status.OK:
            return self._answers.refuse(unique, status)
        if isinstance(node, File):
            self._content.named(node)
        return self._answers.entry(unique, node, directory)

    def rename(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        return self._rename(unique, nodeid, *decode_rename(message, end))

    def rename2(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        return self._rename(unique, nodeid, *decode_rename2(message, end))

    def _rename(self, unique: int, nodeid: int, to: int, flags: int, old: bytes, new: bytes) -> bytes:
        source = self._inodes[nodeid]
        target = self._inodes[to]
        assert isinstance(source, Directory) and isinstance(target, Directory)
        return self._answers.refuse(
            unique, self._tree.rename(source, old, target, new, flags, time.time_ns())
        )

    def _enter(self, unique: int, nodeid: int, name: bytes, node: Node, uid: int, gid: int) -> bytes:
        directory = self._inodes[nodeid]
        assert isinstance(directory, Directory)
        status = self._tree.create(directory, name, node, uid=uid, gid=gid, now=node.mtime)
        if status is not Status.OK:
            return self._answers.refuse(unique, status)
        return self._answers.entry(unique, node, directory)


def _storable(time_ns: int) -> int:
    """The nearest time that a record can keep, 64 bits of nanoseconds: from 1677 to 2262, as ext4 keeps 1901 to 2446."""
    return max(-(1 << 63), min(time_ns, (1 << 63) - 1))
