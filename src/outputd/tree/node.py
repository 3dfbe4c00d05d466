"""Nodes of the tree: what a file, directory, symlink or special file is in memory. Behaviour that spans nodes is in tree.py.

A tree may hold millions of files, so these are plain classes with `__slots__`: 112 bytes for a file beside its digest and name.
What few nodes have lies in `Extra`. Of most files nobody but their directory ever knows: those are no nodes at all (`PackedFile`).
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from struct import Struct
from typing import Final, NewType, TypeAlias

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

TIMELESS: Final = 946_684_800_000_000_000
"""2000-01-01: the mtime of what has no time of its own; whoever compares times is to find them equal."""

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

    __slots__ = ("key", "size", "twin", "version", "writers")

    def __init__(self, key: int, size: int = 0) -> None:
        self.key = key
        """Number of the private file; drive knows where it lies."""
        self.size = size
        """Bytes, as last seen; while passed through to the kernel the private file itself is the truth."""
        self.writers = 0
        """Open handles that may write. A file with writers has no digest."""
        self.version = 0
        """Grows with every change of the bytes: a hash counts only if this is what it was when hashing began."""
        self.twin: tuple[Digest, int] | None = None
        """The blob that was copied here whole, and the `version` for as long as which these are its bytes."""


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
        # Node.__init__ spelled out: a listing makes one for each of its entries.
        self.parent = None
        self.name = b""
        self.ino = 0
        self.lookups = 0
        self.mode = mode
        self.mtime = now
        self.ctime = now
        self.extra = None
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


GRANULE: Final = 1 << 16
"""Nanoseconds of which the times of a packed file are multiples; ext4's own clock moves in steps of milliseconds."""
_LATEST: Final = (1 << 63) - GRANULE
"""The last time that a packed file can have, in the year 2262; the first is 1970."""
_TAIL: Final = 6
"""Bytes behind the digest: in 48 bits, big-endian, the time in granules since 1970 and whether the file is executable."""
_TAIL_MASK: Final = (1 << 8 * _TAIL) - 1
_EIGHT: Final = Struct(">Q")
_eight_at: Final[Callable[[bytes, int], tuple[int]]] = _EIGHT.unpack_from
_END: Final = {int(function): 9 + function.hash_length for function in DigestFunction}
"""Where the digest ends, by its first byte."""


SHARED: Final = slice(-_TAIL - 8, -8)
"""What files with the same attributes have in common, of packed files that have inode numbers."""


def packable(now: int) -> int:
    """The last time not after `now` that a packed file can have; nanoseconds since 1970."""
    return max(0, min(now & -GRANULE, _LATEST))


PackedFile = NewType("PackedFile", bytes)
"""A file of which the kernel knows nothing but what a listing said, and no writer anything, in place of its node: a blob with
default mode and owner, one name and one time for all. 80 bytes with its digest, 96 once it has an inode number.

Becomes a node where more is to be done with it; nobody sees a difference. Behind the digest stand time and mode, which cost nothing
(the allocator rounds 74 bytes up), and the inode number if it has one. Plain `bytes`: unlike those of any class of ours, they are
nothing for the garbage collector to look at; nor is a directory's table that holds only these.
"""


def packed_tail(mtime: int, *, executable: bool) -> bytes:
    """What stands behind the digest of a packed file that has no inode number. The time must be packable."""
    return (mtime >> 15 | executable).to_bytes(_TAIL)


def pack(mode: int, mtime: int, content: Digest, ino: int = 0) -> PackedFile | None:
    """None where mode or time cannot be said this way. The ctime is the mtime."""
    if mode not in (EXECUTABLE_MODE, FILE_MODE) or mtime != packable(mtime):
        return None
    packed = PackedFile(content + packed_tail(mtime, executable=mode == EXECUTABLE_MODE))
    return packed_numbered(packed, ino) if ino else packed


def packed_numbered(packed: PackedFile, ino: int) -> PackedFile:
    """The same with an inode number, of one that has none."""
    return PackedFile(packed + _EIGHT.pack(ino))


def packed_content(packed: PackedFile) -> Digest:
    return Digest(packed[: _END[packed[0]]])


def packed_size(packed: PackedFile) -> int:
    """Bytes."""
    (size,) = _eight_at(packed, 1)
    return size


def packed_attributes(packed: PackedFile) -> tuple[int, int]:
    """Mode, and the time for all."""
    tail = _eight_at(packed, _END[packed[0]] - 2)[0] & _TAIL_MASK
    return EXECUTABLE_MODE if tail & 1 else FILE_MODE, tail >> 1 << 16


def packed_ino(packed: PackedFile) -> int:
    """Inode number, 0 until somebody outside has seen it."""
    behind = _END[packed[0]] + _TAIL
    return 0 if len(packed) == behind else _eight_at(packed, behind)[0]


