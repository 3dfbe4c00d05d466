"""One daemon for one directory, its state or its cache; never touches what is in there besides its own lock file."""

from __future__ import annotations

import fcntl
import os
from typing import Final, NamedTuple

from outputd.disk.atomic import make_directories
from outputd.disk.disk import Disk
from outputd.errors import Precondition, Unavailable


class Locked(NamedTuple):
    """A kind of directory."""

    name: str
    file: str
    """What the lock is called; one directory may be both kinds."""
    flag: str


STATE: Final = Locked("state directory", "lock", "--state-dir")
CACHE: Final = Locked("cache directory", "cache.lock", "--cache-dir")


class DirectoryLock:
    """Held from construction to `close`, or to the end of the process however it ends (flock(2))."""

    def __init__(self, kind: Locked, directory: str, disk: Disk, held: int = -1) -> None:
        """Make the directory if need be and lock it; or go on with the lock that `held` holds, which `keep` returned to the
        program that this process ran before.

        Raises Precondition when it belongs to another user, or naming the process that has it, or Unavailable.
        """
        path = f"{directory}/{kind.file}"
        if held >= 0:
            self._fd = held
            self._check_held(path)
            return
        try:
            make_directories(disk, directory)
            owner = os.stat(directory).st_uid
            if owner != os.geteuid():
                raise Precondition(
                    f"{kind.name} {directory}: belongs to uid {owner}, and this is uid {os.geteuid()}; `chown -R` it, or give "
                    f"this one another directory ({kind.flag})"
                )
            self._fd = disk.open(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise Unavailable(f"{kind.name} {directory}: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Always as long, and never cut: a full disk has no block to give for it.
            os.pwrite(self._fd, b"%-19d\n" % os.getpid(), 0)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise Precondition(
                f"{kind.name} {directory}: in use by the outputd with process id {holder}; stop that one, or give this "
                f"one another directory ({kind.flag})"
            ) from error
        except OSError as error:
            os.close(self._fd)
            raise Unavailable(f"{path}: {error.strerror}") from error

    def _check_held(self, path: str) -> None:
        try:
            same = os.path.samestat(os.fstat(self._fd), os.stat(path))
        except OSError as error:
            raise Unavailable(f"{path}: {error.strerror}") from error
        if not same:
            raise Precondition(f"{path}: is not the lock that this process was handed")

    def keep(self) -> int:
        """A descriptor that holds the lock on, also beyond `close`; for the program that this process runs next."""
        return os.dup(self._fd)

    def close(self) -> None:
        """Let the next one in. The file stays: to remove it would let two in at once."""
        os.close(self._fd)
