"""Nodes of the tree: what a file, directory, symlink or special file is in memory. Behaviour that spans nodes is in tree.py.

A tree holds a node for every name of every expanded directory, so these are plain classes with `__slots__`: 112 bytes for a file
beside its digest and name. What few nodes have lies in `Extra`.
"""

from __future__ import annotations

import stat
from typing import Final

from outputd.digest import Digest, DigestFunction
from outputd.tree.log import UNLOGGED, Log

FILE_MODE: Final = stat.S_IFREG | 0o644
"""Mode of a CAS file that is not executable, unless its attribute record says otherwise."""
EXECUTABLE_MODE: Final = stat.S_IFREG | 0o755
"""Mode of an executable CAS file. Writable by its owner: a local action may truncate what was staged for it."""
DIRECTORY_MODE: Final = stat.S_IFDIR | 0o755
SYMLINK_MODE: Final = stat.S_IFLNK | 0o777

NO_RECORD: Final = b""
"""Value of `Directory.record` where every attribute below is the default."""

MAX_NAME: Final = 255
"""Bytes in one name (NAME_MAX)."""
MAX_LINKS: Final = 65000
"""Hard links of one file, ext4's limit."""


class Extra:
    """Attributes that few nodes have."""

    __slots__ = ("atime", "blocks", "gid", "linked", "nlink", "uid", "xattrs")

    def __init__(self) -> None:
        self.atime: int | None = None
        """Nanoseconds since 1970; None: as mtime."""
        self.uid: int | None = None
        """None: the owner of the tree."""
        self.gid: int | None = None
        self.nlink = 1
        """Names of a hard-linked node, those in collapsed directories included."""
        self.linked: list[tuple[Directory, bytes]] | None = None
        """Names in expanded directories beyond the node's own `parent` and `name`; None if it never had a second name."""
        self.xattrs: dict[bytes, bytes] | None = None
        self.blocks: int | None = None
        """Units of 512 bytes on the disk, of a blob that was written here with holes; None: as many as its size takes."""


class Local:
    """Bytes of a file that was written here and is not, or not yet, a blob: a private file known by its key."""

    __slots__ = ("key", "size", "version", "writers")

    def __init__(self, key: int, size: int = 0) -> None:
        self.key = key
        """Number of the private file; drive knows where it lies."""
        self.size = size
        """Bytes, as last seen; while passed through to the kernel the private file itself is the truth."""
        self.writers = 0
        """Open handles that may write. A file with writers has no digest."""
        self.version = 0
        """Grows with every change of the bytes: a hash counts only if this is what it was when hashing began."""


class Node:
    """What every name leads to."""

    __slots__ = ("ctime", "extra", "ino", "lookups", "mode", "mtime", "name", "parent")

    def __init__(self, mode: int, now: int) -> None:
        self.parent: Directory | None = None
        """The directory that holds `name`; None at the root of the mount, once unlinked, and for a hard-linked node while all
        its names lie in collapsed directories."""
        self.name = b""
        self.ino = 0
        """Inode number, FUSE node id at the same time; 0 until somebody outside has seen it. Never used again."""
        self.lookups = 0
        """References the kernel holds (FUSE lookup count)."""
        self.mode = mode
        """File type and permission bits."""
        self.mtime = now
        """Nanoseconds since 1970. Nodes of one request share the object."""
        self.ctime = now
        self.extra: Extra | None = None

    @property
    def nlink(self) -> int:
        """Hard links, 0 once unlinked."""
        extra = self.extra
        if self.parent is not None:
            return 1 if extra is None else extra.nlink
        return 0 if extra is None or extra.linked is None else extra.nlink

    @property
    def atime(self) -> int:
        """Nanoseconds since 1970: what was set, else the mtime. Reading does not change it."""
        extra = self.extra
        return self.mtime if extra is None or extra.atime is None else extra.atime

    def set_atime(self, atime: int) -> None:
        """To be set after the mtime: an atime that is the same takes no room."""
        if atime != self.atime:
            self.extra = self.extra or Extra()
            self.extra.atime = atime


