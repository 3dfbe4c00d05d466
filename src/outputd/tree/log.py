"""What the tree tells of each change, for whoever keeps a journal; keeps nothing itself.

Every change of a volume that a restart should find again is told once, right after it was made, in words that can be played back
on a tree which was in the same state before (builds/replay.py). What nobody has looked into yet needs no words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from outputd.tree.status import Status

if TYPE_CHECKING:
    from outputd.digest import Digest
    from outputd.tree.node import Child, Directory, File, Node


class Log(Protocol):
    """Takes the changes of one volume. Never raises: what cannot be kept changes `room`."""

    @property
    def room(self) -> Status:
        """OK while more can be taken; else changes that add something are refused with this, NO_ROOM or READ_ONLY."""

    def entered(self, directory: Directory, name: bytes, child: Child, now: int) -> None:
        """A new file or node stands at a name, whatever stood there; the directory has the time `now`."""

    def renewed(self, directory: Directory, name: bytes, node: Node) -> None:
        """The same, and the directory's times are as before."""

    def linked(self, node: Node, directory: Directory, name: bytes, now: int) -> None:
        """A node is about to get one more name."""

    def removed(self, directory: Directory, name: bytes, now: int) -> None:
        """A name is gone."""

    def moved(
        self, source: Directory, old: bytes, target: Directory, new: bytes, flags: int, now: int
    ) -> None:
        """As renameat2(2) succeeded."""

    def cleared(self, directory: Directory, now: int) -> None:
        """A directory was emptied."""

    def changed(self, node: Node) -> None:
        """Attributes of a node, or a file's content, are what they are now."""

    def identified(self, directory: Directory, first: int, names: Sequence[bytes]) -> None:
        """What stands at these names of `directory` has got inode numbers, `first` and those after it."""

    def adopting(self, file: File, digest: Digest) -> None:
        """A file's local bytes are about to become a blob."""

    def settle(self) -> None:
        """What was told so far is kept when this returns. To be called before many changes by one request are answered; all but
        packed files are kept at once."""


class Unlogged:
    """For volumes that nobody keeps: a Log that forgets everything."""

    __slots__ = ()

    room: Final = Status.OK

    def entered(self, directory: Directory, name: bytes, child: Child, now: int) -> None:
        pass

    def renewed(self, directory: Directory, name: bytes, node: Node) -> None:
        pass

    def linked(self, node: Node, directory: Directory, name: bytes, now: int) -> None:
        pass

    def removed(self, directory: Directory, name: bytes, now: int) -> None:
        pass

    def moved(
        self, source: Directory, old: bytes, target: Directory, new: bytes, flags: int, now: int
    ) -> None:
        pass

    def cleared(self, directory: Directory, now: int) -> None:
        pass

    def changed(self, node: Node) -> None:
        pass

    def identified(self, directory: Directory, first: int, names: Sequence[bytes]) -> None:
        pass

    def adopting(self, file: File, digest: Digest) -> None:
        pass

    def settle(self) -> None:
        pass


UNLOGGED: Final = Unlogged()
