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
from collections.abc import Sequence
from typing import Final

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
    Special,
    Symlink,
    Volume,
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
_TYPES: Final[dict[type[Node], tuple[int, ...]]] = {
    File: (stat.S_IFREG,),
    Directory: (stat.S_IFDIR,),
    Symlink: (stat.S_IFLNK,),
    Special: (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK),
}


def record_digest(record: bytes) -> bytes:
    """The key a record is kept under: 32 bytes of BLAKE2b, whatever digest function the output path uses."""
    return hashlib.blake2b(record, digest_size=32).digest()


def encode_record(
    directory: Directory, listed: Sequence[Sequence[Node]], below: Sequence[bytes], leftovers: Sequence[bytes]
) -> bytes:
    """The record beside a Directory message; empty where all is default.

    `listed` are the nodes of the message's three lists in its order, `below` the record digests of its directories.
    """
    nodes = [node for group in listed for node in group]
    files, directories, symlinks = listed
    trees = [
        struct.pack("<IB", index, len(node.tree)) + node.tree
        for index, node in enumerate(directories)
        if isinstance(node, Directory) and node.tree is not None
    ]
    if (
        not (leftovers or trees)
        and not any(below)
        and all(_is_default(node, directory.mtime) for node in nodes)
    ):
        return b""
    extras = [
        struct.pack("<I", index) + _encode_extra(node.extra)
        for index, node in enumerate(nodes)
        if node.extra is not None
    ]
    body = b"".join(
        (
            _HEAD.pack(len(files), len(directories), len(symlinks), len(extras), len(trees), len(leftovers)),
            _column("H", [node.mode for node in nodes]),
            _column("Q", [node.ino for node in nodes]),
            _column("q", [node.mtime for node in nodes]),
            _column("q", [node.ctime for node in nodes]),
            *[digest or _NO_DIGEST for digest in below],
            _column("B", [node.links for node in directories if isinstance(node, Directory)]),
            *extras,
            *trees,
            *leftovers,
        )
    )
    return bytes((VERSION,)) + zlib.compress(body, 1)


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
        _check_links(node)
        if isinstance(node, Directory):
            node.links = bool(flags & _LINKS)
        return name, node

    def end(self) -> None:
        if self._at != len(self._data):
            raise Corrupt(f"attribute record: {len(self._data) - self._at} bytes left over at its end")


def apply_record(record: bytes, directory: Directory, listed: Sequence[Sequence[Node]]) -> dict[bytes, Node]:
    """Give the nodes made from a Directory message their recorded attributes; returns the leftovers by name.

    Raises Corrupt when the record is not one of this message. A record is trusted to hold what we wrote: its digest was checked.
    """
    if not record or record[0] != VERSION:
        raise Corrupt(f"attribute record: version {record[:1].hex() or 'none'}, expected {VERSION:02x}")
    try:
        reader = Reader(zlib.decompress(record[1:]))
    except zlib.error as error:
        raise Corrupt(f"attribute record: {error}") from error
    files, directories, symlinks, extras, trees, leftovers = reader.unpack(_HEAD)
    expected = tuple(map(len, listed))
    if (files, directories, symlinks) != expected:
        raise Corrupt(
            f"attribute record: lists {(files, directories, symlinks)} entries, the message {expected}"
        )
    nodes = [node for group in listed for node in group]
    count = len(nodes)
    modes, inos = reader.column("H", count), reader.column("Q", count)
    mtimes, ctimes = reader.column("q", count), reader.column("q", count)
    for node, mode, ino, mtime, ctime in zip(nodes, modes, inos, mtimes, ctimes, strict=True):
        if stat.S_IFMT(mode ^ node.mode):
            raise Corrupt(f"attribute record: mode {mode:o} for a {type(node).__name__}")
        node.mode = mode
        node.ino = ino
        node.mtime = mtime
        node.ctime = mtime if ctime == mtime else ctime
    for node in listed[1]:
        assert isinstance(node, Directory)
        digest = reader.take(32)
        node.record = NO_RECORD if digest == _NO_DIGEST else digest
    for node, links in zip(listed[1], reader.column("B", directories), strict=True):
        assert isinstance(node, Directory)
        node.links = bool(links)
    for _ in range(extras):
        (index,) = struct.unpack("<I", reader.take(4))
        if index >= count:
            raise Corrupt(f"attribute record: attributes of entry {index}, there are {count}")
        nodes[index].extra = reader.extra()
        _check_links(nodes[index])
    for _ in range(trees):
        index, length = struct.unpack("<IB", reader.take(5))
        if index >= directories:
            raise Corrupt(f"attribute record: Tree of directory {index}, there are {directories}")
        subdirectory = listed[1][index]
        assert isinstance(subdirectory, Directory)
        subdirectory.tree = _digest(reader.take(length))
    found = dict(reader.leftover(directory.volume) for _ in range(leftovers))
    reader.end()
    if len(found) != leftovers:
        raise Corrupt(f"attribute record: of its {leftovers} leftover entries some have the same name")
    return found


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


def _check_links(node: Node) -> None:
    if node.extra is not None and node.extra.nlink != 1 and (isinstance(node, Directory) or not node.ino):
        raise Corrupt(f"attribute record: {node.extra.nlink} hard links of a node that can have one only")


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


def _is_default(node: Node, mtime: int) -> bool:
    if node.ino or node.mtime != mtime or node.ctime != mtime or node.extra is not None:
        return False
    mode = node.mode
    if isinstance(node, File):
        return mode in (EXECUTABLE_MODE, FILE_MODE)
    return mode == (DIRECTORY_MODE if stat.S_ISDIR(mode) else SYMLINK_MODE)


def _column(code: str, values: list[int]) -> bytes:
    column = array(code, values)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()
