"""Attribute records: what a REv2 Directory message cannot say of a directory's entries, in a compact form of its own.

A record stands beside one Directory message and lists the same entries in the same order (files, directories, symlinks), in
columns: modes, inode numbers, mtimes, ctimes, then for the subdirectories the digests of their records and whether hard links lie
there, then the few `Extra`s, then the few Trees that subdirectories were staged by, then the leftovers: entries the message cannot
name at all. It says nothing of the directory itself; that stands in the parent's record.
Where everything is the default there is no record. docs/explanation/identity.md has the reasons.
"""

from __future__ import annotations

import hashlib
import stat
import struct
import sys
import zlib
from array import array
from collections.abc import Generator, Sequence
from typing import Final, NamedTuple

from outputd.digest import Digest, DigestFunction
from outputd.errors import Corrupt
from outputd.tree.node import (
    DIRECTORY_MODE,
    EXECUTABLE_MODE,
    FILE_MODE,
    NO_RECORD,
    SYMLINK_MODE,
    Directory,
    Extra,
    File,
    Local,
    Node,
    PackedFile,
    Special,
    Symlink,
    Volume,
    packed_attributes,
    packed_ino,
)

VERSION: Final = 1
"""First byte of a record. A reader refuses what it does not know."""

_HEAD: Final = struct.Struct("<IIIIII")  # files, directories, symlinks, extras, trees, leftovers
_COMMON: Final = struct.Struct("<HQqqB")  # mode, ino, mtime, ctime, _HAS_EXTRA | _LINKS
_HAS_EXTRA: Final = 1
_LINKS: Final = 2
_EXTRA: Final = struct.Struct(
    "<BqIIII"
)  # which of atime, uid, gid are set and _HAS_BLOCKS; they; nlink; count of xattrs
_HAS_BLOCKS: Final = 8
_BLOCKS: Final = struct.Struct("<Q")
_LOCAL: Final = struct.Struct("<QQ")  # key, size
_NO_DIGEST: Final = bytes(32)
_STEP: Final = 64 << 10
"""Bytes of a body that are packed or unpacked in one step: half a millisecond."""
_ENTRIES: Final = 128
"""Entries that are read in one step, where they take more than their share of the columns."""
_TYPES: Final[dict[type[Node], tuple[int, ...]]] = {
    File: (stat.S_IFREG,),
    Directory: (stat.S_IFDIR,),
    Symlink: (stat.S_IFLNK,),
    Special: (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK),
}


def record_digest(record: bytes) -> bytes:
    """The key a record is kept under: 32 bytes of BLAKE2b, whatever digest function the output path uses."""
    return hashlib.blake2b(record, digest_size=32).digest()


class Columns:
    """The attributes of one of the lists of a Directory message, gathered entry by entry in its order."""

    __slots__ = ("_default", "_time", "ctimes", "extras", "inos", "links", "modes", "mtimes", "trees")

    def __init__(self) -> None:
        self.modes = array("H")
        self.inos = array("Q")
        self.mtimes = array("q")
        self.ctimes = array("q")
        self.links = bytearray()
        """Of directories only."""
        self.extras: list[tuple[int, bytes]] = []
        self.trees: list[tuple[int, bytes]] = []
        self._default = True
        """But for the time, which all have."""
        self._time: int | None = None

    def __len__(self) -> int:
        return len(self.modes)

    def is_default(self, mtime: int) -> bool:
        """Whether a record has nothing to say of them, where `mtime` is the directory's own."""
        return not self.modes or (self._default and self._time == mtime)

    def add_packed(self, packed: PackedFile) -> None:
        mode, mtime = packed_attributes(packed)
        self._add(mode, packed_ino(packed), mtime, mtime)

    def add(self, node: Node) -> None:
        if node.extra is not None:
            self.extras.append((len(self.modes), _encode_extra(node.extra)))
            self._default = False
        mode = node.mode
        if isinstance(node, Directory):
            if node.tree is not None:
                self.trees.append((len(self.modes), node.tree))
                self._default = False
            self.links.append(node.links)
            self._default = self._default and mode == DIRECTORY_MODE
        elif isinstance(node, File):
            self._default = self._default and mode in (EXECUTABLE_MODE, FILE_MODE)
        else:
            self._default = self._default and mode == SYMLINK_MODE
        self._add(mode, node.ino, node.mtime, node.ctime)

    def _add(self, mode: int, ino: int, mtime: int, ctime: int) -> None:
        if self._default:
            if self._time is None:
                self._time = mtime
            self._default = not ino and mtime == self._time == ctime
        self.modes.append(mode)
        self.inos.append(ino)
        self.mtimes.append(mtime)
        self.ctimes.append(ctime)