def unpack(packed: PackedFile, directory: Directory, name: bytes) -> File:
    """The node in its place, from now on."""
    assert directory.children is not None
    file = directory.children[name] = unpack_nameless(packed, directory.volume)
    file.parent = directory
    file.name = name
    return file


def unpacked(packed: PackedFile) -> File:
    """The same as a node that is nowhere."""
    file = File(*packed_attributes(packed), packed_content(packed))
    file.ino = packed_ino(packed)
    return file


def unpack_nameless(packed: PackedFile, volume: Volume) -> File:
    """The node of one that is in no directory any more."""
    file = unpacked(packed)
    inodes = volume.inodes
    if file.ino and inodes.listed.pop(file.ino, None) is not None:
        file.lookups = 1
        inodes[file.ino] = file
    return file


def repack(file: File) -> bool:
    """Put the packed form in the place of a file that nobody holds any more, if it has one."""
    directory, content = file.parent, file.content
    if file.extra is not None or file.ctime != file.mtime or directory is None or isinstance(content, Local):
        return False
    packed = pack(file.mode, file.mtime, content, file.ino)
    if packed is None:
        return False
    assert directory.children is not None
    directory.children[file.name] = packed
    file.parent = None  # for whoever still has the node it is as unlinked
    return True


class Page:
    """Entries of a directory that one listing has told the kernel of; the packed ones among them count one reference each."""

    __slots__ = ("directory", "inos", "names")

    def __init__(self, directory: Directory, names: list[bytes], inos: list[int]) -> None:
        self.directory = directory
        self.names = names
        self.inos = inos


class Inodes(dict[int, "Node"]):
    """The nodes that the kernel knows, by inode number. What it knows from one listing only becomes a node when it is asked for."""

    __slots__ = ("listed",)

    def __init__(self) -> None:
        self.listed: dict[int, Page] = {}
        """Packed files by inode number; each stands in its page's directory."""

    def __missing__(self, ino: int) -> Node:
        page = self.listed[ino]
        name = page.names[page.inos.index(ino)]
        assert page.directory.children is not None
        child = page.directory.children[name]
        assert isinstance(child, bytes)
        return unpack(child, page.directory, name)

    def meet(self, directory: Directory) -> None:
        """Is shown every directory that is expanded. Nobody is awaited here."""

    def knows(self, packed: PackedFile) -> bool:
        """Whether it counts a reference, so that it may not go without leaving a node."""
        return bool(self.listed) and packed_ino(packed) in self.listed


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
        self.children: dict[bytes, Child] | None = {}
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


class Searched(Directory):
    """A directory of which nobody knows all names: a node is made when its name is looked up, and goes when the kernel forgets
    it."""

    __slots__ = ("found",)

    def __init__(self, mode: int, now: int, volume: Volume) -> None:
        Directory.__init__(self, mode, now, volume)
        self.found: dict[bytes, Node] = {}
        """What was looked up, and the kernel still knows or is about to."""

    def find(self, name: bytes) -> Node | None:
        """The node at a name that is not among `children`."""
        node = self.found.get(name) or self._make(name)
        if node is not None:
            self.found[name] = node
            node.parent = self
            node.name = name
        return node

    def lose(self, node: Node) -> None:
        """The kernel has forgotten a node that was found."""
        if self.found.pop(node.name, None) is not None:
            node.parent = None

    def _make(self, name: bytes) -> Node | None:
        """A new node for a name; None where there is none. Each kind has its own."""
        raise NotImplementedError


Child: TypeAlias = Node | PackedFile
"""What a directory holds under a name."""


def blob_of(child: Child | None) -> Digest | None:
    """The digest of a file that is a blob; None for anything else."""
    if isinstance(child, bytes):
        return packed_content(child)
    return child.content if isinstance(child, File) and isinstance(child.content, Digest) else None


def first_ino(number: int) -> int:
    """The inode number that the root of a volume gets."""
    return (number << 40) + 1


class Volume:
    """One output path: the unit of identity, of writing, and of hard links and renames."""

    __slots__ = (
        "changes",
        "function",
        "inodes",
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

    saved = True
    """Whether its nodes have the inode numbers again after a restart that they had before it."""

    def __init__(self, number: int, now: int, *, writable: bool) -> None:
        self.number = number
        """Distinct for each volume that ever was; the upper bits of its inode numbers."""
        self.next_ino = first_ino(number)
        self.writable = writable
        self.function = DigestFunction.SHA256
        """What local files are hashed with: the digest function of the last build."""
        self.instance_name = ""
        """REv2 instance name of the last build: where the blobs are looked for."""
        self.inodes = Inodes()
        """Those of the tree it belongs to."""
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
