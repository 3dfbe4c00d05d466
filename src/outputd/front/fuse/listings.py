"""Requests about open directories: OPENDIR, READDIR, READDIRPLUS, RELEASEDIR. A listing is taken when reading begins."""

from __future__ import annotations

import errno

from outputd.digest import Digest
from outputd.front.fuse.answers import Answers
from outputd.tree.node import Directory, File, Node
from outputd.tree.tree import Tree
from outputd.wire.fuse_abi import FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE
from outputd.wire.fuse_reply import (
    data_reply,
    dirent,
    dirent_size,
    direntplus,
    direntplus_of_blob,
    direntplus_size,
    empty_reply,
    error_reply,
    open_reply,
)
from outputd.wire.fuse_request import decode_read, decode_release


class _Listing:
    """An open directory. Cookies are positions in `entries`, so they stay valid while names come and go; a name that went is left
    out, one that came is seen after rewinddir(3) (POSIX readdir leaves both open). A name that was replaced was there all along."""

    __slots__ = ("directory", "entries")

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.entries: list[tuple[bytes, Node]] | None = None


class Listings:
    """Handlers, as in names.py, and the table of open directories."""

    def __init__(self, tree: Tree, answers: Answers) -> None:
        self._tree = tree
        self._answers = answers
        self._open: dict[int, _Listing] = {}
        self._next_fh = 1
        self._split = (0, 0, 0)
        """A time in nanoseconds, in seconds, and the rest: the one used last."""
        self._cached: dict[int, int] = {}
        """By inode number, the directory's mtime when the kernel was last allowed to keep a listing of it."""

    def opendir(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        directory = self._tree.inodes[nodeid]
        if not isinstance(directory, Directory):
            return error_reply(unique, errno.ENOTDIR)
        fh = self._next_fh
        self._next_fh += 1
        self._open[fh] = _Listing(directory)
        flags = FOPEN_CACHE_DIR
        if self._cached.get(nodeid) == directory.mtime:
            flags |= FOPEN_KEEP_CACHE
        self._cached[nodeid] = directory.mtime
        return open_reply(unique, fh, flags)

    def readdir(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        return self._read(unique, message, end, plus=False)

    def readdirplus(
        self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int
    ) -> bytes:
        return self._read(unique, message, end, plus=True)

    def releasedir(
        self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int
    ) -> bytes:
        self.drop(decode_release(message, end)[0])
        return empty_reply(unique)

    def drop(self, fh: int) -> None:
        """The kernel has closed, or never got, this handle."""
        directory = self._open.pop(fh).directory
        if not directory.lookups:
            self._cached.pop(directory.ino, None)

    def _read(self, unique: int, message: memoryview, end: int, *, plus: bool) -> bytes:
        fh, offset, size, _, _, _ = decode_read(message, end)
        listing = self._open[fh]
        directory = listing.directory
        children = self._tree.children(directory)
        if offset == 0 or listing.entries is None:
            parent = directory.parent or directory
            for known in (directory, parent):
                self._tree.identify(known, known.parent or known)
            listing.entries = [(b".", directory), (b"..", parent), *children.items()]
        encode = self._record_plus if plus else self._record
        records: list[bytes] = []
        room = size
        for position in range(offset, len(listing.entries)):
            name, node = listing.entries[position]
            if position > 1:
                current = children.get(name)
                if current is None:
                    continue
                node = current
            room -= direntplus_size(len(name)) if plus else dirent_size(len(name))
            if room < 0:
                break
            records.append(encode(directory, name, node, position + 1))
        return data_reply(unique, b"".join(records))

    def _record(self, directory: Directory, name: bytes, node: Node, cookie: int) -> bytes:
        return dirent(node.ino or self._tree.identify(node, directory), cookie, name, node.mode)

    def _record_plus(self, directory: Directory, name: bytes, node: Node, cookie: int) -> bytes:
        """A record with attributes; counts a kernel reference, but for `.` and `..` (fuse_direntplus_link)."""
        ino = self._tree.remember(node, directory) if cookie > 2 else node.ino
        mtime = node.mtime
        if (
            isinstance(node, File)
            and node.extra is None
            and node.ctime == mtime
            and isinstance(node.content, Digest)
        ):
            if mtime != self._split[0]:  # staged files share the time of their call
                self._split = (mtime, *divmod(mtime, 1_000_000_000))
            tree = self._tree
            return direntplus_of_blob(
                ino,
                cookie,
                name,
                self._answers.validity,
                node.content.size,
                self._split[1],
                self._split[2],
                node.mode,
                tree.uid,
                tree.gid,
            )
        attributes = self._answers.attributes(node)
        return direntplus(ino, 0, self._answers.validity, attributes, ino, cookie, name, node.mode)
