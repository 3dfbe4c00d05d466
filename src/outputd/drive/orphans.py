"""Private files that a process can still change which outlived the daemon whose mount it writes through.

With passthrough (front/fuse/passthrough.py) the kernel writes to the file below the mount without asking anybody, also when the
connection is long dead: fuse_passthrough_write_iter() does not look. Such a file must never become a blob.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys

from outputd.drive.content import Content
from outputd.drive.disk_error import disk_error
from outputd.tree.node import File, Local
from outputd.tree.tree import Tree

_log = logging.getLogger(__name__)


async def cut_off(file: File, tree: Tree, content: Content) -> None:
    """A local file of an earlier run: who can still write to its bytes keeps them, and it gets a copy of them as of now.

    Raises Exhausted or Unavailable; then it is as before.
    """
    assert isinstance(file.content, Local)
    path = content.private.path(file.content)
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise disk_error(error, path) from error
    try:
        if _is_writable(source):
            copy, fd = await content.private.copied(source, os.fstat(source).st_size)
            os.close(fd)
            tree.set_content(file, copy)
            _log.info(
                "%r: is kept as of now, for somebody may still write to it through a dead mount", file.name
            )
            try:
                os.unlink(path)
            except OSError as error:
                _log.warning("%s: cannot be discarded, the next start tries again: %s", path, error.strerror)
    finally:
        os.close(source)


def _is_writable(fd: int) -> bool:
    """Whether anybody can write to the file behind this read-only descriptor: has it open for that, or mapped.

    fcntl(2), F_SETLEASE: a read lease is refused then (EAGAIN). Where leases are refused for other reasons (a network file system,
    a file that is not ours) the answer is yes.
    """
    if sys.platform != "linux":
        return False  # no passthrough there
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return True
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
