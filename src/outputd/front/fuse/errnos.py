"""From our words to errno, once: tree refusals and errors.py. Total over both; a word without an entry fails the unit test."""

from __future__ import annotations

import errno
from typing import Final

from outputd.errors import (
    Corrupt,
    Denied,
    Exhausted,
    Invalid,
    NotFound,
    OutputdError,
    Precondition,
    Refused,
    Throttled,
    TimedOut,
    TooLarge,
    Unavailable,
    Unproven,
    Unreachable,
    Unsupported,
)
from outputd.tree.status import Status

OF_STATUS: Final[dict[Status, int]] = {
    Status.OK: 0,
    Status.ABSENT: errno.ENOENT,
    Status.EXISTS: errno.EEXIST,
    Status.NOT_DIRECTORY: errno.ENOTDIR,
    Status.IS_DIRECTORY: errno.EISDIR,
    Status.NOT_EMPTY: errno.ENOTEMPTY,
    Status.INVALID: errno.EINVAL,
    Status.READ_ONLY: errno.EROFS,
    Status.CROSS_DEVICE: errno.EXDEV,
    Status.NAME_TOO_LONG: errno.ENAMETOOLONG,
    Status.TOO_MANY_LINKS: errno.EMLINK,
    Status.NOT_PERMITTED: errno.EPERM,
    Status.NO_ATTRIBUTE: errno.ENODATA,
    Status.NO_ROOM: errno.ENOSPC,
    Status.UNSUPPORTED: errno.EOPNOTSUPP,
}

OF_ERROR: Final[dict[type[OutputdError], int]] = {
    Invalid: errno.EINVAL,
    Precondition: errno.EINVAL,
    # Of an output whose bytes are nowhere any more. Not ENOENT, for the name is there; and no other error says this.
    NotFound: errno.ENODATA,
    Corrupt: errno.EIO,
    Unavailable: errno.EIO,  # the disk below
    TimedOut: errno.ETIMEDOUT,
    Unreachable: errno.EREMOTEIO,
    Exhausted: errno.ENOSPC,
    Throttled: errno.EBUSY,
    TooLarge: errno.EFBIG,
    # Not EACCES: that would send people to look at the modes of files. kAFS says it like this, too.
    Denied: errno.EKEYREJECTED,
    Unproven: errno.EKEYREJECTED,
    # As fanotify(7) has it for what a watcher denies. Not EAGAIN, some would try for ever; nor EACCES, the mode allows it.
    Refused: errno.EPERM,
    Unsupported: errno.EOPNOTSUPP,
}


def of_error(error: OutputdError) -> int:
    """The errno of the most special class that has one."""
    for kind in type(error).__mro__:
        number = OF_ERROR.get(kind)
        if number is not None:
            return number
    return errno.EIO
