"""CACHEDIR.TAG in the root of the mount, so that backup programs leave the mount out: its place in the tree. Knows no bytes.

The mark is `https://bford.info/cachedir/`. What it says of a directory it says of all that is below.
"""

from __future__ import annotations

import stat
from typing import Final

from outputd.digest import Digest
from outputd.tree.node import TIMELESS, File
from outputd.tree.tree import ROOT_INO, Tree

TAG: Final = b"CACHEDIR.TAG"
TAG_INO: Final = ROOT_INO + 2
"""Inode number. The one between is that of `outputs`, whoever is seen first: a kernel that has seen `outputs` before there was a tag
goes on with it."""


def enter_tag(tree: Tree, content: Digest) -> None:
    """Put it there, read-only as all of the root is. To be called while nobody has seen the tree."""
    tree.identify(tree.outputs, tree.root)
    volume = tree.root.volume
    assert volume.next_ino == TAG_INO and tree.root.children is not None
    volume.next_ino += 1
    file = File(stat.S_IFREG | 0o444, TIMELESS, content)
    file.ino = TAG_INO
    file.parent, file.name = tree.root, TAG
    tree.root.children[TAG] = file
