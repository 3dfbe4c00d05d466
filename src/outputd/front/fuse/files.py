"""Requests about open files: CREATE, OPEN, READ, WRITE, RELEASE, FSYNC, STATFS. Bytes go through drive/content.py."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Awaitable, Callable

from outputd.drive.content import Content
from outputd.drive.disk_error import disk_error
from outputd.drive.open_file import NotLocal, OpenFile
from outputd.drive.recording import Recordings, Watch
from outputd.front.fuse.answers import Answers
from outputd.front.fuse.handover import Opened
from outputd.front.fuse.kept import KeptHandles
from outputd.front.fuse.passthrough import Passthrough
from outputd.store.waiting import in_thread
from outputd.tree.node import MAX_NAME, Directory, File, Local
from outputd.tree.rules import may_change
from outputd.tree.status import Status
from outputd.tree.tree import Tree
from outputd.wire.fuse_abi import (
    FOPEN_PASSTHROUGH,
    FSYNC_FDATASYNC,
    OPEN_KILL_SUIDGID,
    WRITE_CACHE,
    WRITE_KILL_SUIDGID,
)
from outputd.wire.fuse_reply import (
    create_reply,
    data_header,
    empty_reply,
    error_reply,
    open_reply,
    statfs_reply,
    write_reply,
)
from outputd.wire.fuse_request import (
    decode_create,
    decode_fsync,
    decode_open,
    decode_read,
    decode_release,
    decode_write,
)


class Handle:
    """An open file description of the kernel."""

    __slots__ = ("only_writes", "opened", "slot", "writing")

    def __init__(self, opened: OpenFile, *, writing: bool, slot: int, only_writes: bool = False) -> None:
        self.opened = opened
        self.writing = writing
        self.only_writes = only_writes
        """It cannot read, so not map either; not known of handles that an earlier process gave out."""
        self.slot = slot
        """Where it is kept (kept.py)."""


class Files:
    """Handlers, as in names.py, and the table of open handles. FSYNC answers later, by an awaitable."""

    def __init__(
        self,
        tree: Tree,
        content: Content,
        answers: Answers,
        passthrough: Passthrough,
        store_dir: str,
        send: Callable[[list[bytes | memoryview]], object],
        kept: KeptHandles,
        recordings: Recordings,
    ) -> None:
        """`store_dir` lies on the file system whose room statfs(2) tells; `send` writes a reply that comes in parts."""
        self._tree = tree
        self._content = content
        self._answers = answers
        self._passthrough = passthrough
        self._store_dir = store_dir
        self._send = send
        self._kept = kept
        self._recordings = recordings
        self._handles: dict[int, Handle] = {}
        self.next_fh = 1
        """The number of the next handle; none comes twice in the life of a mount."""
        self.lossy = False
        """Some handles that an earlier process gave out are not known here."""

    def departing(self) -> list[Opened]:
        """The open handles, for the next process."""
        by_inode: dict[OpenFile, list[tuple[int, bool]]] = {}
        for fh, handle in self._handles.items():
            by_inode.setdefault(handle.opened, []).append((fh, handle.writing))
        return [
            Opened(
                opened.file.ino, opened.instance_name, self._passthrough.backing(opened), opened.seen, handles
            )
            for opened, handles in by_inode.items()
        ]

    def reopen(self, file: File, known: Opened) -> None:
        """The handles of one inode, which an earlier process gave out. Raises NotLocal where what was written is not here."""
        for fh, writing in known.handles:
            opened = self._content.open(file, writing=writing)
            slot = self._kept.opened(fh, file.ino, known.backing, writing=writing)
            self._handles[fh] = Handle(opened, writing=writing, slot=slot)
        opened.instance_name = known.instance_name or opened.instance_name
        if known.backing:
            self._passthrough.reopened(opened, known.backing, known.seen)

    @property
    def open_handles(self) -> int:
        return len(self._handles)

    def create(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        flags, mode, _, open_flags, name = decode_create(message, end)
        directory = self._tree.inodes[nodeid]
        assert isinstance(directory, Directory)
        existing = self._tree.lookup(directory, name)
        if existing is not None:  # staged since the kernel looked
            if flags & os.O_EXCL:
                return error_reply(unique, errno.EEXIST)
            if not isinstance(existing, File):
                return error_reply(unique, errno.EISDIR if isinstance(existing, Directory) else errno.ESTALE)
            if _changes(flags) and not may_change(existing):
                return error_reply(unique, errno.EROFS)
            opened = self._open(existing, flags)
            if open_flags & OPEN_KILL_SUIDGID:
                self._tree.drop_privileges(existing)
            return self._created(unique, existing, directory, opened, flags)
        if not directory.volume.writable:
            return error_reply(unique, errno.EROFS)
        if len(name) > MAX_NAME:
            return error_reply(unique, errno.ENAMETOOLONG)
        local, fd = self._content.private.new()
        file = File(stat.S_IFREG | (mode & 0o7777), time.time_ns(), local)
        status = self._tree.create(directory, name, file, uid=uid, gid=gid, now=file.mtime)
        if status is not Status.OK:
            self._content.close_created(file, fd)
            return self._answers.refuse(unique, status)
        return self._created(unique, file, directory, self._content.open_created(file, fd), flags | os.O_RDWR)

    def tmpfile(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        """open(2) with O_TMPFILE; the kernel refuses to link(2) the file later where O_EXCL forbids it."""
        flags, mode, _, _, _ = decode_create(message, end)
        directory = self._tree.inodes[nodeid]
        assert isinstance(directory, Directory)
        local, fd = self._content.private.new()
        file = File(stat.S_IFREG | (mode & 0o7777), time.time_ns(), local)
        status = self._tree.create_nameless(directory, file, uid=uid, gid=gid)
        if status is not Status.OK:
            self._content.close_created(file, fd)
            return self._answers.refuse(unique, status)
        return self._created(unique, file, directory, self._content.open_created(file, fd), flags | os.O_RDWR)

    def is_open(self, file: File) -> bool:
        return self._content.is_open(file)

    def opened(self, fh: int) -> OpenFile:
        """The inode behind an open handle."""
        return self._handles[fh].opened

    def alone(self, fh: int) -> bool:
        """Whether an inode has this handle only, and that cannot read."""
        handle = self._handles[fh]
        return handle.only_writes and handle.opened.handles == 1

    def open(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        flags, open_flags = decode_open(message, end)
        file = self._tree.inodes[nodeid]
        if not isinstance(file, File):
            return error_reply(unique, errno.EISDIR if isinstance(file, Directory) else errno.EINVAL)
        if _changes(flags) and not may_change(file):
            return error_reply(unique, errno.EROFS)
        opened = self._open(file, flags)
        if open_flags & OPEN_KILL_SUIDGID:  # beside O_TRUNC
            self._tree.drop_privileges(file)
        watch = Watch.NOT
        if self._recordings.on and flags & (os.O_ACCMODE | os.O_TRUNC) in (os.O_RDONLY, os.O_RDWR):
            watch = self._recordings.opening(file)
        return open_reply(unique, *self._handle(opened, flags, watch))

    def read(
        self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int
    ) -> bytes | None:
        fh, offset, size, _, _, _ = decode_read(message, end)
        opened = self._handles[fh].opened
        data = self._content.read(opened, offset, size)
        if self._recordings.on:
            self._recordings.read(opened.file, offset, len(data))
        self._send([data_header(unique, len(data)), data])
        return None

    def write(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        fh, offset, write_flags, _, flags, data = decode_write(message, end)
        # O_APPEND as it is now (fcntl(2) can change it), but never for dirty pages of a mapping: they have their place, and the
        # kernel writes them through any writing handle of the inode.
        opened = self._handles[fh].opened
        if write_flags & WRITE_KILL_SUIDGID:
            self._tree.drop_privileges(opened.file)
        append = bool(flags & os.O_APPEND) and not write_flags & WRITE_CACHE
        return write_reply(unique, self._content.write(opened, offset, data, append=append))

    def release(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        self.drop(decode_release(message, end)[0])
        return empty_reply(unique)

    def drop(self, fh: int) -> None:
        """The kernel has, or never got, this handle."""
        handle = self._handles.pop(fh, None)
        if handle is None:
            if not self.lossy:
                raise KeyError(fh)
            return
        self._kept.closed(handle.slot)
        self._content.release(handle.opened, writing=handle.writing)
        self._passthrough.released(handle.opened)

    def fsync(
        self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int
    ) -> bytes | Awaitable[bytes]:
        fh, flags = decode_fsync(message, end)
        try:
            fd = self._content.descriptor(self._handles[fh].opened)
        except NotLocal:
            return empty_reply(unique)  # no byte of it is here that could be lost
        own = os.dup(fd)  # the handle may be released, or its descriptor exchanged, before this is through
        return self._synced(unique, own, os.fdatasync if flags & FSYNC_FDATASYNC else os.fsync)

    def statfs(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        room = os.statvfs(self._store_dir)
        return statfs_reply(
            unique,
            room.f_blocks,
            room.f_bfree,
            room.f_bavail,
            room.f_files,
            room.f_ffree,
            room.f_bsize,
            MAX_NAME,
            room.f_frsize,
        )

    def close_all(self) -> None:
        """The mount is gone: no RELEASE will come."""
        for handle in self._handles.values():
            opened = handle.opened
            content = opened.file.content
            if handle.writing and opened.direct and isinstance(content, Local):
                # Its process may still write through it (orphans.py): no blob before a restart has cut it off.
                content.writers += 1
            self._content.release(opened, writing=handle.writing)
            self._passthrough.released(opened)
        self._handles.clear()

    async def _synced(self, unique: int, own: int, sync: Callable[[int], None]) -> bytes:
        try:
            await in_thread(sync, own)
        except OSError as error:
            raise disk_error(error, "fsync") from error
        finally:
            os.close(own)
        return empty_reply(unique)

    def _open(self, file: File, flags: int) -> OpenFile:
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        return self._content.open(file, writing=writing, truncate=bool(flags & os.O_TRUNC))

    def _created(self, unique: int, file: File, directory: Directory, opened: OpenFile, flags: int) -> bytes:
        ino = self._tree.remember(file, directory)
        return create_reply(
            unique,
            ino,
            0,
            self._answers.validity,
            self._answers.attributes(file),
            *self._handle(opened, flags),
        )

    def _handle(self, opened: OpenFile, flags: int, watch: Watch = Watch.NOT) -> tuple[int, int, int]:
        """A new handle: its number, and `open_flags` and `backing_id` of the reply."""
        fh = self.next_fh
        self.next_fh += 1
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        open_flags, backing = self._passthrough.flags(opened, writing=writing, watch=watch)
        if watch is not Watch.NOT and open_flags & FOPEN_PASSTHROUGH:
            self._recordings.read_unseen(opened.file)
        slot = self._kept.opened(fh, opened.file.ino, backing, writing=writing)
        # A bit of its own, which CREATE has beside O_RDWR here.
        only_writes = bool(flags & os.O_WRONLY)
        self._handles[fh] = Handle(opened, writing=writing, slot=slot, only_writes=only_writes)
        return fh, open_flags, backing


def _changes(flags: int) -> bool:
    """Whether somebody opens a file to change it."""
    return flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
