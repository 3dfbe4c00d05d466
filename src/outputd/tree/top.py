"""What is fixed in the root of the mount: inode numbers, and CACHEDIR.TAG, so that backup programs leave all of it out.

The mark is https://bford.info/cachedir/; what it says of a directory it says of all that is below. Knows no bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import Final

from outputd.digest import Digest
from outputd.tree.inodes import Identity
from outputd.tree.node import TIMELESS, Directory, File

ROOT_INO: Final = 1
"""FUSE_ROOT_ID."""
OUTPUTS_INO: Final = 2
CAS_INO: Final = 3
TAG_INO: Final = 4
"""The two before it were once given to `outputs` and `cas` in the order in which they were seen."""
TAG: Final = b"CACHEDIR.TAG"


def enter_tag(root: Directory, content: Digest) -> None:
    """Put the tag there, read-only as all of the root is. To be called while nobody has seen the tree."""
    assert root.children is not None
    file = File(stat.S_IFREG | 0o444, TIMELESS, content)
    file.ino = TAG_INO
    file.parent, file.name = root, TAG
    root.children[TAG] = file


def take_numbers(root: Directory, known: Mapping[int, Identity]) -> None:
    """Give the fixed directories the numbers that the kernel knows them by, of a mount that an earlier version has begun."""
    assert root.children is not None
    for ino, identity in known.items():
        if identity.parent == ROOT_INO:
            child = root.children.get(identity.name)
            if isinstance(child, Directory) and child.ino in (OUTPUTS_INO, CAS_INO):
                child.ino = ino