def encode_record(
    directory: Directory,
    columns: tuple[Columns, Columns, Columns],
    below: Sequence[bytes],
    leftovers: Sequence[bytes],
) -> Generator[None, None, bytes]:
    """The record beside a Directory message, in steps; empty, at once, where all is default.

    `columns` are the message's three lists, `below` the record digests of its directories.
    """
    if not leftovers and not any(below) and all(column.is_default(directory.mtime) for column in columns):
        return b""
    files, directories, symlinks = columns
    behind_files = len(files)
    behind_directories = behind_files + len(directories)
    extras = [
        struct.pack("<I", first + index) + extra
        for first, column in zip((0, behind_files, behind_directories), columns, strict=True)
        for index, extra in column.extras
    ]
    trees = [struct.pack("<IB", index, len(tree)) + tree for index, tree in directories.trees]
    pieces = [
        _HEAD.pack(len(files), len(directories), len(symlinks), len(extras), len(trees), len(leftovers)),
        *[_column(column.modes) for column in columns],
        *[_column(column.inos) for column in columns],
        *[_column(column.mtimes) for column in columns],
        *[_column(column.ctimes) for column in columns],
        b"".join([digest or _NO_DIGEST for digest in below]),
        bytes(directories.links),
        b"".join(extras),
        b"".join(trees),
        b"".join(leftovers),
    ]
    squeeze = zlib.compressobj(1)
    packed = [bytes((VERSION,))]
    body = b"".join(pieces)
    for start in range(0, len(body), _STEP):
        if start:
            yield
        packed.append(squeeze.compress(body[start : start + _STEP]))
    packed.append(squeeze.flush())
    return b"".join(packed)


def encode_leftover(name: bytes, node: Node, digest: bytes = b"", record: bytes = NO_RECORD) -> bytes:
    """An entry that stands wholly in a record: its name, attributes and content. A directory comes with its seal; without
    one it comes back empty."""
    if isinstance(node, File):
        content = node.content
        payload = (
            b"l" + _LOCAL.pack(content.key, content.size) if isinstance(content, Local) else b"f" + content
        )
    elif isinstance(node, Directory):
        tree = node.tree or b""
        payload = b"d" + (record or _NO_DIGEST) + bytes((len(tree),)) + tree + digest
    elif isinstance(node, Symlink):
        payload = b"s" + node.target
    elif isinstance(node, Special):
        payload = b"n" + struct.pack("<Q", node.rdev)
    else:
        raise AssertionError(node)
    flags = (_HAS_EXTRA if node.extra is not None else 0) | (
        _LINKS if isinstance(node, Directory) and node.links else 0
    )
    common = _COMMON.pack(node.mode, node.ino, node.mtime, node.ctime, flags)
    extra = _encode_extra(node.extra) if node.extra is not None else b""
    return struct.pack("<HI", len(name), len(payload)) + name + common + extra + payload


