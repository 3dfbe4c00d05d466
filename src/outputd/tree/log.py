"""What the tree tells of each change, for whoever keeps a journal; keeps nothing itself.

Every change of a volume that a restart should find again is told once, right after it was made, in words that can be played back
on a tree which was in the same state before (builds/replay.py). What nobody has looked into yet needs no words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from outputd.digest import Digest
    from outputd.tree.node import Directory, File, Node


class Log(Protocol):
    """Takes the changes of one volume. Never raises: what cannot be kept makes `room` false."""

    @property
    def room(self) -> bool:
        """Whether more can be taken. While it is false, changes that add something are refused (ENOSPC)."""

    def entered(self, directory: Directory, name: bytes, node: Node, now: int) -> None:
        """A new node stands at a name, whatever stood there; the directory has the time `now`."""

    def renewed(self, directory: Directory, name: bytes, node: Node) -> None:
        """The same, and the directory's times are as before."""

    def staged(self, directory: Directory, name: bytes, digest: Digest, now: int) -> None:
        """`entered`, of a CAS file with the mode and the times that staging gives."""

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

    def identified(self, directory: Directory, node: Node) -> None:
        """A node of `directory` has got its inode number."""

    def adopting(self, file: File, digest: Digest) -> None:
        """A file's local bytes are about to become a blob."""


class Unlogged:
    """For volumes that nobody keeps: a Log that forgets everything."""

    __slots__ = ()

    room: Final = True

    def entered(self, directory: Directory, name: bytes, node: Node, now: int) -> None:
        pass

    def renewed(self, directory: Directory, name: bytes, node: Node) -> None:
        pass

    def staged(self, directory: Directory, name: bytes, digest: Digest, now: int) -> None:
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

    def identified(self, directory: Directory, node: Node) -> None:
        pass

    def adopting(self, file: File, digest: Digest) -> None:
        pass


UNLOGGED: Final = Unlogged()
