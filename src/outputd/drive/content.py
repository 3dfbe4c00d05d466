"""The bytes of files: open handles, reads from the store, private files for what is written, copy-out before the first write.

One descriptor per open inode, shared by its handles, so that readers see what writers write. Blobs of the store are only ever
opened read-only; a writer gets a private copy. What happens after the last writer closed is ingest.py's.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

from outputd.digest import Digest
from outputd.drive.flights import Flights
from outputd.drive.open_file import Frozen, NotLocal, OpenFile, TooLong
from outputd.drive.private_files import PrivateFiles, is_large
from outputd.drive.siblings import Permits, Siblings
from outputd.errors import NotFound, OutputdError, TimedOut
from outputd.store.base import BlobStore
from outputd.store.room import is_full
from outputd.store.waiting import in_thread
from outputd.tree.node import File, Local
from outputd.tree.tree import Tree

_BUFFER: Final = 1 << 20
"""Bytes that one read brings at most: what the kernel asks for in one request (fs.fuse.max_pages_limit)."""
_SAME_READ: Final = 1.0
"""Seconds for which a failure answers whoever reads the same open file: when read-ahead has failed, the kernel sends a second READ
for the same read(2) (filemap_read, filemap_read_folio), and the reader would wait, and all be fetched, twice."""
_PAST: Final = 10**9
"""Nanoseconds: more than the step of any file system's clock but FAT's, where nobody keeps a cache."""


class Content:
    """Opens, reads and writes files of one tree. Lives on the event loop; raises NotLocal where the disk alone does not do."""

    def __init__(
        self,
        tree: Tree,
        blobs: BlobStore,
        private: PrivateFiles,
        tasks: asyncio.TaskGroup,
        *,
        read_timeout: float,
        closed: Callable[[File], None],
        gone: Callable[[File], None] = lambda _: None,
        permits: Permits | None = None,
    ) -> None:
        """`closed` is told of every file that has local bytes and no writer any more, `gone` of every one whose blob is nowhere.
        `permits` is asked before files are read ahead."""
        self._gone = gone
        self._tree = tree
        self._blobs = blobs
        self.private: Final = private
        self._read_timeout = read_timeout
        self._closed = closed
        self._buffer: Final = memoryview(bytearray(_BUFFER))
        self._open: dict[File, OpenFile] = {}
        self._fetches: Flights[Digest] = Flights(tasks)
        self._copies: Flights[File] = Flights(tasks)
        self._spoilt: set[Digest] = set()
        self.read_ahead: Final = Siblings(blobs, permits)
        """To be run as long as files are read."""

    # handles

    def open(self, file: File, *, writing: bool, truncate: bool = False) -> OpenFile:
        """One more handle. Raises NotLocal(writable) for a writer of a blob that must first be copied out, Frozen, and TooLong."""
        if truncate:
            self.truncate(file, 0)
        elif writing and not isinstance(file.content, Local):
            self._check_frozen(file)
            if file.content.size:
                raise NotLocal(file, writable=True)
            self._replace_by_empty(file)
        opened = self._open.get(file)
        if opened is None:
            opened = self._open[file] = OpenFile(file)
        opened.handles += 1
        opened.copied = None
        if writing:
            assert isinstance(file.content, Local)
            file.content.writers += 1
        return opened

    def close_created(self, file: File, fd: int) -> None:
        """The file around a new private file is not to be opened now, or was refused by the tree."""
        os.close(fd)
        if file.nlink:
            self._closed(file)
        else:
            assert isinstance(file.content, Local)
            self.private.remove(file.content)

    def open_created(self, file: File, fd: int) -> OpenFile:
        """The first handle, a writing one, of a file that was created around a new private file."""
        assert isinstance(file.content, Local)
        opened = self._open[file] = OpenFile(file)
        opened.fd = fd
        opened.handles = 1
        file.content.writers = 1
        return opened

    def release(self, opened: OpenFile, *, writing: bool) -> None:
        """A handle is gone."""
        file = opened.file
        opened.handles -= 1
        content = file.content
        if writing:
            assert isinstance(content, Local)
            if opened.direct:
                self._catch_up(opened, content, os.fstat(opened.fd))
            content.writers -= 1
            if content.writers == 0:
                self._tree.outdate_attributes(file)  # told once for all that was written
        if opened.handles == 0:
            del self._open[file]
            opened.give_up_ranges()
            if opened.fd >= 0:
                os.close(opened.fd)
            if isinstance(content, Local) and file.nlink == 0:
                if (
                    file.lookups == 0
                ):  # else the kernel can still open it; the tree drops it once that is forgotten
                    self._tree.dropped.append(file)
                return
        if writing and isinstance(content, Local) and content.writers == 0:
            self._closed(file)

    def named(self, file: File) -> None:
        """The file got a name, or bytes of its own. If it is its first, nobody was told when its last writer closed it."""
        if isinstance(file.content, Local) and file.content.writers == 0:
            self._closed(file)

    def open_digests(self) -> set[Digest]:
        """The blobs of open files, some of which may have to be opened yet. From any thread."""
        return {file.content for file in list(self._open) if isinstance(file.content, Digest)}

    def spoilt(self, digest: Digest) -> None:
        """Of this blob bytes were read that turned out to be wrong."""
        self._spoilt.add(digest)

    def trusted(self, file: File) -> bool:
        """Whether what was read of a file before can be relied on."""
        return file.content not in self._spoilt

    def is_open(self, file: File) -> bool:
        return file in self._open

    async def discard(self, file: File) -> None:
        """Delete the private bytes of a file that nobody can reach any more; while handles are open this waits for the last."""
        if file not in self._open and isinstance(file.content, Local):
            await self.private.discard(file.content)

    # bytes

    def descriptor(self, opened: OpenFile) -> int:
        """A descriptor to read from. Raises NotLocal."""
        if opened.fd < 0:
            opened.fd = self._descriptor_of(opened.file)
        return opened.fd

    def read(self, opened: OpenFile, offset: int, size: int) -> memoryview:
        """Up to `size` bytes, at most 1 MiB, which lie there until the next read; short only at the end. Raises NotLocal."""
        fd = opened.fd if opened.fd >= 0 else self._readable(opened, offset, size)
        # One buffer for all: to allocate 256 KiB for each read costs 64 page faults.
        return self._buffer[: os.preadv(fd, [self._buffer[:size]], offset)]

    def writable_descriptor(self, opened: OpenFile) -> int:
        """The descriptor of a file that is open for writing, to change its bytes with; `changed` is to be told of it."""
        assert isinstance(opened.file.content, Local)
        if opened.fd < 0:
            opened.fd = self.private.open(opened.file.content)
        return opened.fd

    def write(self, opened: OpenFile, offset: int, data: memoryview, *, append: bool) -> int:
        """Bytes written by a writing handle. Raises Exhausted when the disk is full, Unavailable when it fails."""
        file = opened.file
        local = file.content
        assert isinstance(local, Local)
        fd = opened.fd if opened.fd >= 0 else self.writable_descriptor(opened)
        if append:
            offset = local.size
        try:
            try:
                written = os.pwrite(fd, data, offset)
            except OSError as error:
                if not is_full(error) or not self.private.make_room(len(data)):
                    raise
                written = os.pwrite(fd, data, offset)
        except OSError as error:
            raise self.private.error(error) from error
        if offset + written > local.size:
            local.size = offset + written
        self._note_change(file, local)
        return written

    def changed(self, opened: OpenFile) -> None:
        """The bytes of a writing handle were changed through its descriptor."""
        local = opened.file.content
        assert isinstance(local, Local)
        local.size = os.fstat(opened.fd).st_size
        self._note_change(opened.file, local)

    def settle(self, opened: OpenFile) -> int:
        """Have whatever the kernel writes from here on without telling us be noticed; the version of the bytes as they are."""
        local = opened.file.content
        assert isinstance(local, Local)
        if opened.direct:
            # Not the time of now: file systems count coarsely, and a write at this moment would leave no trace.
            opened.seen = os.fstat(opened.fd).st_mtime_ns - _PAST
            os.utime(opened.fd, ns=(opened.seen, opened.seen))
        return local.version

    def is_local(self, file: File) -> bool:
        """Whether reading needs nothing from elsewhere."""
        return isinstance(file.content, Local) or self._blobs.local.has(file.content)

    def blocks(self, file: File) -> int:
        """What a file with local bytes takes on the disk, in units of 512 bytes (st_blocks)."""
        assert isinstance(file.content, Local)
        opened = self._open.get(file)
        if opened is not None and opened.fd >= 0:
            status = os.fstat(opened.fd)
            if opened.direct:
                self._catch_up(opened, file.content, status)
            return status.st_blocks
        try:
            return os.stat(self.private.path(file.content)).st_blocks
        except FileNotFoundError:
            return 0  # lost in a crash; who reads it is told

    def truncate(self, file: File, size: int) -> None:
        """Set a file's length, open or not. Raises NotLocal(writable), Frozen, TooLong, Exhausted, Unavailable."""
        if not isinstance(file.content, Local):
            self._check_frozen(file)
            if size and file.content.size:
                raise NotLocal(file, writable=True)
            self._replace_by_empty(file)
        local = file.content
        assert isinstance(local, Local)
        self.catch_up(file)  # else bytes that were passed through and not heard of yet would stay
        if local.size != size:
            if is_large(local.size - size):
                raise TooLong(file, size)
            try:
                os.truncate(self.private.path(local), size)
            except OSError as error:
                raise self.private.error(error) from error
            local.size = size
        self._note_change(file, local)
        if local.writers == 0:
            self._closed(file)

    async def cut(self, file: File, size: int) -> None:
        """What TooLong asks for. Raises Exhausted, Unavailable."""
        if not isinstance(file.content, Local):
            return
        held = self.open(file, writing=True)  # nobody is to hash it meanwhile
        try:
            fd = os.dup(self.writable_descriptor(held))
            try:
                await in_thread(os.ftruncate, fd, size)
            except OSError as error:
                raise self.private.error(error) from error
            finally:
                os.close(fd)
                self.changed(held)
        finally:
            self.release(held, writing=True)

    async def localise(self, file: File, *, writable: bool, wanted: tuple[int, int] | None = None) -> None:
        """Bring a file's bytes to the disk, and if `writable` into a private file; only those `wanted`, offset and size, if the
        file is open and may be had in parts. Ends within the read timeout.

        Raises NotFound, Corrupt, Unavailable, TimedOut, Denied or Exhausted.
        """
        digest = file.content
        if isinstance(digest, Local):
            return
        opened = self._open.get(file)
        if opened is not None and opened.failure is not None:
            when, error = opened.failure
            if time.monotonic() - when < _SAME_READ:
                raise type(error)(str(error)) from error
        try:
            await self._localise(file, digest, writable=writable, wanted=wanted)
        except OutputdError as error:
            if opened is not None:
                opened.failure = time.monotonic(), error
            if isinstance(error, NotFound):
                self._gone(file)
            raise

    async def _localise(
        self, file: File, digest: Digest, *, writable: bool, wanted: tuple[int, int] | None
    ) -> None:
        opened = self._open.get(file)
        try:
            async with asyncio.timeout(self._read_timeout):
                if wanted is not None and opened is not None and opened.ranges is not None:
                    await opened.ranges.need(*wanted)
                    return
                if not self._blobs.local.has(digest):
                    self.read_ahead.fetching(file, digest)
                    await self._blobs.of_instance(self._instance_of(file)).fetch(digest)
                if writable:
                    try:
                        await self._copies.join(file, lambda: self._copy_out(file, digest))
                    finally:
                        # In case the writer it was copied for never comes. Not before who waited for it goes on: ingest would
                        # make it a blob again, and the writer come too late once more. It passes over files with writers.
                        self.named(file)
        except TimeoutError:
            raise TimedOut(f"blob {digest}: not here after {self._read_timeout:g} s") from None

    async def _copy_out(self, file: File, digest: Digest) -> None:
        source = self._blobs.local.open(digest)
        if source is None:
            raise NotFound(f"blob {digest}: was here a moment ago and is gone")
        try:
            local, target = await self.private.copied(source, digest.size)
        finally:
            os.close(source)
        opened = self._open.get(file)
        if (
            file.content is not digest
            or (opened is not None and opened.direct)  # somebody opened it meanwhile
            or not (file.nlink or file.lookups or opened)  # whoever wanted it gave up, and its node is gone
        ):
            os.close(target)
            self.private.remove(local)
            return
        self._become_local(file, local, target)

    def make_direct(self, opened: OpenFile) -> None:
        """The kernel is given the file behind `fd`, for as long as the inode has open handles."""
        opened.direct = True
        opened.seen = os.fstat(opened.fd).st_mtime_ns

    def catch_up(self, file: File) -> None:
        """To be called before times or the length are set, else what was written before would be taken for later."""
        opened = self._open.get(file)
        if opened is not None and opened.direct and isinstance(file.content, Local):
            self._catch_up(opened, file.content, os.fstat(opened.fd))

    def _check_frozen(self, file: File) -> None:
        opened = self._open.get(file)
        if opened is not None and opened.direct:
            raise Frozen(file)

    def _catch_up(self, opened: OpenFile, local: Local, status: os.stat_result) -> None:
        """Account for what the kernel has written without telling us."""
        local.size = status.st_size
        if status.st_mtime_ns != opened.seen:
            opened.seen = status.st_mtime_ns
            local.version += 1
            file = opened.file
            file.mtime = status.st_mtime_ns
            file.ctime = max(file.ctime, status.st_mtime_ns)  # it may have been renamed since
            self._tree.outdate_attributes(file)

    def _instance_of(self, file: File) -> str:
        if file.parent is not None:
            return file.parent.volume.instance_name
        opened = self._open.get(file)
        return "" if opened is None else opened.instance_name

    def _note_change(self, file: File, local: Local) -> None:
        local.version += 1
        file.mtime = file.ctime = time.time_ns()
        if local.writers:
            self._tree.written(file)
        else:
            self._tree.outdate_attributes(file)

    def _replace_by_empty(self, file: File) -> None:
        local, fd = self.private.new()
        self._become_local(file, local, fd)

    def _become_local(self, file: File, local: Local, fd: int) -> None:
        """Readers that hold the inode open read the new bytes from here on, as on any file system."""
        os.utime(
            fd, ns=(file.mtime, file.mtime)
        )  # what is younger was written to it: restoring.py goes by that
        self._tree.set_content(file, local)
        opened = self._open.get(file)
        if opened is None:
            os.close(fd)
            return
        opened.give_up_ranges()
        if opened.fd >= 0:
            os.close(opened.fd)
        opened.fd = fd

    def _readable(self, opened: OpenFile, offset: int, size: int) -> int:
        """A descriptor to read these bytes from. Raises NotLocal."""
        ranges = opened.ranges
        if ranges is None:
            file = opened.file
            try:
                return self.descriptor(opened)
            except NotLocal:
                assert isinstance(file.content, Digest)
                blobs = self._blobs.of_instance(self._instance_of(file))
                ranges = opened.ranges = blobs.ranges(file.content)
                if ranges is None:
                    raise
        if not ranges.has(offset, size):
            raise NotLocal(opened.file, writable=False, wanted=(offset, size))
        return ranges.fd

    def _descriptor_of(self, file: File) -> int:
        content = file.content
        if isinstance(content, Local):
            return self.private.open(content)
        fd = self._blobs.local.open(content)
        if fd is None:
            raise NotLocal(file, writable=False)
        return fd
