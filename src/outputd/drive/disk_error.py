"""What a failed system call on the disk below means, in our words; decides nothing else."""

from __future__ import annotations

import errno
import os

from outputd.errors import Exhausted, OutputdError, TooLarge, Unavailable


def disk_error(error: OSError, what: str) -> OutputdError:
    """What an error of the disk below means; `what` names the path or the deed."""
    if error.errno == errno.EFBIG:
        return TooLarge(f"{what}: {os.strerror(error.errno)}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE):
        return Exhausted(f"{what}: {os.strerror(error.errno)}")
    return Unavailable(f"{what}: {error.strerror}")
