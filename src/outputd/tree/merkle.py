"""Sealing: from expanded directories to REv2 Directory messages and digests, incrementally; and how entries come back.

A change clears digests up to the root only (outdate.py), so sealing again costs what changed. The wire form of
`Directory` is written by hand: canonical by construction (REv2: fields in tag order, each list sorted by UTF-8 bytes), and this
room imports no protobuf. Attributes that the message cannot say go to a record beside it (records.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Iterator, Mapping
from io import BytesIO
from typing import Final, NamedTuple, Protocol

from outputd.digest import Digest, DigestFunction
from outputd.tree.node import (
    NO_RECORD,
    Directory,
    File,
    Local,
    Symlink,
    packed_attributes,
    packed_content,
    unpacked,
)
from outputd.tree.records import Columns, encode_leftover, encode_record, record_digest

_SLICE: Final = 256
"""Entries of a large directory between two steps: below a millisecond."""
_PATIENCE: Final = 3
"""Times that a directory may change while it is sealed in slices; after that it is sealed in one, or that might never end."""


class Sink(Protocol):
    """Where sealed objects go; keeps each under its digest."""

    def directory(self, digest: Digest, message: bytes) -> None: ...
    def record(self, digest: bytes, record: bytes) -> None: ...


class Sealed(NamedTuple):
    """What names the state of a directory and everything below it."""

    digest: Digest
    record: bytes


def seal(root: Directory, function: DigestFunction, sink: Sink) -> Iterator[int | Sealed]:
    """Seal everything outdated at and below `root`; yields after each directory, and within large ones, how many entries that
    were, at last the result.

    The tree may change between two steps: what was outdated again meanwhile is sealed again before its parent is. A file that is
    still local enters the record as what it is, and leaves the digests above it unknown. Directories that `Tree.lacking` names are
    to be loaded before. One pass at a time: where local files lie, two would undo each other's work.
    """
    volatile: dict[Directory, Sealed] = {}
    changed: dict[Directory, int] = {}
    """How often large directories have changed while they were sealed."""
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
        if directory.subdirectories:
            open_below = [
                child
                for child in directory.children.values()
                if isinstance(child, Directory) and _state(child, volatile) is None
            ]
            if open_below:
                stack.extend(open_below)
                continue
        work = _seal_one(directory, function, volatile, sink)
        if len(directory.children) <= _SLICE or changed.get(directory, 0) >= _PATIENCE:
            outcome: _Outcome | None = _last(work)
        else:
            outcome = yield from _while_unchanged(work, directory)
        if outcome is None:
            changed[directory] = changed.get(directory, 0) + 1
            continue
        stack.pop()
        sealed, lasting = outcome
        # A digest that does not last stays unknown. The record is set in any case: a change clears it.
        directory.digest = sealed.digest if lasting else None
        directory.record = sealed.record
        if directory is root:
            yield sealed
            return
        if not lasting:
            volatile[directory] = sealed
        yield len(directory.children)


_Outcome = tuple[Sealed, bool]
"""The seal of one directory, and whether it lasts until something changes."""


def _last(work: Generator[None, None, _Outcome]) -> _Outcome:
    while True:
        try:
            next(work)
        except StopIteration as end:
            outcome: _Outcome = end.value
            return outcome


def _while_unchanged(
    work: Generator[None, None, _Outcome], directory: Directory
) -> Generator[int, None, _Outcome | None]:
    """Do the work step by step; None, and nothing was done, if the directory or something below has changed meanwhile."""
    mark = directory.record = bytes(2)  # an object of its own, which every change takes away
    while True:
        try:
            next(work)
        except StopIteration as end:
            outcome: _Outcome = end.value
            return outcome
        yield _SLICE
        if directory.record is not mark:
            return None


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
    directory: Directory, function: DigestFunction, volatile: dict[Directory, Sealed], sink: Sink
) -> Generator[None, None, _Outcome]:
    """Seal one directory whose subdirectories are sealed, in steps; to be given up when it has changed between two."""
    lasting = True
    links = False
    messages: tuple[list[bytes], list[bytes], list[bytes]] = ([], [], [])
    files, directories, symlinks = columns = (Columns(), Columns(), Columns())
    below: list[bytes] = []
    leftovers: list[bytes] = []
    children = directory.children
    assert children is not None
    for portion in _in_order(children):
        file_nodes: list[bytes] = []
        directory_nodes: list[bytes] = []
        symlink_nodes: list[bytes] = []
        for name in portion:
            child = children[name]
            utf8 = is_utf8(name)
            if isinstance(child, bytes):
                if utf8 and child[0] == function:
                    file_nodes.append(
                        _file_node(name, packed_content(child), bool(packed_attributes(child)[0] & 0o100))
                    )
                    files.add_packed(child)
                else:
                    leftovers.append(encode_leftover(name, unpacked(child)))
                continue
            if child.extra is not None and child.extra.nlink > 1:
                links = True
            if isinstance(child, File):
                content = child.content
                if isinstance(content, Local):
                    lasting = False
                    leftovers.append(encode_leftover(name, child))
                elif not utf8 or content[0] != function:
                    leftovers.append(encode_leftover(name, child))
                else:
                    file_nodes.append(_file_node(name, content, bool(child.mode & 0o100)))
                    files.add(child)
            elif isinstance(child, Directory):
                sealed = _state(child, volatile)
                assert sealed is not None
                lasting = lasting and (child.digest is not None or child.children is None)
                links = links or child.links
                if not utf8 or not sealed.digest or sealed.digest[0] != function:
                    leftovers.append(encode_leftover(name, child, *sealed))
                else:
                    directory_nodes.append(
                        _field(0x12, _field(0x0A, name) + _field(0x12, digest_message(sealed.digest)))
                    )
                    directories.add(child)
                    below.append(sealed.record)
            elif isinstance(child, Symlink) and utf8 and is_utf8(child.target):
                symlink_nodes.append(_field(0x1A, _field(0x0A, name) + _field(0x12, child.target)))
                symlinks.add(child)
            else:
                leftovers.append(encode_leftover(name, child))
        for parts, nodes in zip(messages, (file_nodes, directory_nodes, symlink_nodes), strict=True):
            parts.append(b"".join(nodes))
        yield
    hasher = function.hasher()
    whole = (
        BytesIO()
    )  # to join eleven megabytes takes ten milliseconds; this gives away its own buffer in the end
    for parts in messages:
        for part in parts:
            hasher.update(part)
            whole.write(part)
            yield
    message = whole.getvalue()
    digest = Digest.make(function, hasher.digest(), len(message))
    record = yield from encode_record(directory, columns, below, leftovers)
    directory.links = links
    sink.directory(digest, message)
    if not record:
        return Sealed(digest, NO_RECORD), lasting
    record_key = record_digest(record)
    sink.record(record_key, record)
    return Sealed(digest, record_key), lasting


def _in_order(names: Mapping[bytes, object]) -> Iterator[list[bytes]]:
    """The names in order, in portions of about _SLICE. Those of a large directory come to their portions first, and meanwhile
    there are empty ones: to sort 100,000 names takes 30 ms at a stretch.
    """
    if len(names) <= _SLICE:
        yield sorted(names)
        return
    unsorted = list(names)
    borders = sorted(unsorted[:: max(1, _SLICE // 8)])[8::8]
    buckets: list[list[bytes]] = [[] for _ in range(len(borders) + 1)]
    for start in range(0, len(unsorted), 8 * _SLICE):
        for name in unsorted[start : start + 8 * _SLICE]:
            buckets[bisect_left(borders, name)].append(name)
        yield []
    for bucket in buckets:
        bucket.sort()
        yield bucket


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
