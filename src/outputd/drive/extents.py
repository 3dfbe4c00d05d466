"""Ranges of files: allocate, zero and punch them, find data and holes, copy from file to file. Reads no byte itself.

Works on the descriptors of content.py. What may take long runs in a thread, while the file is held open for writing, so that
nobody hashes it meanwhile.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

from outputd.drive.content import Content
from outputd.drive.disk_error import disk_error
from outputd.drive.open_file import Copied, NotLocal, OpenFile
from outputd.store.waiting import in_thread
from outputd.tree.node import Local
from outputd.tree.status import Status

T = TypeVar("T")

_INLINE_COPY: Final = 128 << 10
"""Bytes up to which a copy does not go to a thread: 30 us, which is less than the way there and back."""
_INLINE_ALLOCATION: Final = 1 << 20
_COPY_STEP: Final = 16 << 20
"""Bytes one request copies at most: copy_file_range(2) may copy less than it was asked for, and its caller asks again."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Extents:
    """Operations on open files. The caller has checked that a file to be changed is open for writing."""

    def __init__(self, content: Content) -> None:
        self._content = content

    def allocate(self, opened: OpenFile, mode: int, offset: int, length: int) -> Status | Awaitable[Status]:
        """fallocate(2), with the modes that the disk below has; UNSUPPORTED otherwise. Raises Exhausted, Unavailable."""
        fd = self._content.writable_descriptor(opened)
        work = partial(_fallocate, mode, offset, length)
        if length <= _INLINE_ALLOCATION:
            return self._now(opened, work, fd)
        return self._later(opened, work, fd)

    def seek(self, opened: OpenFile, offset: int, whence: int) -> int | None:
        """lseek(2) with SEEK_DATA or SEEK_HOLE; None past the end, or where no data follows.

        A blob that is not here is taken for data from its first byte to its last: to look closer would mean to fetch it.
        """
        try:
            fd = self._content.descriptor(opened)
        except NotLocal:
            size = opened.file.content.size
            if not 0 <= offset < size:
                return None
            return offset if whence == os.SEEK_DATA else size
        try:
            # It moves the descriptor's own offset, which nobody uses: all else is pread(2) and pwrite(2).
            return os.lseek(fd, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise disk_error(error, "seek for data or a hole") from error

    def copy(
        self,
        source: OpenFile,
        source_offset: int,
        target: OpenFile,
        target_offset: int,
        length: int,
        *,
        alone: bool = False,
    ) -> int | Status | Awaitable[int | Status]:
        """copy_file_range(2), extents shared where the disk can; UNSUPPORTED where it refuses. Raises NotLocal for a source that
        must be fetched first, Exhausted, Unavailable.

        `alone`: the target has one handle, which cannot read, so not map either. A blob that is copied into it as a whole, in any
        number of steps, is known again (`Local.twin`).
        """
        fds = self._content.descriptor(source), self._content.writable_descriptor(target)
        count = min(length, _COPY_STEP)
        work: Callable[..., int | Status] = partial(_copy_range, source_offset, target_offset, count)
        beginning: Copied | None = None
        if alone and source_offset == target_offset:
            self._content.catch_up(target.file)
            beginning = _beginning(source, target, source_offset)
        done: Callable[[int | Status], None] = partial(self._note_copied, target, beginning)
        if count <= _INLINE_COPY:
            target.copied = beginning
            return self._now(target, work, *fds, done=done)
        later = self._later(target, work, *fds, done=done)
        # Not before: `_later` has opened it for itself. Whoever does from here on takes this away.
        target.copied = beginning
        return later

    def _note_copied(self, target: OpenFile, beginning: Copied | None, copied: int | Status) -> None:
        """After a step, during which the kernel has held the target's lock."""
        if beginning is None or target.copied is not beginning or isinstance(copied, Status):
            return
        local = target.file.content
        assert isinstance(local, Local)
        size = beginning.size + copied
        if local.size == size:
            target.copied = Copied(beginning.blob, size, self._content.settle(target))
            if size == beginning.blob.size:
                local.twin = beginning.blob, local.version

    def _now(
        self, target: OpenFile, work: Callable[..., T], *fds: int, done: Callable[[T], None] = lambda _: None
    ) -> T:
        """What `work` gives, which `done` is told of when the change is accounted for."""
        refused = False
        try:
            outcome = work(*fds)
            refused = _is_refusal(outcome)
        finally:
            if not refused:  # where it failed, a part may have been done
                self._content.changed(target)
        done(outcome)
        return outcome

    def _later(
        self, target: OpenFile, work: Callable[..., T], *fds: int, done: Callable[[T], None] = lambda _: None
    ) -> Awaitable[T]:
        """As `_now`, in a thread, on descriptors of its own: those of an inode are exchanged when a blob is copied out."""
        held = self._content.open(target.file, writing=True)
        return self._in_thread(held, work, [os.dup(fd) for fd in fds], done)

    async def _in_thread(
        self, held: OpenFile, work: Callable[..., T], own: list[int], done: Callable[[T], None]
    ) -> T:
        refused = False
        try:
            try:
                outcome = await in_thread(work, *own)
                refused = _is_refusal(outcome)
            finally:
                for fd in own:
                    os.close(fd)
                if not refused:
                    self._content.changed(held)
            done(outcome)
        finally:
            self._content.release(held, writing=True)
        return outcome


def _is_refusal(outcome: object) -> bool:
    """Whether nothing was done: refused, or no byte copied, as at the end of a file."""
    return outcome is not Status.OK if isinstance(outcome, Status) else outcome == 0


def _beginning(source: OpenFile, target: OpenFile, size: int) -> Copied | None:
    """So much of the source, if that is a blob which the target may become, and all that the target holds."""
    blob, local = source.file.content, target.file.content
    assert isinstance(local, Local)
    # The blob of another instance of the CAS would be looked for in the wrong one.
    if isinstance(blob, Local) or source.instance_name != target.instance_name:
        return None
    beginning = Copied(blob, size, local.version)
    return beginning if (local.size == 0 if size == 0 else target.copied == beginning) else None


def _copy_range(source_offset: int, target_offset: int, count: int, source: int, target: int) -> int | Status:
    try:
        return os.copy_file_range(source, target, count, source_offset, target_offset)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            return Status.UNSUPPORTED  # a file system that cannot do it says so in one of these ways
        raise disk_error(error, "copy a range") from error


def _fallocate(mode: int, offset: int, length: int, fd: int) -> Status:
    # The os module has posix_fallocate(3) only: no modes, and zeros written by hand where the file system cannot allocate.
    if _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) == 0:
        return Status.OK
    number = ctypes.get_errno()
    if number in (errno.EOPNOTSUPP, errno.ENOSYS):
        return Status.UNSUPPORTED
    if number == errno.EINVAL:
        return Status.INVALID
    raise disk_error(OSError(number, os.strerror(number)), "allocate a range")
