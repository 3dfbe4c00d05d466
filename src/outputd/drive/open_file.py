"""An inode with open handles, and what an operation on it may lack; has no behaviour of its own."""

from __future__ import annotations

from typing import NamedTuple

from outputd.digest import Digest
from outputd.errors import OutputdError
from outputd.store.base import Ranges
from outputd.tree.node import File


class NotLocal(Exception):
    """The operation needs bytes that are not on the local disk, or not writable there. Nothing was changed."""

    def __init__(self, file: File, *, writable: bool, wanted: tuple[int, int] | None = None) -> None:
        """`wanted`: offset and size of the bytes that would do."""
        super().__init__(file)
        self.file = file
        self.writable = writable
        self.wanted = wanted


class Frozen(Exception):
    """The operation would change a blob that the kernel itself reads for an open handle: the file needs another node first.

    Nothing was changed. `Tree.renew` gives its names to a new node; who holds the old one keeps the old bytes, as on overlayfs.
    """

    def __init__(self, file: File) -> None:
        super().__init__(file)
        self.file = file


class TooLong(Exception):
    """The operation would take long: a file is to be cut to `size` bytes first, in a thread. Nothing was changed."""

    def __init__(self, file: File, size: int) -> None:
        super().__init__(file)
        self.file = file
        self.size = size


class Copied(NamedTuple):
    """The beginning of a blob is all that a file holds."""

    blob: Digest
    size: int
    version: int
    """Of the local bytes, to which nothing else has happened."""


class OpenFile:
    """An inode with open handles."""

    __slots__ = ("copied", "direct", "failure", "fd", "file", "handles", "instance_name", "ranges", "seen")

    def __init__(self, file: File) -> None:
        self.file = file
        self.fd = -1
        """Descriptor of the file's present bytes, -1 until somebody needs it."""
        self.handles = 0
        self.direct = False
        """The kernel reads and writes the file behind `fd` itself (passthrough): it must stay the same while handles are open."""
        self.seen = 0
        """While `direct`: the mtime of the private file that is accounted for, in nanoseconds since 1970."""
        self.instance_name = "" if file.parent is None else file.parent.volume.instance_name
        """Of the output path the file lay in when it was opened; it may be unlinked before its bytes are read."""
        self.failure: tuple[float, OutputdError] | None = None
        """When its bytes could not be had the last time, by time.monotonic(), and why."""
        self.ranges: Ranges | None = None
        """While `fd` is -1, what is here of a large blob, once somebody has read of it."""

        self.copied: Copied | None = None
        """Where a blob is being copied into it, as long as nobody opens it a second time."""

    def give_up_ranges(self) -> None:
        """Other bytes have taken their place, or nobody has it open any more."""
        if self.ranges is not None:
            self.ranges.close()
            self.ranges = None
