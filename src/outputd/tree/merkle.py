"""Sealing: from expanded directories to REv2 Directory messages and digests, incrementally; and how entries come back.

A change clears digests up to the root only (outdate.py), so sealing again costs what changed. The wire form of
`Directory` is written by hand: canonical by construction (REv2: fields in tag order, each list sorted by UTF-8 bytes), and this
room imports no protobuf. Attributes that the message cannot say go to a record beside it (records.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from outputd.digest import Digest, DigestFunction
from outputd.tree.node import NO_RECORD, Directory, File, Local, Node, Symlink
from outputd.tree.records import encode_leftover, encode_record, record_digest


class Sink(Protocol):
    """Where sealed objects go; keeps each under its digest."""

    def directory(self, digest: Digest, message: bytes) -> None: ...
    def record(self, digest: bytes, record: bytes) -> None: ...


class Sealed(NamedTuple):
    """What names the state of a directory and everything below it."""

    digest: Digest
    record: bytes


def seal(root: Directory, function: DigestFunction, sink: Sink) -> Iterator[int | Sealed]:
    """Seal everything outdated at and below `root`; yields the number of entries after each directory, at last the result.

    The tree may change between two steps: what was outdated again meanwhile is sealed again before its parent is. A file that is
    still local enters the record as what it is, and leaves the digests above it unknown. Directories that `Tree.lacking` names are
    to be loaded before. One pass at a time: where local files lie, two would undo each other's work.
    """
    volatile: dict[Directory, Sealed] = {}
    stack = [root]
    while stack:
        directory = stack[-1]
        known = _state(directory, volatile)
        if known is not None:
            stack.pop()
            if directory is root:
                yield known
            continue
        assert directory.children is not None
        open_below = [
            child
            for child in directory.children.values()
            if isinstance(child, Directory) and _state(child, volatile) is None
        ]
        if open_below:
            stack.extend(open_below)
            continue
        stack.pop()
        sealed, lasting = _seal_one(directory, directory.children, function, volatile, sink)
        # A digest that does not last stays unknown. The record is set in any case: a change clears it.
        directory.digest = sealed.digest if lasting else None
        directory.record = sealed.record
        if directory is root:
            yield sealed
            return
        if not lasting:
            volatile[directory] = sealed
        yield len(directory.children)


def _state(directory: Directory, volatile: dict[Directory, Sealed]) -> Sealed | None:
    """What is known of a directory: its lasting seal, this pass's if still true, or for a collapsed one what it came with."""
    if directory.digest is not None and directory.record is not None:
        return Sealed(directory.digest, directory.record)
    if directory.children is None:
        # The attributes of what a collapsed directory holds cannot have changed while it was collapsed.
        return Sealed(directory.digest or Digest(), directory.record or NO_RECORD)
    sealed = volatile.get(directory)
    # Not the same object: cleared by a change, or set by another pass after one.
    return sealed if sealed is not None and sealed.record is directory.record else None


def _seal_one(
    directory: Directory,
    children: dict[bytes, Node],
    function: DigestFunction,
    volatile: dict[Directory, Sealed],
    sink: Sink,
) -> tuple[Sealed, bool]:
    """The seal of one directory whose subdirectories are sealed, and whether it lasts until something changes."""
    lasting = True
    links = False
    files: list[bytes] = []
    directories: list[bytes] = []
    symlinks: list[bytes] = []
    listed: list[list[Node]] = [[], [], []]
    below: list[bytes] = []
    leftovers: list[bytes] = []
    for name, node in sorted(children.items()):
        utf8 = is_utf8(name)
        if node.extra is not None and node.extra.nlink > 1:
            links = True
        if isinstance(node, File):
            content = node.content
            if isinstance(content, Local):
                lasting = False
                leftovers.append(encode_leftover(name, node))
            elif not utf8 or content[0] != function:
                leftovers.append(encode_leftover(name, node))
            else:
                files.append(_file_node(name, content, bool(node.mode & 0o100)))
                listed[0].append(node)
        elif isinstance(node, Directory):
            sealed = _state(node, volatile)
            assert sealed is not None
            lasting = lasting and (node.digest is not None or node.children is None)
            links = links or node.links
            if not utf8 or not sealed.digest or sealed.digest[0] != function:
                leftovers.append(encode_leftover(name, node, *sealed))
            else:
                directories.append(
                    _field(0x12, _field(0x0A, name) + _field(0x12, digest_message(sealed.digest)))
                )
                listed[1].append(node)
                below.append(sealed.record)
        elif isinstance(node, Symlink) and utf8 and is_utf8(node.target):
            symlinks.append(_field(0x1A, _field(0x0A, name) + _field(0x12, node.target)))
            listed[2].append(node)
        else:
            leftovers.append(encode_leftover(name, node))
    directory.links = links
    message = b"".join(files) + b"".join(directories) + b"".join(symlinks)
    digest = Digest.of(function, message)
    sink.directory(digest, message)
    record = encode_record(directory, listed, below, leftovers)
    if not record:
        return Sealed(digest, NO_RECORD), lasting
    record_key = record_digest(record)
    sink.record(record_key, record)
    return Sealed(digest, record_key), lasting


def is_utf8(name: bytes) -> bool:
    """Whether a REv2 message can say this name or target (proto3 `string`)."""
    if name.isascii():
        return True
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def digest_message(digest: Digest) -> bytes:
    """The REv2 Digest message: 1 hash string, 2 size_bytes int64."""
    return _field(0x0A, digest[9:].hex().encode()) + (b"\x10" + _varint(digest.size) if digest.size else b"")


def _file_node(name: bytes, digest: Digest, executable: bool) -> bytes:
    """REv2 FileNode as entry of Directory.files: 1 name, 2 digest, 4 is_executable."""
    return _field(
        0x0A,
        _field(0x0A, name) + _field(0x12, digest_message(digest)) + (b"\x20\x01" if executable else b""),
    )


def _field(tag: int, value: bytes) -> bytes:
    """A length-delimited field with a one-byte tag."""
    length = len(value)
    if length < 0x80:
        return bytes((tag, length)) + value
    return bytes((tag,)) + _varint(length) + value


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
