"""The words in which a tree operation refuses; each front translates them once, in a total table."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outputd.tree.node import Directory


class Status(enum.Enum):
    """Why an operation was refused, or OK. The tree is unchanged unless the value is OK."""

    OK = "done"
    ABSENT = "no such name"
    EXISTS = "the name is taken"
    NOT_DIRECTORY = "not a directory"
    IS_DIRECTORY = "is a directory"
    NOT_EMPTY = "directory not empty"
    INVALID = "makes no sense"
    READ_ONLY = "this part of the tree is read-only"
    CROSS_DEVICE = "the two names lie in different output paths"
    NAME_TOO_LONG = "a name has at most 255 bytes"
    TOO_MANY_LINKS = "too many hard links"
    NOT_PERMITTED = "not permitted on this kind of node"
    NO_ATTRIBUTE = "no such extended attribute"
    NO_ROOM = "no room: on the disk, or in what one node can hold"
    UNSUPPORTED = "not offered here"


class NotLoaded(Exception):
    """The operation needs the children of a collapsed directory. Nothing was changed: load it, then ask again."""

    def __init__(self, directory: Directory) -> None:
        super().__init__(directory)
        self.directory = directory
