"""Requests about ranges of open files: FALLOCATE, LSEEK, COPY_FILE_RANGE. What they do is drive/extents.py's."""

from __future__ import annotations

import errno
from collections.abc import Awaitable

from outputd.drive.extents import Extents
from outputd.drive.open_file import OpenFile
from outputd.drive.recording import Recordings
from outputd.front.fuse.answers import Answers
from outputd.front.fuse.files import Files
from outputd.tree.status import Status
from outputd.tree.tree import Tree
from outputd.wire.fuse_reply import error_reply, lseek_reply, write_reply
from outputd.wire.fuse_request import decode_copy_file_range, decode_fallocate, decode_lseek


class Ranges:
    """Handlers, as in names.py; what takes long answers later, by an awaitable."""

    def __init__(
        self, tree: Tree, files: Files, extents: Extents, answers: Answers, recordings: Recordings
    ) -> None:
        self._tree = tree
        self._files = files
        self._extents = extents
        self._answers = answers
        self._recordings = recordings

    def fallocate(
        self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int
    ) -> bytes | Awaitable[bytes]:
        fh, offset, length, mode = decode_fallocate(message, end)
        opened = self._files.opened(fh)
        self._drop_privileges(opened, uid)
        outcome = self._extents.allocate(opened, mode, offset, length)
        if isinstance(outcome, Status):
            return self._answers.refuse(unique, outcome)
        return self._allocated(unique, outcome)

    def lseek(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        fh, offset, whence = decode_lseek(message, end)
        found = self._extents.seek(self._files.opened(fh), offset, whence)
        return error_reply(unique, errno.ENXIO) if found is None else lseek_reply(unique, found)

    def copy_file_range(
        self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int
    ) -> bytes | Awaitable[bytes]:
        source, source_offset, _, target, target_offset, length, _ = decode_copy_file_range(message, end)
        read, written = self._files.opened(source), self._files.opened(target)
        self._drop_privileges(written, uid)
        outcome = self._extents.copy(
            read, source_offset, written, target_offset, length, alone=self._files.alone(target)
        )
        if self._recordings.on:
            self._recordings.read(read.file, source_offset, length)
        if isinstance(outcome, int | Status):
            return self._copied(unique, outcome)
        return self._copied_later(unique, outcome)

    async def _allocated(self, unique: int, outcome: Awaitable[Status]) -> bytes:
        return self._answers.refuse(unique, await outcome)

    async def _copied_later(self, unique: int, outcome: Awaitable[int | Status]) -> bytes:
        return self._copied(unique, await outcome)

    def _copied(self, unique: int, outcome: int | Status) -> bytes:
        if isinstance(outcome, Status):
            return self._answers.refuse(unique, outcome)
        return write_reply(unique, outcome)

    def _drop_privileges(self, opened: OpenFile, uid: int) -> None:
        # These two requests have no flag that says whether the caller has CAP_FSETID, as WRITE has.
        if uid:
            self._tree.drop_privileges(opened.file)
