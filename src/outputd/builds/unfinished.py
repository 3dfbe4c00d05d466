"""Local files that are not blobs yet when an output path is saved: which they are, and how they come back. Never hashes one.

Their bytes stay in private files, and the attribute records name these by key. The list kept beside the output path lets a restart
find them without looking through the tree: they get their true size, are handed to ingest, and no private file that one of them
needs is swept away.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from outputd.errors import Corrupt
from outputd.tree.node import Child, Directory, File, Local
from outputd.tree.status import NotLoaded

_ENTRY: Final = struct.Struct("<QI")  # key, length of the path


class Unfinished(NamedTuple):
    """One such file."""

    key: int
    path: tuple[bytes, ...]
    """Its names from the root of the output path on; one of its paths, if it has hard links."""

    def __str__(self) -> str:
        return b"/".join(self.path).decode(errors="backslashreplace")


def unfinished_below(root: Directory) -> Iterator[Unfinished]:
    """The local files in memory: only directories whose digest is unknown can hold one, sealed or not (merkle.py)."""
    stack: list[tuple[Directory, tuple[bytes, ...]]] = [(root, ())]
    while stack:
        directory, path = stack.pop()
        if directory.digest is not None:
            continue
        for name, node in (directory.children or {}).items():
            if isinstance(node, Directory):
                stack.append((node, (*path, name)))
            elif isinstance(node, File) and isinstance(node.content, Local):
                yield Unfinished(node.content.key, (*path, name))


def encode(files: list[Unfinished]) -> bytes:
    """In the form that is kept."""
    parts: list[bytes] = []
    for file in files:
        path = b"/".join(file.path)
        parts += (_ENTRY.pack(file.key, len(path)), path)
    return b"".join(parts)


def decode(data: bytes) -> list[Unfinished]:
    """From the form that is kept. Raises Corrupt."""
    files: list[Unfinished] = []
    at = 0
    while at < len(data):
        if at + _ENTRY.size > len(data):
            raise Corrupt(f"list of unfinished files: ends within an entry, at byte {len(data)}")
        key, length = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size + length
        if at > len(data):
            raise Corrupt(f"list of unfinished files: ends within a path, at byte {len(data)}")
        files.append(Unfinished(key, tuple(data[at - length : at].split(b"/"))))
    return files


def file_at(root: Directory, file: Unfinished) -> tuple[Directory, File] | None:
    """The node in question and the directory it is in, or None where something else is by now. Raises NotLoaded."""
    node: Child | None = root
    directory = root
    for name in file.path:
        if not isinstance(node, Directory):
            return None
        directory = node
        if directory.children is None:
            raise NotLoaded(directory)
        node = directory.children.get(name)
    if isinstance(node, File) and isinstance(node.content, Local) and node.content.key == file.key:
        return directory, node
    return None
