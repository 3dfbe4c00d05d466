"""One daemon for one state directory; never touches what is in there besides its own lock file."""

from __future__ import annotations

import fcntl
import os

from outputd.disk.atomic import make_directories
from outputd.disk.disk import Disk
from outputd.errors import Precondition, Unavailable


class DirectoryLock:
    """Held from construction to `close`, or to the end of the process however it ends (flock(2))."""

    def __init__(self, directory: str, disk: Disk, held: int = -1) -> None:
        """Make the directory if need be and lock it; or go on with the lock that `held` holds, which `keep` returned to the
        program that this process ran before.

        Raises Precondition when it belongs to another user, or naming the process that has it, or Unavailable.
        """
        path = f"{directory}/lock"
        if held >= 0:
            self._fd = held
            self._check_held(path)
            return
        try:
            make_directories(disk, directory)
            owner = os.stat(directory).st_uid
            if owner != os.geteuid():
                raise Precondition(
                    f"state directory {directory}: belongs to uid {owner}, and this is uid {os.geteuid()}; `chown -R` it, or give "
                    "this one another directory (--state-dir)"
                )
            self._fd = disk.open(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise Unavailable(f"state directory {directory}: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise Precondition(
                f"state directory {directory}: in use by the outputd with process id {holder}; stop that one, or give this "
                "one another directory (--state-dir)"
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