class File(Node):
    """A regular file: a blob by digest, or local bytes."""

    __slots__ = ("content",)

    def __init__(self, mode: int, now: int, content: Digest | Local) -> None:
        Node.__init__(self, mode, now)
        self.content = content

    @property
    def size(self) -> int:
        """Bytes."""
        return self.content.size

    @property
    def blocks(self) -> int:
        """Units of 512 bytes that a blob takes, as st_blocks says it; of local bytes drive knows."""
        extra = self.extra
        return full_blocks(self.size) if extra is None or extra.blocks is None else extra.blocks

    def note_blocks(self, blocks: int) -> None:
        """Remember what the present content takes, which has holes."""
        self.extra = self.extra or Extra()
        self.extra.blocks = blocks


def full_blocks(size: int) -> int:
    """Units of 512 bytes that a file without holes takes on ext4."""
    return (size + 4095 >> 12) << 3


class Symlink(Node):
    """A symbolic link; its target is kept byte for byte."""

    __slots__ = ("target",)

    def __init__(self, target: bytes, now: int) -> None:
        Node.__init__(self, SYMLINK_MODE, now)
        self.target = target


class Special(Node):
    """A fifo, a socket or a device."""

    __slots__ = ("rdev",)

    def __init__(self, mode: int, now: int, rdev: int) -> None:
        Node.__init__(self, mode, now)
        self.rdev = rdev


class Directory(Node):
    """A directory, expanded (`children` is a dict) or collapsed (`children` is None, and `digest` or `tree` says what it holds)."""

    __slots__ = (
        "children",
        "digest",
        "links",
        "listed",
        "negatives",
        "record",
        "subdirectories",
        "tree",
        "volume",
    )

    def __init__(self, mode: int, now: int, volume: Volume) -> None:
        Node.__init__(self, mode, now)
        self.volume = volume
        self.children: dict[bytes, Node] | None = {}
        self.digest: Digest | None = None
        """Digest of the REv2 Directory message; None while unknown or outdated. Known implies known for everything below."""
        self.record: bytes | None = None
        """Digest of the attribute record, NO_RECORD where there is nothing to record, None while outdated. Known implies known
        for everything below."""
        self.links = False
        """Whether names of hard-linked nodes lie here or below, as of the time it was sealed."""
        self.tree: Digest | None = None
        """A collapsed root staged by the digest of its REv2 Tree message alone: `digest` comes when that is read."""
        self.subdirectories = 0
        self.listed: int | None = None
        """The ctime it had when the kernel was last allowed to remember a listing of it."""
        self.negatives: set[bytes] | None = None
        """Names whose absence the kernel may remember."""

    @property
    def nlink(self) -> int:
        """2 and one for each subdirectory; 1 stands for "not known" while collapsed, as on btrfs."""
        if self.removed:
            return 0
        return 1 if self.children is None else 2 + self.subdirectories

    @property
    def removed(self) -> bool:
        """Whether it has lost its name, and takes no new entries therefore."""
        return self.parent is None and (self.volume.root is not self or self.volume.removed)


class Volume:
    """One output path: the unit of identity, of writing, and of hard links and renames."""

    __slots__ = (
        "changes",
        "function",
        "instance_name",
        "linked",
        "log",
        "next_ino",
        "number",
        "removed",
        "root",
        "unmet",
        "writable",
    )

    def __init__(self, number: int, now: int, *, writable: bool) -> None:
        self.number = number
        """Distinct for each volume that ever was; the upper bits of its inode numbers."""
        self.next_ino = (number << 40) + 1
        self.writable = writable
        self.function = DigestFunction.SHA256
        """What local files are hashed with: the digest function of the last build."""
        self.instance_name = ""
        """REv2 instance name of the last build: where the blobs are looked for."""
        self.changes = 0
        """Grows with every change of content or attributes."""
        self.linked: dict[int, Node] = {}
        """Hard-linked nodes by inode number, so that names met later lead to the same node."""
        self.unmet: dict[Directory, None] = {}
        """Collapsed directories known to hold names of hard-linked nodes, here or below."""
        self.removed = False
        """Its root has lost its name."""
        self.log: Log = UNLOGGED
        """Is told of every change."""
        self.root = Directory(DIRECTORY_MODE, now, self)
