"""Takes over what another process left (departing.py): who is known, what is open. Never serves a request.

To be called when the saved output paths are in the tree and nobody has looked at them yet.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from functools import partial
from operator import getitem
from typing import Final

from outputd.drive.content import Content
from outputd.drive.driver import Driver
from outputd.drive.open_file import NotLocal
from outputd.errors import Corrupt, OutputdError
from outputd.front.fuse.files import Files
from outputd.front.fuse.handover import Handover
from outputd.front.fuse.listings import Listings
from outputd.tree.inodes import Identity, number_of
from outputd.tree.node import Directory, File, Local, Node, Volume
from outputd.tree.records import Reader
from outputd.tree.top import TAG, take_numbers
from outputd.tree.tree import Tree

_MANY: Final = 1 << 40
"""References of the kernel, when nobody knows how many: never counted down to none."""

_log = logging.getLogger(__name__)


def recognise(tree: Tree, handover: Handover) -> set[int]:
    """Know again what the kernel knows. Returns the keys of private files that nothing but an open handle needs."""
    take_numbers(tree.root, handover.identities)
    tree.inodes.awaited = handover.identities
    tree.inodes.meet_below(tree.root)
    # An earlier version had no such name, and the kernel may remember that for an hour.
    tree.stale += [(tree.root, None), (tree.root, TAG)]
    keys = set()
    for left in handover.nameless:
        node = _nameless(left.leftover)
        node.lookups = left.lookups
        tree.inodes[node.ino] = node
        if isinstance(node, File):
            if left.volume:
                tree.nameless[node] = _volume(tree, left.volume)
            if isinstance(node.content, Local):
                keys.add(node.content.key)
    return keys


async def look_for_everybody(tree: Tree, driver: Driver) -> None:
    """After a crash: the kernel may know whatever has an inode number. Looks through all that is saved, and expands nothing."""
    awaited = tree.inodes.awaited
    stack = [tree.root]
    while stack:
        directory = stack.pop()
        try:
            entries = await driver.peek(directory)
        except OutputdError as error:
            _log.error("directory %d cannot be looked into, who uses it is told so: %s", directory.ino, error)
            continue
        for name, child in entries.items():
            if ino := number_of(child):
                awaited[ino] = Identity(directory.ino, name, _MANY)
                # Nobody has seen what is below a directory of which nothing is recorded.
                if isinstance(child, Directory) and (child.children is not None or child.record):
                    stack.append(child)
        await asyncio.sleep(0)
    tree.inodes.meet_directories(tree.root)


async def reopen(
    tree: Tree,
    driver: Driver,
    content: Content,
    files: Files,
    listings: Listings,
    handover: Handover,
) -> None:
    """Open again what is open. What cannot be is logged; who has it open is told at the next access."""
    files.next_fh, listings.next_fh = handover.next_handle, handover.next_directory_handle
    for opened in handover.opened:
        try:
            file = await driver.run(partial(getitem, tree.inodes, opened.ino))
            assert isinstance(file, File)
            if isinstance(file.content, Local):
                file.content.size = os.stat(content.private.path(file.content)).st_size
            files.reopen(file, opened)
        except (OutputdError, OSError, KeyError, NotLocal) as error:
            _log.error("inode %d was open and cannot be found again: %r", opened.ino, error)
    for known in handover.directories:
        try:
            directory = await driver.run(partial(getitem, tree.inodes, known.ino))
        except (OutputdError, KeyError) as error:
            _log.error("directory %d was open and cannot be found again: %r", known.ino, error)
        else:
            assert isinstance(directory, Directory)
            listings.reopen(directory, known)


def _nameless(leftover: bytes) -> Node:
    reader = Reader(leftover)
    _, node = reader.leftover(Volume(0, time.time_ns(), writable=True))
    reader.end()
    if isinstance(node, Directory):
        node.children = {}
        node.digest = node.record = None
    elif node.extra is not None:
        node.extra.linked = None
    return node


def _volume(tree: Tree, root: int) -> Volume:
    node = tree.inodes[root]
    if not isinstance(node, Directory):
        raise Corrupt(f"inode {root}: expected the root of an output path")
    return node.volume
