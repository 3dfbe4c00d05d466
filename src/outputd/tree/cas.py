"""The directory `cas` of the mount: every blob at a path that is made of its digest. Knows no store: a name is believed.

    cas/<instance name>/blobs/<digest function>/<kind>/<hash>-<size>

as bb_clientd has it; the instance name may have any number of components, none included. To look a name up takes
no question to anybody, so what nobody has is found out by whoever opens it; but a script is made of a Command, which must be here
for that. Nodes go when the kernel forgets them, and what lies below them goes as well, so a walk through any number of blobs takes
no room for long.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Final, TypeAlias

from outputd.digest import Digest, DigestFunction
from outputd.errors import Invalid
from outputd.tree.node import (
    NO_RECORD,
    TIMELESS,
    Directory,
    File,
    Node,
    Searched,
    Symlink,
    Volume,
    first_ino,
)
from outputd.tree.top import CAS_INO

CAS: Final = b"cas"
_SEARCHED_MODE: Final = stat.S_IFDIR | 0o555
_FILE_MODE: Final = stat.S_IFREG | 0o444
_PROGRAM_MODE: Final = stat.S_IFREG | 0o555
_BLOBS: Final = b"blobs"
_NOT_IN_NAMES: Final = frozenset(
    (b"actions", b"actionResults", b"operations", b"uploads", b"capabilities", b"compressed-blobs")
)
"""What no component of an instance name may be (REv2, instance_name), beside `blobs`."""
Script: TypeAlias = Callable[[Directory, Digest], Digest | None]
"""The blob with the script that runs a Command, None if it is none; what it raises to have it brought goes to whoever looked it up.
The directory says which instance of the CAS is meant."""


class _CasVolume(Volume):
    """Of one instance name. Its nodes are made anew by each process, and have the inode numbers that the kernel knows of them."""

    __slots__ = ("_numbers",)

    saved = False

    def __init__(self, numbers: _Numbers, instance_name: str) -> None:
        self._numbers = numbers
        Volume.__init__(self, 0, TIMELESS, writable=False)
        self.instance_name = instance_name

    @property
    def next_ino(self) -> int:
        return self._numbers.upcoming

    @next_ino.setter
    def next_ino(self, ino: int) -> None:
        self._numbers.upcoming = ino


class _Numbers:
    """Inode numbers for all volumes of `cas`."""

    def __init__(self, take_number: Callable[[], int]) -> None:
        self._take_number = take_number
        self._next: int | None = None

    @property
    def upcoming(self) -> int:
        if self._next is None:
            self._next = first_ino(self._take_number())
        return self._next

    @upcoming.setter
    def upcoming(self, ino: int) -> None:
        if self._next is not None and ino > self._next:  # not what a volume begins with when it is made
            self._next = ino


class Cas:
    """What all directories below `cas` share."""

    def __init__(
        self, top: Directory, script: Script, instance_name: str, take_number: Callable[[], int]
    ) -> None:
        """Enter `cas` into `top`. `instance_name`: the one that calls without a name mean; `take_number` gives a volume number that
        no volume ever had."""
        self._inodes = top.volume.inodes
        self._numbers = _Numbers(take_number)
        self.script = script
        self._instance_name = instance_name
        _enter(top, CAS, _Instance(self, "")).ino = CAS_INO

    def volume(self, instance_name: str) -> Volume:
        made = _CasVolume(self._numbers, "" if instance_name == self._instance_name else instance_name)
        made.inodes = self._inodes
        return made


class _Instance(Searched):
    """The components of an instance name so far."""

    __slots__ = ("_cas", "_name")

    def __init__(self, cas: Cas, name: str) -> None:
        Searched.__init__(self, _SEARCHED_MODE, TIMELESS, cas.volume(name))
        self._cas = cas
        self._name = name

    def _make(self, name: bytes) -> Node | None:
        if name == _BLOBS:
            return _blobs(self._cas.script, self.volume)
        if name in _NOT_IN_NAMES:
            return None
        try:
            component = name.decode()
        except UnicodeDecodeError:
            return None
        return _Instance(self._cas, f"{self._name}/{component}" if self._name else component)


class _Blobs(Searched):
    """All blobs of one digest function, as one kind of node."""

    __slots__ = ("_function", "_kind", "_script")

    def __init__(self, volume: Volume, function: DigestFunction, kind: bytes, script: Script) -> None:
        Searched.__init__(self, _SEARCHED_MODE, TIMELESS, volume)
        self._function = function
        self._kind = kind
        self._script = script

    def _make(self, name: bytes) -> Node | None:
        digest = _parse(self._function, name)
        if digest is None:
            return None
        if self._kind == b"file":
            return File(_FILE_MODE, TIMELESS, digest)
        if self._kind == b"executable":
            return File(_PROGRAM_MODE, TIMELESS, digest)
        if self._kind == b"command":
            script = self._script(self, digest)
            return None if script is None else File(_PROGRAM_MODE, TIMELESS, script)
        made = Directory(_SEARCHED_MODE, TIMELESS, self.volume)
        made.children = None
        if self._kind == b"tree":
            made.tree = digest
        else:
            made.digest = digest
        made.record = NO_RECORD
        return made


_KINDS: Final = (b"file", b"executable", b"directory", b"tree", b"command")


def _blobs(script: Script, volume: Volume) -> Directory:
    """The directory `blobs`, with those of the functions and kinds in it."""
    top = Directory(_SEARCHED_MODE, TIMELESS, volume)
    for function in DigestFunction:
        if function.supported:
            below = _enter(top, function.lower.encode(), Directory(_SEARCHED_MODE, TIMELESS, volume))
            for kind in _KINDS:
                _enter(below, kind, _Blobs(volume, function, kind, script))
    return top


def _enter(directory: Directory, name: bytes, made: Directory) -> Directory:
    assert directory.children is not None
    directory.children[name] = made
    directory.subdirectories += 1
    made.parent = directory
    made.name = name
    return made


def _parse(function: DigestFunction, name: bytes) -> Digest | None:
    """`<hash>-<size>`: lower-case hex, and a decimal number without leading zeros, so that a blob has one name only."""
    hash_, separator, size = name.rpartition(b"-")
    if not separator or not size.isdigit() or len(size) > 19 or (size[:1] == b"0" and size != b"0"):
        return None
    try:
        return Digest.parse(function, hash_.decode("ascii"), int(size))
    except (Invalid, UnicodeDecodeError):
        return None


def copy_of(node: Node, target: Volume) -> Node | None:
    """What link(2) of a node of `cas` enters into an output path: the same blob, as a node of its own. None where it cannot,
    because it is no node of `cas`, or the blob would be looked for in another instance of the CAS."""
    directory = node.parent
    if directory is None or not isinstance(directory.volume, _CasVolume):
        return None
    if directory.volume.instance_name != target.instance_name:
        return None
    if isinstance(node, File):
        return File(node.mode, node.mtime, node.content)
    return Symlink(node.target, node.mtime) if isinstance(node, Symlink) else None
