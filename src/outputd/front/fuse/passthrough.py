"""Passthrough: the kernel reads, writes and maps the file behind a handle itself. Decides for which, and keeps the accounts.

Rules of the kernel (fs/fuse/iomode.c, passthrough.c): all handles of an inode are of one kind at a time, through the page cache of
the mount or passed through, and those passed through share one backing file. So the first handle decides, and the others follow.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
from typing import Final

from outputd.drive.content import Content
from outputd.drive.open_file import NotLocal, OpenFile
from outputd.drive.recording import Watch
from outputd.wire.fuse_abi import (
    DEV_IOC_BACKING_CLOSE,
    DEV_IOC_BACKING_OPEN,
    FOPEN_KEEP_CACHE,
    FOPEN_PASSTHROUGH,
)

_log = logging.getLogger(__name__)

_WORTH_IT: Final = 64 << 10
"""Bytes from which on a file opened for reading is passed through. Smaller ones are read once into the mount's page cache, where a
second reader finds them without an ioctl at each open."""
_BACKING_MAP: Final = struct.Struct("=iIQ")  # fuse_backing_map: fd, flags, padding


class Passthrough:
    """The backing files of one connection."""

    def __init__(self, device: int, content: Content, *, wanted: bool) -> None:
        self._device = device
        self._content = content
        self.wanted = wanted
        """What the settings say."""
        self.enabled = False
        """Whether it is wanted, the kernel offered it, and has not refused it since."""
        self._backings: dict[OpenFile, int] = {}
        """The kernel's id of the backing file, for inodes that are passed through."""

    def flags(self, opened: OpenFile, *, writing: bool, watch: Watch = Watch.NOT) -> tuple[int, int]:
        """For a handle that was just added: `open_flags` and `backing_id` of the reply."""
        file = opened.file
        if opened.direct:
            return FOPEN_PASSTHROUGH, self._backings[opened]
        if watch is not Watch.NOT:
            return 0 if watch is Watch.AFRESH else FOPEN_KEEP_CACHE, 0
        if self.enabled and opened.handles == 1 and (writing or file.content.size >= _WORTH_IT):
            backing = self._back(opened)
            if backing:
                return FOPEN_PASSTHROUGH, backing
        # Pages from before a time of passthrough are gone: such an open, not keeping them, drops them (fuse_open). And so must go
        # what the remote had sent in place of the blob, before that was found out.
        return FOPEN_KEEP_CACHE if self._content.trusted(file) else 0, 0

    def released(self, opened: OpenFile) -> None:
        """A handle is gone; with the last one the kernel gives the backing file up."""
        if opened.handles or not opened.direct:
            return
        opened.direct = False
        try:
            fcntl.ioctl(self._device, DEV_IOC_BACKING_CLOSE, struct.pack("=I", self._backings.pop(opened)))
        except OSError as error:
            _log.debug("a backing file was gone already: %s", error.strerror)  # with the connection

    def backing(self, opened: OpenFile) -> int:
        """The kernel's id of an inode's backing file; 0 where there is none."""
        return self._backings.get(opened, 0)

    def reopened(self, opened: OpenFile, backing: int, seen: int) -> None:
        """An earlier process gave the kernel the inode's file, and had accounted for what was written until `seen`."""
        self._backings[opened] = backing
        try:
            self._content.descriptor(opened)
        except NotLocal:
            pass  # the store has lost a blob; the kernel still has it
        opened.direct = True
        opened.seen = seen

    def _back(self, opened: OpenFile) -> int:
        """Hand the inode's file to the kernel; 0 when it must be served by us."""
        try:
            fd = self._content.descriptor(opened)
        except NotLocal:
            return 0
        request = bytearray(_BACKING_MAP.pack(fd, 0, 0))
        try:
            # With mutable bytes the call returns the kernel's value, which is the id.
            backing: int = fcntl.ioctl(self._device, DEV_IOC_BACKING_OPEN, request, True)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTTY):
                self.enabled = False
                _log.info(
                    "files are served without passthrough: the kernel refused it (%s)",
                    os.strerror(error.errno),
                )
            else:
                _log.debug("a file is served without passthrough: %s", error)
            return 0
        self._backings[opened] = backing
        self._content.make_direct(opened)
        return backing
