"""Operations on the tree: atomic, synchronous, refusing by `Status`, never waiting. Directories must be loaded (`NotLoaded`).

The caller checks permissions (the kernel does, with `default_permissions`) and passes the time and the owner in.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Final

from outputd.digest import Digest
from outputd.tree.node import (
    DIRECTORY_MODE,
    MAX_LINKS,
    MAX_NAME,
    Directory,
    Extra,
    File,
    Local,
    Node,
    Volume,
)
from outputd.tree.status import NotLoaded, Status

ROOT_INO: Final = 1
"""FUSE_ROOT_ID."""
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2


def check_name(name: bytes) -> Status:
    """OK if `name` can be a new entry (path_resolution(7)): one component, 1 to 255 bytes."""
    if len(name) > MAX_NAME:
        return Status.NAME_TOO_LONG
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        return Status.INVALID
    return Status.OK


class Tree:
    """Everything below one mount point: a read-only root, and the output paths as volumes under `outputs`."""

    def __init__(self, *, uid: int, gid: int, now: int) -> None:
        self.uid = uid
        """Owner of every node that does not say otherwise."""
        self.gid = gid
        frame = Volume(0, now, writable=False)
        self.root = frame.root
        self.root.mode = stat.S_IFDIR | 0o555
        self.root.ino = ROOT_INO
        self.root.lookups = 1
        frame.next_ino = ROOT_INO + 1
        self.outputs = Directory(stat.S_IFDIR | 0o555, now, frame)
        self._enter(self.root, b"outputs", self.outputs, now)
        self.inodes: dict[int, Node] = {ROOT_INO: self.root}
        """Nodes the kernel knows, by inode number."""
        self.stale: list[tuple[Directory, bytes | None]] = []
        """What the kernel may remember wrongly since a change that did not come from it: a name of a directory, or the
        directory's own attributes (None). Whoever made the change takes the list and tells the kernel."""
        self.dropped: list[Node] = []
        """Local files and subtrees that lost their last name; drive takes them and frees what they hold."""

    # identity

    def identify(self, node: Node, directory: Directory) -> int:
        """The inode number of a node seen in `directory`, given now if it had none."""
        if node.ino == 0:
            volume = node.volume if isinstance(node, Directory) else directory.volume
            node.ino = volume.next_ino
            volume.next_ino += 1
            self.outdate_record(directory)
        return node.ino

    def remember(self, node: Node, directory: Directory) -> int:
        """Count one more kernel reference; the inode number."""
        ino = node.ino or self.identify(node, directory)
        if node.lookups == 0:
            self.inodes[ino] = node
        node.lookups += 1
        return ino

    def forget(self, ino: int, count: int) -> None:
        """The kernel dropped `count` references (FUSE_FORGET)."""
        node = self.inodes.get(ino)
        if node is None:
            return
        node.lookups -= count
        if node.lookups <= 0 and ino != ROOT_INO:
            node.lookups = 0
            del self.inodes[ino]
            if node.parent is None:
                self._drop(node)
            elif isinstance(node, Directory):
                node.negatives = None

    # volumes

    def add_volume(self, number: int, name: bytes, now: int) -> Volume:
        """A new, empty, writable output path at `outputs/name`; replaces nothing."""
        assert self.outputs.children is not None and name not in self.outputs.children, name
        volume = Volume(number, now, writable=True)
        self._enter(self.outputs, name, volume.root, now)
        self.identify(volume.root, self.outputs)
        self._mark_stale(self.outputs, name, None)
        return volume

    def remove_volume(self, volume: Volume, now: int) -> None:
        """Take an output path away, whatever it holds, at once."""
        root = volume.root
        if root.parent is None:
            return
        name = root.name
        self._leave(self.outputs, name, now)
        self._mark_stale(self.outputs, name, root)
        root.parent = None
        self.dropped.append(root)

    # reading

    def lookup(self, directory: Directory, name: bytes) -> Node | None:
        """The node called `name`, or None."""
        if directory.children is None:
            raise NotLoaded(directory)
        return directory.children.get(name)

    def children(self, directory: Directory) -> dict[bytes, Node]:
        """The entries, `.` and `..` not among them; not to be changed by the caller."""
        if directory.children is None:
            raise NotLoaded(directory)
        return directory.children

    # changing names

    def create(
        self, directory: Directory, name: bytes, node: Node, *, uid: int, gid: int, now: int
    ) -> Status:
        """Enter a new node (file, symlink or special). OK, or the tree and the node are as before."""
        refused = self._may_enter(directory, name)
        if refused is not Status.OK:
            return refused
        self.own(node, directory, uid, gid)
        self._enter(directory, name, node, now)
        return Status.OK

    def make_directory(
        self, directory: Directory, name: bytes, mode: int, *, uid: int, gid: int, now: int
    ) -> Directory | Status:
        """mkdir(2); a set-group-ID parent hands its group and the bit on."""
        refused = self._may_enter(directory, name)
        if refused is not Status.OK:
            return refused
        node = Directory(
            stat.S_IFDIR | (mode & 0o7777) | (directory.mode & stat.S_ISGID), now, directory.volume
        )
        self.own(node, directory, uid, gid)
        self._enter(directory, name, node, now)
        return node

    def link(self, node: Node, directory: Directory, name: bytes, now: int) -> Status:
        """link(2) for anything but directories; a file whose last name is gone comes back only through O_TMPFILE's rules."""
        refused = self._may_enter(directory, name)
        if refused is not Status.OK:
            return refused
        if isinstance(node, Directory):
            return Status.NOT_PERMITTED
        if node.parent is None:
            return Status.ABSENT
        if node.parent.volume is not directory.volume:
            return Status.CROSS_DEVICE
        if not isinstance(node, File):
            return Status.NOT_PERMITTED
        if node.nlink >= MAX_LINKS:
            return Status.TOO_MANY_LINKS
        self.identify(node, node.parent)
        extra = node.extra = node.extra or Extra()
        extra.nlink += 1
        extra.linked = extra.linked or []
        extra.linked.append((directory, name))
        directory.volume.linked[node.ino] = node
        assert directory.children is not None
        directory.children[name] = node
        self._touch(directory, now)
        node.ctime = now
        self.outdate_attributes(node)
        return Status.OK

    def unlink(self, directory: Directory, name: bytes, now: int) -> Status:
        """unlink(2)."""
        if not directory.volume.writable:
            return Status.READ_ONLY
        node = self.lookup(directory, name)
        if node is None:
            return Status.ABSENT
        if isinstance(node, Directory):
            return Status.IS_DIRECTORY
        self._leave(directory, name, now)
        self._unname(node, directory, name, now)
        return Status.OK

    def remove_directory(self, directory: Directory, name: bytes, now: int) -> Status:
        """rmdir(2)."""
        if not directory.volume.writable:
            return Status.READ_ONLY
        node = self.lookup(directory, name)
        if node is None:
            return Status.ABSENT
        if not isinstance(node, Directory):
            return Status.NOT_DIRECTORY
        if self.children(node):
            return Status.NOT_EMPTY
        self._leave(directory, name, now)
        self._unname(node, directory, name, now)
        return Status.OK

    def rename(
        self, source: Directory, old: bytes, target: Directory, new: bytes, flags: int, now: int
    ) -> Status:
        """rename(2) and renameat2(2) with RENAME_NOREPLACE or RENAME_EXCHANGE; other flags are INVALID."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            return Status.INVALID
        node = self.lookup(source, old)
        other = self.lookup(target, new)
        refused = self._may_rename(source, node, target, other, new, flags)
        if refused is not Status.OK:
            return refused
        assert node is not None
        if other is node:
            return Status.OK  # POSIX: two names of one file, or a name onto itself: nothing happens
        self._leave(source, old, now)
        if other is not None:
            self._leave(target, new, now)
        if flags & RENAME_EXCHANGE:
            assert other is not None
            self._move(other, target, new, source, old, now)
        elif other is not None:
            self._unname(other, target, new, now)
        self._move(node, source, old, target, new, now)
        return Status.OK

    def place(self, directory: Directory, name: bytes, node: Node, now: int) -> None:
        """Put a new node at a name, whatever stood there (staging). Notes what the kernel may remember wrongly."""
        children = directory.children
        if children is None:
            raise NotLoaded(directory)
        old = children.get(name)
        if old is not None:
            self._leave(directory, name, now)
            self._unname(old, directory, name, now)
        self._enter(directory, name, node, now)
        if directory.lookups:
            self._mark_stale(directory, name, old)

    def withdraw(self, directory: Directory, name: bytes, now: int) -> None:
        """Take away what stands at a name, if anything does. Notes what the kernel may remember wrongly."""
        node = self.lookup(directory, name)
        if node is not None:
            self._leave(directory, name, now)
            self._unname(node, directory, name, now)
            self._mark_stale(directory, name, node)

    def descend(self, directory: Directory, name: bytes, now: int) -> Directory:
        """The subdirectory `name`, made when absent; anything else that stands there is replaced (protocols: creating walk)."""
        node = self.lookup(directory, name)
        if isinstance(node, Directory):
            return node
        made = Directory(DIRECTORY_MODE, now, directory.volume)
        self.place(directory, name, made, now)
        return made

    def clear(self, directory: Directory, now: int) -> None:
        """Remove everything in a directory at once, loaded or not."""
        if directory.children:
            gone = Directory(directory.mode, now, directory.volume)
            gone.children = directory.children
            for name, node in directory.children.items():
                if node.parent is directory and node.name == name:
                    node.parent = gone
                elif node.extra is not None and node.extra.linked is not None:
                    node.extra.linked[node.extra.linked.index((directory, name))] = (gone, name)
                if directory.lookups:
                    self._mark_stale(directory, name, node)
            self.dropped.append(gone)
        directory.children = {}
        directory.subdirectories = 0
        directory.tree = None
        self._touch(directory, now)

    # attributes and content

    def set_content(self, file: File, content: Digest | Local) -> None:
        """Other bytes for a file; its times are the caller's to set."""
        file.content = content
        self._outdate_holders(file, digests=True)

    def outdate_attributes(self, node: Node) -> None:
        """To be called after an attribute (mode, owner, times, xattr) was set: records that hold it are outdated."""
        if isinstance(node, Directory) and node.volume.root is node:
            node.volume.changes += 1  # no record of the volume holds it, but its saved state does
        self._outdate_holders(node, digests=False)

    def outdate_digest(self, directory: Directory) -> None:
        """Content below changed: no digest or record up to the root of the volume is known any more."""
        directory.volume.changes += 1
        walk: Directory | None = directory
        while walk is not None and (walk.digest is not None or walk.record is not None):
            walk.digest = None
            walk.record = None
            walk = walk.parent

    def outdate_record(self, directory: Directory) -> None:
        """Attributes below changed: no record up to the root of the volume is known any more."""
        directory.volume.changes += 1
        walk: Directory | None = directory
        while walk is not None and walk.record is not None:
            walk.record = None
            walk = walk.parent

    def owner(self, node: Node) -> tuple[int, int]:
        """User and group id."""
        extra = node.extra
        if extra is None:
            return self.uid, self.gid
        return (
            self.uid if extra.uid is None else extra.uid,
            self.gid if extra.gid is None else extra.gid,
        )

    def set_owner(self, node: Node, uid: int | None, gid: int | None) -> None:
        """Set what is not None."""
        if (uid is None or uid == self.uid) and (gid is None or gid == self.gid) and node.extra is None:
            return
        extra = node.extra = node.extra or Extra()
        if uid is not None:
            extra.uid = None if uid == self.uid else uid
        if gid is not None:
            extra.gid = None if gid == self.gid else gid

    def own(self, node: Node, directory: Directory, uid: int, gid: int) -> None:
        """Give a node created in `directory` its owner: the caller's, or the directory's group if that is set-group-ID."""
        if directory.mode & stat.S_ISGID:
            gid = self.owner(directory)[1]
        if uid != self.uid or gid != self.gid:
            self.set_owner(node, uid, gid)

    # freeing

    def dismantle(self, top: Node) -> Iterator[File | None]:
        """Take apart a dropped subtree so that reference counting frees it, yielding local files that nobody names any more.

        Yields after each directory too (None), to be interleaved with other work.
        """
        if isinstance(top, File):
            if isinstance(top.content, Local) and top.nlink == 0:
                yield top
            return
        stack = [top]
        while stack:
            directory = stack.pop()
            if not isinstance(directory, Directory) or directory.children is None:
                continue
            children, directory.children = directory.children, {}
            directory.subdirectories = 0
            for name, node in children.items():
                if isinstance(node, Directory):
                    node.parent = None
                    stack.append(node)
                    continue
                self._forget_name(node, directory, name)
                if isinstance(node, File) and isinstance(node.content, Local) and node.nlink == 0:
                    yield node
            yield None

    # within

    def _may_enter(self, directory: Directory, name: bytes) -> Status:
        if not directory.volume.writable:
            return Status.READ_ONLY
        refused = check_name(name)
        if refused is not Status.OK:
            return refused
        if directory.parent is None and directory.volume.root is not directory:
            return Status.ABSENT  # a removed directory takes no new names
        if self.lookup(directory, name) is not None:
            return Status.EXISTS
        return Status.OK

    def _may_rename(
        self,
        source: Directory,
        node: Node | None,
        target: Directory,
        other: Node | None,
        new: bytes,
        flags: int,
    ) -> Status:
        if not source.volume.writable or not target.volume.writable:
            return Status.READ_ONLY
        if node is None:
            return Status.ABSENT
        if source.volume is not target.volume:
            return Status.CROSS_DEVICE
        if isinstance(node, Directory) and _is_below(target, node):
            return Status.INVALID
        if flags & RENAME_EXCHANGE:
            if other is None:
                return Status.ABSENT
            return Status.INVALID if isinstance(other, Directory) and _is_below(source, other) else Status.OK
        if other is None:
            refused = check_name(new)
            if refused is Status.OK and target.parent is None and target.volume.root is not target:
                return Status.ABSENT
            return refused
        if flags & RENAME_NOREPLACE:
            return Status.EXISTS
        if isinstance(other, Directory):
            if not isinstance(node, Directory):
                return Status.IS_DIRECTORY
            if other is not node and (_is_below(source, other) or self.children(other)):
                return Status.NOT_EMPTY
        elif isinstance(node, Directory):
            return Status.NOT_DIRECTORY
        return Status.OK

    def _enter(self, directory: Directory, name: bytes, node: Node, now: int) -> None:
        assert directory.children is not None
        directory.children[name] = node
        node.parent = directory
        node.name = name
        if isinstance(node, Directory):
            directory.subdirectories += 1
        self._touch(directory, now)

    def _leave(self, directory: Directory, name: bytes, now: int) -> None:
        assert directory.children is not None
        if isinstance(directory.children.pop(name), Directory):
            directory.subdirectories -= 1
        self._touch(directory, now)

    def _move(
        self, node: Node, source: Directory, old: bytes, target: Directory, new: bytes, now: int
    ) -> None:
        """Give an entry that has left `source/old` its new name."""
        node.ctime = now
        if node.parent is source and node.name == old:
            self._enter(target, new, node, now)
            return
        assert target.children is not None and node.extra is not None and node.extra.linked is not None
        target.children[new] = node
        node.extra.linked.remove((source, old))
        node.extra.linked.append((target, new))
        self._touch(target, now)

    def _unname(self, node: Node, directory: Directory, name: bytes, now: int) -> None:
        """An entry was removed: the node loses this name, and with the last one its place in the tree."""
        node.ctime = now
        self._forget_name(node, directory, name)
        if node.parent is None:
            self._drop(node)
        else:
            self.outdate_attributes(node)

    def _forget_name(self, node: Node, directory: Directory, name: bytes) -> None:
        extra = node.extra
        if extra is None or extra.nlink <= 1:
            node.parent = None
            return
        extra.nlink -= 1
        linked = extra.linked or []
        if node.parent is directory and node.name == name:
            if linked:
                node.parent, node.name = linked.pop()
            # else: the other names lie in collapsed directories; the node keeps standing for them until one is met
        else:
            linked.remove((directory, name))

    def _drop(self, node: Node) -> None:
        if isinstance(node, Directory):
            if node.children:
                self.dropped.append(node)
        elif isinstance(node, File) and isinstance(node.content, Local):
            self.dropped.append(node)

    def _touch(self, directory: Directory, now: int) -> None:
        directory.mtime = now
        directory.ctime = now
        self.outdate_digest(directory)

    def _outdate_holders(self, node: Node, *, digests: bool) -> None:
        outdate = self.outdate_digest if digests else self.outdate_record
        if node.parent is not None:
            outdate(node.parent)
        if node.extra is not None and node.extra.linked:
            for directory, _ in node.extra.linked:
                outdate(directory)

    def _mark_stale(self, directory: Directory, name: bytes, old: Node | None) -> None:
        if not directory.lookups:
            return
        negatives = directory.negatives
        if (old is not None and old.lookups) or (negatives is not None and name in negatives):
            if negatives is not None:
                negatives.discard(name)
            self.stale.append((directory, name))
        if not self.stale or self.stale[-1] != (directory, None):
            self.stale.append((directory, None))


def _is_below(directory: Directory, top: Directory) -> bool:
    """Whether `directory` is `top` or lies below it."""
    walk: Directory | None = directory
    while walk is not None:
        if walk is top:
            return True
        walk = walk.parent
    return False
