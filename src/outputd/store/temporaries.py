"""One process's directory for blobs on their way in, and the sweep of those that dead processes left; never touches a blob."""

from __future__ import annotations

import fcntl
import itertools
import os
import secrets
from typing import Final

from outputd.disk.disk import Disk


class Temporaries:
    """A directory of our own below `top`, with a lock on it that shows others that we live."""

    def __init__(self, top: str, disk: Disk) -> None:
        """Sweep, then claim a directory. Raises OSError."""
        self._disk = disk
        self._numbers = itertools.count()
        _sweep(top, disk)
        while True:
            self._path = f"{top}/{os.getpid()}-{secrets.token_hex(4)}"
            disk.make_directory(self._path)
            try:
                claim = disk.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue  # Somebody sweeps, and took it for a dead one's.
            fcntl.flock(claim, fcntl.LOCK_SH)
            # Or it was swept between open and flock; then the lock is on a directory without a name.
            if os.fstat(claim).st_nlink:
                break
            os.close(claim)
        self.claim: Final = claim
        """A descriptor on the store's file system."""

    def new_path(self) -> str:
        """A name that nothing has."""
        return f"{self._path}/{next(self._numbers)}"

    def close(self) -> None:
        """Give the directory up. Nothing may be on its way in."""
        try:
            self._disk.remove_directory(self._path)
        except OSError:
            pass  # Not empty, or the disk is gone: the next start sweeps it.
        os.close(self.claim)


def _sweep(top: str, disk: Disk) -> None:
    """Remove the temporaries of processes that are gone; a lock tells, for a pid may be somebody else's by now."""
    for name in disk.list(top):
        path = f"{top}/{name}"
        try:
            claim = disk.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            continue  # Swept by another process at this moment, or not ours.
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in disk.list(path):
                disk.unlink(f"{path}/{left}")
            disk.remove_directory(path)
        except (BlockingIOError, FileNotFoundError):
            pass  # Its process lives, or another one sweeps it too.
        finally:
            os.close(claim)
