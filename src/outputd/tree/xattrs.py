"""Extended attributes of nodes: which names, how much, set and removed as setxattr(2) says. Only `user.` is kept.

`security.` and `trusted.` would mean something to the kernel and `system.` holds access control lists: none of them has an effect
in a build's outputs, so they are refused rather than stored to no end. What Linux checks before it asks a file system (lengths,
that only files and directories have `user.` attributes) is not checked again.
"""

from __future__ import annotations

from typing import Final

from outputd.tree.node import Extra, Node
from outputd.tree.status import Status

CREATE: Final = 1
"""XATTR_CREATE: the attribute must be new."""
REPLACE: Final = 2
"""XATTR_REPLACE: the attribute must be there."""

NAMESPACE: Final = b"user."
MAX_BYTES: Final = 4000
"""All attributes of one node together, each with _OVERHEAD; ext4 has one block of 4096 bytes for them beside the inode."""
_OVERHEAD: Final = 16
"""ext4_xattr_entry."""


def get_xattr(node: Node, name: bytes) -> bytes | None:
    """The value, or None."""
    extra = node.extra
    return None if extra is None or extra.xattrs is None else extra.xattrs.get(name)


def xattr_names(node: Node) -> list[bytes]:
    """What listxattr(2) shows."""
    extra = node.extra
    return [] if extra is None or extra.xattrs is None else list(extra.xattrs)


def set_xattr(node: Node, name: bytes, value: bytes, flags: int) -> Status:
    """setxattr(2); the times are the caller's to set."""
    if not name.startswith(NAMESPACE):
        return Status.UNSUPPORTED
    if name == NAMESPACE or flags & ~(CREATE | REPLACE):
        return Status.INVALID
    extra = node.extra
    xattrs = (extra.xattrs if extra is not None else None) or {}
    if flags & CREATE and name in xattrs:
        return Status.EXISTS
    if flags & REPLACE and name not in xattrs:
        return Status.NO_ATTRIBUTE
    changed = {**xattrs, name: value}
    if sum(len(name) + len(value) + _OVERHEAD for name, value in changed.items()) > MAX_BYTES:
        return Status.NO_ROOM
    node.extra = extra or Extra()
    node.extra.xattrs = changed
    return Status.OK


def remove_xattr(node: Node, name: bytes) -> Status:
    """removexattr(2)."""
    if not name.startswith(NAMESPACE):
        return Status.UNSUPPORTED
    if name == NAMESPACE:
        return Status.INVALID
    extra = node.extra
    if extra is None or extra.xattrs is None or name not in extra.xattrs:
        return Status.NO_ATTRIBUTE
    del extra.xattrs[name]
    return Status.OK
