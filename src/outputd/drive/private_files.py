"""The files that hold what was written locally, one for each, until it is a blob: made, opened, copied into, removed.

Never decides which file of the tree has one.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection
from typing import Final

from outputd.disk.disk import Disk
from outputd.drive.disk_error import disk_error
from outputd.errors import OutputdError
from outputd.store.room import is_full
from outputd.store.waiting import in_thread
from outputd.tree.node import Local

_log = logging.getLogger(__name__)

_LARGE: Final = 16 << 20
"""Bytes from which on a thread gives them back, by unlink(2) or ftruncate(2): 50 us a megabyte in the page cache (ext4)."""
_INLINE_COPY: Final = 256 << 10
"""Bytes up to which a copy does not go to a thread."""


def is_large(size: int) -> bool:
    """Whether to give back so many bytes takes longer than the event loop has."""
    return size >= _LARGE


class PrivateFiles:
    """One directory of them."""

    def __init__(
        self, disk: Disk, directory: str, make_room: Callable[[int], bool] = lambda _: False
    ) -> None:
        """`make_room` is asked when the disk is full, and says whether to try once more."""
        self._disk = disk
        self._directory = directory
        self.make_room: Final = make_room
        # Keys only have to differ from those of files that an earlier run left behind.
        self._next_key = self._first_key = time.time_ns()

    def path(self, local: Local) -> str:
        """Where the bytes of a local file lie."""
        return f"{self._directory}/{local.key}"

    def new(self) -> tuple[Local, int]:
        """An empty file and a descriptor of it. Raises Exhausted or Unavailable."""
        local = Local(self._next_key)
        self._next_key += 1
        return local, self.open(local, os.O_CREAT | os.O_EXCL)

    def open(self, local: Local, flags: int = 0) -> int:
        """A descriptor to read and write. Raises Exhausted or Unavailable."""
        path, flags = self.path(local), os.O_RDWR | os.O_CLOEXEC | flags
        try:
            try:
                return os.open(path, flags, 0o600)
            except OSError as error:
                if not is_full(error) or not self.make_room(0):
                    raise
                return os.open(path, flags, 0o600)
        except OSError as error:
            raise self.error(error) from error

    async def copied(self, source: int, size: int) -> tuple[Local, int]:
        """A file with the bytes of an open file, some `size`, and a descriptor of it. Raises Exhausted or Unavailable."""
        local, target = self.new()
        try:
            if size <= _INLINE_COPY:
                self._disk.copy(source, target)
            else:
                await in_thread(self._disk.copy, source, target)
        except BaseException as error:
            os.close(target)
            os.unlink(self.path(local))
            if isinstance(error, OSError):
                raise self.error(error) from error
            raise
        local.size = os.fstat(target).st_size
        return local, target

    def remove(self, local: Local) -> None:
        """Give its bytes back; may run in a thread. One that is not there is no news: it was swept at the start, when nobody knew
        yet that it had a name in a directory that was not loaded."""
        path = self.path(local)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            _log.warning("%s: cannot be removed: %s", path, error.strerror)  # swept at the next start

    async def discard(self, local: Local) -> None:
        """As `remove`, in a thread where it takes long."""
        if is_large(local.size):
            await in_thread(self.remove, local)
        else:
            self.remove(local)

    def sweep(self, keep: Collection[int]) -> int:
        """Delete what earlier runs left behind, but for the keys in `keep`; returns how many files that were. May run in a thread.

        Raises Unavailable.
        """
        swept = 0
        try:
            for name in self._disk.list(self._directory):
                if name.isdecimal() and int(name) < self._first_key and int(name) not in keep:
                    self._disk.unlink(f"{self._directory}/{name}")
                    swept += 1
        except OSError as error:
            raise self.error(error) from error
        return swept

    def error(self, error: OSError) -> OutputdError:
        """What a failed system call on one of them means."""
        return disk_error(error, self._directory)
