"""What one process leaves to the next that goes on serving its mount, and the bytes it goes over in. Never looks into a tree.

The form carries a version; a process that does not read it is not started in the first place (restart.py asks it before).
"""

from __future__ import annotations

import json
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from outputd.errors import Corrupt
from outputd.front.fuse.mount import Mount
from outputd.tree.inodes import Identity

VERSION: Final = 1
_MAGIC: Final = b"outputd-handover"
_HEAD: Final = struct.Struct(
    "<16sIIQQQ"
)  # magic, version, length of the JSON, identities, bytes of names, bytes of leftovers


@dataclass(frozen=True, slots=True)
class Agreed:
    """What INIT has settled between the kernel and whoever serves the mount, for as long as it lasts."""

    minor: int
    features: int
    passthrough: bool


@dataclass(frozen=True, slots=True)
class Nameless:
    """A node that the kernel knows and that has no name any more, or not yet."""

    lookups: int
    leftover: bytes
    """As records.py encodes an entry."""
    volume: int
    """Inode number of the root of the output path where it may yet get a name (O_TMPFILE); 0: nowhere."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An inode with open handles."""

    ino: int
    instance_name: str
    backing: int
    """The kernel's id of the file it reads and writes by itself; 0: it asks us."""
    seen: int
    """See OpenFile.seen."""
    handles: list[tuple[int, bool]]
    """Number, and whether it may write."""


@dataclass(frozen=True, slots=True)
class OpenDirectory:
    """An open directory."""

    fh: int
    ino: int
    order: list[tuple[int, bytes]] | None
    """Cookies and names in the order of the cookies; None: no cookie was given yet."""


@dataclass(slots=True)
class Handover:
    """All of it. The descriptor of the device goes beside."""

    mount: Mount
    agreed: Agreed
    identities: dict[int, Identity] = field(default_factory=dict)
    nameless: list[Nameless] = field(default_factory=list)
    opened: list[Opened] = field(default_factory=list)
    directories: list[OpenDirectory] = field(default_factory=list)
    next_handle: int = 1
    next_directory_handle: int = 1
    requests: list[bytes] = field(default_factory=list)
    """Requests that were read and not answered."""
    restarts: int = 0
    """How often the mount has changed hands before."""
    crashed: bool = False
    """The last process was killed: what the kernel knows is not told here, nor which requests it has read. Does not go over."""


def encode(handover: Handover) -> bytes:
    """In the form that goes over."""
    leftovers = b"".join(node.leftover for node in handover.nameless)
    identities = handover.identities
    names = b"\0".join(identity.name for identity in identities.values())
    mount = handover.mount
    text = json.dumps(
        {
            "mount": [mount.path, mount.connection, mount.by_us],
            "agreed": [handover.agreed.minor, handover.agreed.features, handover.agreed.passthrough],
            "negatives": [
                [ino, [_text(name) for name in identity.negatives]]
                for ino, identity in identities.items()
                if identity.negatives
            ],
            "nameless": [[node.lookups, len(node.leftover), node.volume] for node in handover.nameless],
            "opened": [
                [opened.ino, opened.instance_name, opened.backing, opened.seen, opened.handles]
                for opened in handover.opened
            ],
            "directories": [
                [
                    directory.fh,
                    directory.ino,
                    None
                    if directory.order is None
                    else [[cookie, _text(name)] for cookie, name in directory.order],
                ]
                for directory in handover.directories
            ],
            "next": [handover.next_handle, handover.next_directory_handle],
            "requests": [_text(request) for request in handover.requests],
            "restarts": handover.restarts,
        }
    ).encode()
    return b"".join(
        (
            _HEAD.pack(_MAGIC, VERSION, len(text), len(identities), len(names), len(leftovers)),
            text,
            _column(list(identities)),
            _column([identity.parent for identity in identities.values()]),
            _column([identity.lookups for identity in identities.values()]),
            names,
            leftovers,
        )
    )


def decode(data: bytes, fd: int) -> Handover:
    """From that form, with the descriptor that came beside. Raises Corrupt."""
    try:
        return _decode(memoryview(data), fd)
    except (struct.error, ValueError, KeyError, TypeError, IndexError) as error:
        raise Corrupt(f"the handover of the last process cannot be read: {error}") from error


def _decode(data: memoryview, fd: int) -> Handover:
    magic, version, text_size, count, names_size, leftovers_size = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != VERSION:
        raise Corrupt(f"a handover of version {version}, expected {VERSION}")
    sizes = (text_size, 8 * count, 8 * count, 8 * count, names_size, leftovers_size)
    if len(data) != _HEAD.size + sum(sizes):
        raise Corrupt(f"a handover of {len(data)} bytes, expected {_HEAD.size + sum(sizes)}")
    pieces = _pieces(data[_HEAD.size :], sizes)
    said: dict[str, Any] = json.loads(bytes(next(pieces)))
    inos, parents, lookups = (_uncolumn(next(pieces)) for _ in range(3))
    names = bytes(next(pieces)).split(b"\0") if count else []
    identities = {
        ino: Identity(parent, name, known)
        for ino, parent, name, known in zip(inos, parents, names, lookups, strict=True)
    }
    for ino, absent in said["negatives"]:
        identities[ino].negatives = {_bytes(name) for name in absent}
    path, connection, by_us = said["mount"]
    leftovers = _pieces(next(pieces), tuple(size for _, size, _ in said["nameless"]))
    return Handover(
        mount=Mount(path, fd, connection, by_us, created=False, replaced=0),
        agreed=Agreed(*said["agreed"]),
        identities=identities,
        nameless=[
            Nameless(known, bytes(leftover), volume)
            for (known, _, volume), leftover in zip(said["nameless"], leftovers, strict=True)
        ],
        opened=[
            Opened(ino, instance_name, backing, seen, [(fh, writing) for fh, writing in handles])
            for ino, instance_name, backing, seen, handles in said["opened"]
        ],
        directories=[
            OpenDirectory(
                fh, ino, None if order is None else [(cookie, _bytes(name)) for cookie, name in order]
            )
            for fh, ino, order in said["directories"]
        ],
        next_handle=said["next"][0],
        next_directory_handle=said["next"][1],
        requests=[_bytes(request) for request in said["requests"]],
        restarts=said["restarts"],
    )


def _pieces(data: memoryview, sizes: tuple[int, ...]) -> Iterator[memoryview]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size


def _text(data: bytes) -> str:
    return data.decode("latin-1")


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")


def _column(values: list[int]) -> bytes:
    column = array("Q", values)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def _uncolumn(data: memoryview) -> array[int]:
    column = array("Q")
    column.frombytes(data)
    if sys.byteorder == "big":
        column.byteswap()
    return column
