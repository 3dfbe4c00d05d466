"""What a change makes unknown: digests and records from the place of the change up to the root. Computes none of them.

A directory's digest or record is known only if those of everything below are, so each walk ends where it meets what is unknown.
"""

from __future__ import annotations

from outputd.tree.node import Directory, Node


def outdate_digest(directory: Directory) -> None:
    """Content of `directory` changed."""
    directory.volume.changes += 1
    walk: Directory | None = directory
    while walk is not None and (walk.digest is not None or walk.record is not None):
        walk.digest = None
        walk.record = None
        walk = walk.parent


def outdate_record(directory: Directory) -> None:
    """Attributes of an entry of `directory` changed."""
    directory.volume.changes += 1
    walk: Directory | None = directory
    while walk is not None and walk.record is not None:
        walk.record = None
        walk = walk.parent


def outdate_holders(node: Node, *, digests: bool) -> None:
    """The same for every expanded directory that has a name of `node`."""
    outdate = outdate_digest if digests else outdate_record
    if node.parent is not None:
        outdate(node.parent)
    if node.extra is not None and node.extra.linked:
        for directory, _ in node.extra.linked:
            outdate(directory)
