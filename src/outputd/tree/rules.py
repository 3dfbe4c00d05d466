"""What POSIX refuses: the checks that precede every change of names. Changes nothing.

Where several reasons apply, the one given is Linux's (do_renameat2 and vfs_rename in fs/namei.c).
"""

from __future__ import annotations

from typing import Final

from outputd.tree.node import MAX_NAME, Child, Directory, Node, Searched, unpack
from outputd.tree.status import NotLoaded, Status

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2


def check_name(name: bytes) -> Status:
    """OK if `name` can be a new entry (path_resolution(7)): one component, 1 to 255 bytes."""
    if len(name) > MAX_NAME:
        return Status.NAME_TOO_LONG
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        return Status.INVALID
    return Status.OK


def is_below(directory: Directory, top: Directory) -> bool:
    """Whether `directory` is `top` or lies below it."""
    walk: Directory | None = directory
    while walk is not None:
        if walk is top:
            return True
        walk = walk.parent
    return False


def entries(directory: Directory) -> dict[bytes, Child]:
    """The children of a directory. Raises NotLoaded."""
    if directory.children is None:
        raise NotLoaded(directory)
    return directory.children


def entry(directory: Directory, name: bytes) -> Node | None:
    """The node at a name, unpacked if it was packed. Raises NotLoaded."""
    child = entries(directory).get(name)
    if child is None and isinstance(directory, Searched):
        return directory.find(name)
    return unpack(child, directory, name) if isinstance(child, bytes) else child


def may_change(node: Node) -> bool:
    """Whether attributes and bytes of a node may be changed: not in the read-only part above the output paths."""
    holder = node if isinstance(node, Directory) else node.parent
    return holder is None or holder.volume.writable


def may_enter(directory: Directory, name: bytes) -> Status:
    """Whether a new name may be entered. Raises NotLoaded."""
    if not directory.volume.writable:
        return Status.READ_ONLY
    refused = check_name(name)
    if refused is not Status.OK:
        return refused
    if directory.removed:
        return Status.ABSENT
    if name in entries(directory):
        return Status.EXISTS
    return directory.volume.log.room


def may_rename(
    source: Directory, node: Node | None, target: Directory, other: Node | None, new: bytes, flags: int
) -> Status:
    """Whether `node` of `source` may become `target/new`, where `other` is now. Raises NotLoaded."""
    if not source.volume.writable or not target.volume.writable:
        return Status.READ_ONLY
    if node is None or (flags & RENAME_EXCHANGE and other is None):
        return Status.ABSENT
    if flags & RENAME_NOREPLACE and other is not None:
        return Status.EXISTS
    if source.volume is not target.volume:
        return Status.CROSS_DEVICE
    if isinstance(node, Directory) and is_below(target, node):
        return Status.INVALID
    if isinstance(other, Directory) and is_below(source, other):
        return Status.INVALID if flags & RENAME_EXCHANGE else Status.NOT_EMPTY
    if other is None:
        refused = check_name(new)
        return Status.ABSENT if refused is Status.OK and target.removed else refused
    if flags & RENAME_EXCHANGE or other is node:
        return Status.OK
    if isinstance(other, Directory):
        if not isinstance(node, Directory):
            return Status.IS_DIRECTORY
        return Status.NOT_EMPTY if entries(other) else Status.OK
    return Status.NOT_DIRECTORY if isinstance(node, Directory) else Status.OK
