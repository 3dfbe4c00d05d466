"""Operations on the tree: atomic, synchronous, refusing by `Status`, never waiting. Directories must be loaded (`NotLoaded`).

The caller checks permissions (the kernel does, with `default_permissions`) and passes the time and the owner in.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator

from outputd.digest import Digest
from outputd.tree.freeing import dismantle, is_free
from outputd.tree.identity import identify
from outputd.tree.inodes import KernelInodes
from outputd.tree.links import (
    add_name,
    give_up_unmet,
    hand_over_names,
    is_partly_met,
    lose_name,
    move_name,
    partly_met,
    unmet,
)
from outputd.tree.node import (
    DIRECTORY_MODE,
    MAX_LINKS,
    NO_RECORD,
    Child,
    Directory,
    Extra,
    File,
    Local,
    Node,
    Searched,
    Volume,
    repack,
    unpack,
)
from outputd.tree.outdate import outdate_digest, outdate_holders, outdate_record
from outputd.tree.rules import RENAME_EXCHANGE, RENAME_NOREPLACE, entries, entry, may_enter, may_rename
from outputd.tree.status import NotLoaded, Status
from outputd.tree.top import OUTPUTS_INO, ROOT_INO, TAG_INO


class Tree:
    """Everything below one mount point: a read-only root, the output paths as volumes under `outputs`, others beside it."""

    def __init__(self, *, uid: int, gid: int, now: int) -> None:
        self.uid = uid
        """Owner of every node that does not say otherwise."""
        self.gid = gid
        frame = Volume(0, now, writable=False)
        self.root = frame.root
        self.root.mode = stat.S_IFDIR | 0o555
        self.root.ino = ROOT_INO
        self.root.lookups = 1
        frame.next_ino = TAG_INO + 1
        self.outputs = Directory(stat.S_IFDIR | 0o555, now, frame)
        self.outputs.ino = OUTPUTS_INO
        self._enter(self.root, b"outputs", self.outputs, now)
        self.inodes = frame.inodes = KernelInodes()
        """What the kernel knows, by inode number."""
        self.inodes[ROOT_INO] = self.root
        self.nameless: dict[File, Volume] = {}
        """Files that have no name yet (O_TMPFILE), each with the only volume where it may get one."""
        self.stale: list[tuple[Node, bytes | None]] = []
        """What the kernel may remember wrongly since a change that did not come from it: a name of a directory, or the attributes
        of a node (None). Whoever made the change takes the list and tells the kernel."""
        self.dropped: list[Node] = []
        """Local files and subtrees that lost their last name, and files the kernel's last reference too; for drive to free."""

    # identity

    def identify(self, node: Node, directory: Directory) -> int:
        """The inode number of a node seen in `directory`, given now if it had none."""
        return node.ino or identify(node, directory)

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
            self.inodes.forget_unmet(ino, count)
            return
        node.lookups -= count
        if node.lookups <= 0 and ino != ROOT_INO:
            node.lookups = 0
            del self.inodes[ino]
            if isinstance(node.parent, Searched):
                node.parent.lose(node)
                self._drop(node)
            elif isinstance(node, Directory):
                node.negatives = None
                node.listed = None
            elif not isinstance(node, File) or not repack(node):
                self._drop(node)

    # volumes

    def add_volume(self, number: int, name: bytes, now: int) -> Volume:
        """A new, empty, writable output path at `outputs/name`, beside `outputs` if it begins with a slash; replaces nothing."""
        holder, name = (self.root, name[1:]) if name[:1] == b"/" else (self.outputs, name)
        assert name not in entries(holder), name
        volume = Volume(number, now, writable=True)
        volume.inodes = self.inodes
        self._enter(holder, name, volume.root, now)
        self.identify(volume.root, holder)
        self._mark_stale(holder, name, None)
        return volume

    def remove_volume(self, volume: Volume, now: int) -> None:
        """Take an output path away, whatever it holds, at once."""
        root = volume.root
        holder, name = root.parent, root.name
        if holder is None:
            return
        self._leave(holder, name, now)
        self._mark_stale(holder, name, root)
        root.parent = None
        volume.removed = True
        self.dropped.append(root)

    def lacking(self, volume: Volume) -> Directory | None:
        """A directory to be loaded before the volume is sealed, then ask again; None once there is none.

        It may hold a name of a hard-linked node in memory, and what is recorded there of the node be true no more.
        """
        nodes = partly_met(volume)
        directory = unmet(volume) if nodes else None
        if directory is None:
            for node in nodes:
                give_up_unmet(node, volume)
                self._drop(node)
        return directory

    # reading

    def lookup(self, directory: Directory, name: bytes) -> Node | None:
        """The node called `name`, or None."""
        return entry(directory, name)

    def children(self, directory: Directory) -> dict[bytes, Child]:
        """The entries, `.` and `..` not among them; not to be changed by the caller."""
        return entries(directory)

    # changing names

    def create(
        self, directory: Directory, name: bytes, node: Node, *, uid: int, gid: int, now: int
    ) -> Status:
        """Enter a new node (file, symlink or special). OK, or the tree and the node are as before."""
        refused = may_enter(directory, name)
        if refused is not Status.OK:
            return refused
        self.own(node, directory, uid, gid)
        self._enter(directory, name, node, now)
        directory.volume.log.entered(directory, name, node, now)
        return Status.OK

    def make_directory(
        self, directory: Directory, name: bytes, mode: int, *, uid: int, gid: int, now: int
    ) -> Directory | Status:
        """mkdir(2); a set-group-ID parent hands its group and the bit on."""
        refused = may_enter(directory, name)
        if refused is not Status.OK:
            return refused
        node = Directory(
            stat.S_IFDIR | (mode & 0o7777) | (directory.mode & stat.S_ISGID), now, directory.volume
        )
        self.own(node, directory, uid, gid)
        self._enter(directory, name, node, now)
        directory.volume.log.entered(directory, name, node, now)
        return node

    def link(self, node: Node, directory: Directory, name: bytes, now: int) -> Status:
        """link(2), also for symlinks and specials, as Linux has it. A node whose last name is gone does not come back; one that
        never had a name gets its first."""
        refused = may_enter(directory, name)
        if refused is not Status.OK:
            return refused
        if isinstance(node, Directory):
            return Status.NOT_PERMITTED
        volume = directory.volume
        if isinstance(node, File) and node in self.nameless:
            if self.nameless[node] is not volume:
                return Status.CROSS_DEVICE
            del self.nameless[node]
            node.ctime = now
            self._enter(directory, name, node, now)
            volume.log.entered(directory, name, node, now)
            return Status.OK
        if node.nlink == 0:
            return Status.ABSENT
        if volume is not node.parent.volume if node.parent else volume.linked.get(node.ino) is not node:
            return Status.CROSS_DEVICE
        if node.nlink >= MAX_LINKS:
            return Status.TOO_MANY_LINKS
        self.identify(node, node.parent or directory)
        volume.log.linked(node, directory, name, now)
        add_name(node, directory, name)
        node.extra = node.extra or Extra()
        node.extra.nlink += 1
        volume.linked[node.ino] = node
        entries(directory)[name] = node
        self._touch(directory, now)
        node.ctime = now
        outdate_holders(node, digests=False)
        return Status.OK

    def create_nameless(self, directory: Directory, file: File, *, uid: int, gid: int) -> Status:
        """open(2) with O_TMPFILE: a file that `link` may give its first name, anywhere in the volume of `directory`."""
        if not directory.volume.writable:
            return Status.READ_ONLY
        if directory.removed:
            return Status.ABSENT
        self.own(file, directory, uid, gid)
        self.nameless[file] = directory.volume
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
        directory.volume.log.removed(directory, name, now)
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
        directory.volume.log.removed(directory, name, now)
        return Status.OK

    def rename(
        self, source: Directory, old: bytes, target: Directory, new: bytes, flags: int, now: int
    ) -> Status:
        """rename(2) and renameat2(2) with RENAME_NOREPLACE or RENAME_EXCHANGE; other flags are INVALID."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            return Status.INVALID
        node = self.lookup(source, old)
        other = self.lookup(target, new)
        refused = may_rename(source, node, target, other, new, flags)
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
        source.volume.log.moved(source, old, target, new, flags, now)
        return Status.OK

    def place(self, directory: Directory, name: bytes, child: Child, now: int) -> None:
        """Put a new file or node at a name, whatever stood there (staging). Notes what the kernel may remember wrongly."""
        children = directory.children
        if children is None:
            raise NotLoaded(directory)
        old = children.get(name)
        if isinstance(old, bytes) and self.inodes.knows(old):
            old = unpack(old, directory, name)
        if isinstance(old, Node):
            self._leave(directory, name, now)
            self._unname(old, directory, name, now)
            self._mark_links(old)
        if isinstance(child, Node):
            self._enter(directory, name, child, now)
        else:
            children[name] = child
            self._touch(directory, now)
        directory.volume.log.entered(directory, name, child, now)
        if directory.lookups:
            self._mark_stale(directory, name, old)

    def withdraw(self, directory: Directory, name: bytes, now: int) -> None:
        """Take away what stands at a name, if anything does. Notes what the kernel may remember wrongly."""
        node = self.lookup(directory, name)
        if node is not None:
            self._leave(directory, name, now)
            self._unname(node, directory, name, now)
            directory.volume.log.removed(directory, name, now)
            self._mark_links(node)
            self._mark_stale(directory, name, node)

    def descend(self, directory: Directory, name: bytes, now: int) -> Directory:
        """The subdirectory `name`, made when absent; anything else that stands there is replaced (protocols: creating walk)."""
        node = self.lookup(directory, name)
        if isinstance(node, Directory):
            return node
        made = Directory(DIRECTORY_MODE, now, directory.volume)
        self.place(directory, name, made, now)
        return made

    def renew(self, file: File) -> Status:
        """Give all names of a file, if it has any, to a new node like it; the old node is as after unlink(2). Raises NotLoaded."""
        directory = file.parent
        if directory is None:
            return Status.ABSENT
        if is_partly_met(file) and (elsewhere := self.lacking(directory.volume)) is not None:
            raise NotLoaded(elsewhere)
        for holder, name in hand_over_names(file):
            outdate_record(holder)
            self._mark_stale(holder, name, file)
        if file.lookups:
            self.stale.append((file, None))  # its link count
        return Status.OK

    def clear(self, directory: Directory, now: int) -> None:
        """Remove everything in a directory at once, loaded or not."""
        if directory.children:
            gone = Directory(directory.mode, now, directory.volume)
            gone.children = directory.children
            for name, child in directory.children.items():
                if isinstance(child, bytes) and self.inodes.knows(child):
                    child = unpack(child, directory, name)
                if isinstance(child, Node):
                    move_name(child, directory, name, gone, name)
                if directory.lookups:
                    self._mark_stale(directory, name, child)
            self.dropped.append(gone)
        directory.children = {}
        directory.subdirectories = 0
        directory.tree = None
        directory.volume.unmet.pop(directory, None)
        self._touch(directory, now)
        directory.volume.log.cleared(directory, now)

    # attributes and content

    def set_content(self, file: File, content: Digest | Local) -> None:
        """Other bytes for a file; its times are the caller's to set."""
        file.content = content
        if file.extra is not None:
            file.extra.blocks = None
        outdate_holders(file, digests=True)
        self._log_change(file)

    def adopting(self, file: File, digest: Digest) -> None:
        """To be called before the local bytes of a file become a blob: whoever is killed in between knows what became of them."""
        if file.parent is not None:
            file.parent.volume.log.adopting(file, digest)

    def outdate_attributes(self, node: Node) -> None:
        """To be called after an attribute (mode, owner, times, xattr) was set: records that hold it are outdated."""
        if isinstance(node, Directory):
            # No record of a volume holds its root's attributes, but its saved state does.
            node.volume.changes += 1
            if node.record == NO_RECORD and node.children is not None:
                outdate_record(node)  # entries without times of their own have the directory's
        outdate_holders(node, digests=False)
        self._log_change(node)

    def written(self, file: File) -> None:
        """To be called after bytes were written: as `outdate_attributes`, but told to the log only when the last writer closes."""
        outdate_holders(file, digests=False)

    def drop_privileges(self, node: Node) -> None:
        """What Linux does to the mode of a file that is written, cut or given away (setattr_should_drop_suidgid)."""
        node.mode &= ~(stat.S_ISUID | stat.S_ISGID if node.mode & stat.S_IXGRP else stat.S_ISUID)
        self.outdate_attributes(node)

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

        Yields None every now and then, to be interleaved with other work.
        """
        return dismantle(top)

    # within

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
        move_name(node, source, old, target, new)
        entries(target)[new] = node
        if isinstance(node, Directory):
            target.subdirectories += 1
        self._touch(target, now)
        outdate_holders(node, digests=False)

    def _unname(self, node: Node, directory: Directory, name: bytes, now: int) -> None:
        """An entry was removed: the node loses this name, and with the last one its place in the tree."""
        node.ctime = now
        lose_name(node, directory, name)
        outdate_holders(node, digests=False)
        self._drop(node)

    def _drop(self, node: Node) -> None:
        if isinstance(node, Directory):
            if node.children:
                self.dropped.append(node)
        elif isinstance(node, File) and is_free(node):
            self.nameless.pop(node, None)
            self.dropped.append(node)

    def _log_change(self, node: Node) -> None:
        if isinstance(node, Directory):
            node.volume.log.changed(node)
        elif node.parent is not None:  # else a restart finds nothing that leads to it
            node.parent.volume.log.changed(node)

    def _touch(self, directory: Directory, now: int) -> None:
        directory.mtime = now
        directory.ctime = now
        outdate_digest(directory)

    def _mark_links(self, node: Node) -> None:
        """A node has lost a name: under its other names, and where it is open, it has one link less now."""
        if node.lookups and not isinstance(node, Directory):
            self.stale.insert(-1, (node, None))  # `_mark_stale` looks at the last

    def _mark_stale(self, directory: Directory, name: bytes, old: Child | None) -> None:
        if not directory.lookups:
            return
        if not self.stale or self.stale[-1][0] is not directory:
            self.stale.append((directory, None))
        negatives = directory.negatives
        if (isinstance(old, Node) and old.lookups) or (negatives is not None and name in negatives):
            if negatives is not None:
                negatives.discard(name)
            self.stale.append((directory, name))