class Reader:
    """Reads what the functions above wrote. Raises Corrupt, nothing else, on anything they cannot have written."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise Corrupt(f"attribute record: ends after {len(self._data)} bytes, expected at least {end}")
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self.take(layout.size))

    def column(self, code: str, count: int) -> array[int]:
        values = array(code)
        values.frombytes(self.take(values.itemsize * count))
        if sys.byteorder == "big":
            values.byteswap()
        return values

    def extra(self) -> Extra:
        which, atime, uid, gid, nlink, xattrs = self.unpack(_EXTRA)
        extra = Extra()
        extra.atime = atime if which & 1 else None
        extra.uid = uid if which & 2 else None
        extra.gid = gid if which & 4 else None
        extra.nlink = nlink
        if which & _HAS_BLOCKS:
            (extra.blocks,) = self.unpack(_BLOCKS)
        if xattrs:
            extra.xattrs = {}
            for _ in range(xattrs):
                name_size, value_size = struct.unpack("<HI", self.take(6))
                name = self.take(name_size)
                extra.xattrs[name] = self.take(value_size)
        return extra

    def leftover(self, volume: Volume) -> tuple[bytes, Node]:
        name_size, payload_size = struct.unpack("<HI", self.take(6))
        name = self.take(name_size)
        mode, ino, mtime, ctime, flags = self.unpack(_COMMON)
        extra = self.extra() if flags & _HAS_EXTRA else None
        payload = self.take(payload_size)
        node = _leftover_node(payload[:1], payload[1:], mode, mtime, volume)
        if stat.S_IFMT(mode) not in _TYPES[type(node)]:
            raise Corrupt(f"attribute record: mode {mode:o} for a {type(node).__name__}")
        node.ino, node.ctime, node.extra = ino, ctime, extra
        if extra is not None:
            _check_links(extra, ino, isinstance(node, Directory))
        if isinstance(node, Directory):
            node.links = bool(flags & _LINKS)
        return name, node

    def end(self) -> None:
        if self._at != len(self._data):
            raise Corrupt(f"attribute record: {len(self._data) - self._at} bytes left over at its end")


class Recorded(NamedTuple):
    """What a record says of the entries of its Directory message, by their place in it."""

    modes: array[int]
    inos: array[int]
    mtimes: array[int]
    ctimes: array[int]
    below: list[bytes]
    """Records of the subdirectories."""
    links: array[int]
    """Whether there are names of hard-linked nodes in the subdirectories."""
    extras: dict[int, Extra]
    trees: dict[int, Digest]
    """By the place among the subdirectories."""
    leftovers: dict[bytes, Node]
    """Entries that are not in the message."""


def decode_record(
    record: bytes, volume: Volume, files: int, directories: int, symlinks: int
) -> Generator[None, None, Recorded]:
    """Read the record beside a Directory message with so many entries, in steps.

    Raises Corrupt when it is not one of this message. A record is trusted to hold what we wrote: its digest was checked.
    """
    if not record or record[0] != VERSION:
        raise Corrupt(f"attribute record: version {record[:1].hex() or 'none'}, expected {VERSION:02x}")
    reader = Reader((yield from _inflate(record)))
    *counts, extras, trees, leftovers = reader.unpack(_HEAD)
    expected = [files, directories, symlinks]
    if counts != expected:
        raise Corrupt(f"attribute record: lists {tuple(counts)} entries, the message {tuple(expected)}")
    count = sum(counts)
    modes, inos = reader.column("H", count), reader.column("Q", count)
    mtimes, ctimes = reader.column("q", count), reader.column("q", count)
    for start, stop, kind in (
        (0, files, stat.S_IFREG),
        (files, files + directories, stat.S_IFDIR),
        (files + directories, count, stat.S_IFLNK),
    ):
        for mode in set(modes[start:stop]):
            if stat.S_IFMT(mode) != kind:
                raise Corrupt(f"attribute record: mode {mode:o} for an entry of type {kind:o}")
    yield
    below = [
        NO_RECORD if digest == _NO_DIGEST else digest
        for digest in (reader.take(len(_NO_DIGEST)) for _ in range(directories))
    ]
    links = reader.column("B", directories)
    read = Recorded(modes, inos, mtimes, ctimes, below, links, {}, {}, {})
    for _ in range(extras):
        (index,) = struct.unpack("<I", reader.take(4))
        if index >= count:
            raise Corrupt(f"attribute record: attributes of entry {index}, there are {count}")
        extra = read.extras[index] = reader.extra()
        _check_links(extra, inos[index], stat.S_ISDIR(modes[index]))
        if len(read.extras) % _ENTRIES == 0:
            yield
    for _ in range(trees):
        index, length = struct.unpack("<IB", reader.take(5))
        if index >= directories:
            raise Corrupt(f"attribute record: Tree of directory {index}, there are {directories}")
        read.trees[index] = _digest(reader.take(length))
    for _ in range(leftovers):
        name, node = reader.leftover(volume)
        read.leftovers[name] = node
        if len(read.leftovers) % _ENTRIES == 0:
            yield
    reader.end()
    if len(read.leftovers) != leftovers:
        raise Corrupt(f"attribute record: of its {leftovers} leftover entries some have the same name")
    return read


def _inflate(record: bytes) -> Generator[None, None, bytes]:
    """The body of a record."""
    expand = zlib.decompressobj()
    pieces: list[bytes] = []
    packed = record[1:]
    try:
        while packed:
            pieces.append(expand.decompress(packed, _STEP))
            packed = expand.unconsumed_tail
            yield
    except zlib.error as error:
        raise Corrupt(f"attribute record: {error}") from error
    if not expand.eof or expand.unused_data:
        raise Corrupt("attribute record: it is cut off, or goes on behind its end")
    return b"".join(pieces)


def _leftover_node(kind: bytes, payload: bytes, mode: int, mtime: int, volume: Volume) -> Node:
    if kind == b"l" and len(payload) == _LOCAL.size:
        return File(mode, mtime, Local(*_LOCAL.unpack(payload)))
    if kind == b"f":
        return File(mode, mtime, _digest(payload))
    if kind == b"d" and len(payload) >= 33:
        directory = Directory(mode, mtime, volume)
        if len(payload) > 33:
            directory.children = None
        directory.record = NO_RECORD if payload[:32] == _NO_DIGEST else payload[:32]
        tree, digest = payload[33 : 33 + payload[32]], payload[33 + payload[32] :]
        directory.tree = _digest(tree) if tree else None
        directory.digest = _digest(digest) if digest else None
        return directory
    if kind == b"s" and payload:
        return Symlink(payload, mtime)
    if kind == b"n" and len(payload) == 8:
        return Special(mode, mtime, int.from_bytes(payload, "little"))
    raise Corrupt(f"attribute record: an entry of kind {kind!r} with {len(payload)} bytes, which none has")


def _digest(payload: bytes) -> Digest:
    """A digest as it lies in memory (digest.py)."""
    try:
        whole = len(payload) == 9 + DigestFunction(payload[0]).hash_length
    except (IndexError, ValueError):
        whole = False
    if not whole or payload[1] & 0x80:
        raise Corrupt(f"attribute record: {payload[:80].hex()} is no digest")
    return Digest(payload)


def _check_links(extra: Extra, ino: int, is_directory: bool) -> None:
    if extra.nlink != 1 and (is_directory or not ino):
        raise Corrupt(f"attribute record: {extra.nlink} hard links of a node that can have one only")


def _encode_extra(extra: Extra) -> bytes:
    xattrs = extra.xattrs or {}
    which = (extra.atime is not None) | (extra.uid is not None) << 1 | (extra.gid is not None) << 2
    if extra.blocks is not None:
        which |= _HAS_BLOCKS
    head = _EXTRA.pack(which, extra.atime or 0, extra.uid or 0, extra.gid or 0, extra.nlink, len(xattrs))
    blocks = b"" if extra.blocks is None else _BLOCKS.pack(extra.blocks)
    return (
        head
        + blocks
        + b"".join(struct.pack("<HI", len(name), len(value)) + name + value for name, value in xattrs.items())
    )


def _column(values: array[int]) -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()
