"""Who had what fetched from the remote: by process, output base, target and blob, in bounded memory. Never decides anything.

What is here already is not counted, and costs nothing. What comes is counted when it comes, for whoever asked for the blob last
before it did: bytes that a read-ahead brings belong to the reader that it follows.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from outputd.digest import Digest
from outputd.tree.node import Directory, Node

K = TypeVar("K", bound=Hashable)

_ROWS: Final = 500
"""Names that are kept of each sort; with twice as many, those with the fewest bytes are forgotten."""
_ASKERS: Final = 4096
"""Blobs of which it is known who asked for them; of a blob in parts that is how long its bytes can be told whose they are."""
_OF_A_TARGET: Final = (b".runfiles", b".params", b".runfiles_manifest")
"""What Bazel appends to the name of a target for directories and files that belong to it."""


class Process(NamedTuple):
    """A process, told from another that has its id later."""

    pid: int
    """0: nobody in particular."""
    started: int
    """Nanoseconds since 1970; 0: not known."""
    name: str


DAEMON: Final = Process(0, 0, "outputd and its clients")
"""For what nobody asked for through the mount: calls on the socket, builds that start, prefetches."""


class Place(NamedTuple):
    """Where a file lies."""

    output_base_id: str
    """Empty: nowhere any more."""
    path: bytes
    """Below the output path."""

    @classmethod
    def of(cls, node: Node) -> Place:
        names: list[bytes] = []
        top: Directory | None = None
        at: Node | None = node
        while at is not None and at.parent is not None:
            if isinstance(at, Directory) and at is at.volume.root:
                top = at
                break
            names.append(at.name)
            at = at.parent
        if top is None:
            return cls("", b"/".join(reversed(names)))
        return cls(top.name.decode(errors="surrogateescape"), b"/".join(reversed(names)))

    @property
    def target(self) -> str:
        """The target's label, where Bazel's layout tells it (`<configuration>/bin/<package>/…`), else the package's directory."""
        return target_of(self.path)


def target_of(path: bytes) -> str:
    """The directory that a path's target has, `//package` or `//package:target`; the directory itself where it is not Bazel's."""
    names = path.split(b"/")
    if names[0] == b"bazel-out":
        del names[0]
    directories = names[:-1]
    if len(directories) < 2 or directories[1] not in (b"bin", b"testlogs", b"genfiles"):
        return _text(b"/".join(directories)) or "."
    package = directories[2:]
    prefix = "//"
    if package[:1] == [b"external"]:
        prefix = f"@{_text(b''.join(package[1:2]))}//"
        package = package[2:]
    for index, name in enumerate(package):
        if name == b"_objs" and index + 1 < len(package):
            return f"{prefix}{_text(b'/'.join(package[:index]))}:{_text(package[index + 1])}"
        for suffix in _OF_A_TARGET:
            if name.endswith(suffix):
                return f"{prefix}{_text(b'/'.join(package[:index]))}:{_text(name.removesuffix(suffix))}"
    return prefix + _text(b"/".join(package))


@dataclass(slots=True)
class Fetched:
    """What came."""

    pieces: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.pieces += 1
        self.bytes += size


class Ranking(Generic[K]):
    """Sums by key, of which the largest are kept."""

    def __init__(self, rows: int = _ROWS) -> None:
        self._rows = rows
        self._sums: dict[K, Fetched] = {}

    def add(self, key: K, size: int) -> None:
        found = self._sums.get(key)
        if found is None:
            if len(self._sums) >= 2 * self._rows:
                self._sums = dict(self.top(self._rows))
            found = self._sums[key] = Fetched()
        found.add(size)

    def top(self, rows: int) -> list[tuple[K, Fetched]]:
        """Those with most bytes, the largest first."""
        ranked = sorted(self._sums.items(), key=lambda item: item[1].bytes, reverse=True)
        return ranked[:rows] if rows else ranked


class Accounting:
    """For one event loop."""

    def __init__(self, rows: int = _ROWS) -> None:
        self.began: Final = time.time()
        self.total: Final = Fetched()
        self.processes: Final[Ranking[Process]] = Ranking(rows)
        self.output_bases: Final[Ranking[str]] = Ranking(rows)
        self.targets: Final[Ranking[str]] = Ranking(rows)
        self.blobs: Final[Ranking[Digest]] = Ranking(rows)
        self._askers: OrderedDict[Digest, tuple[Process, Place]] = OrderedDict()
        self.arrivals: list[Callable[[Process, Place, Digest, int], object]] = []
        """Told of everything that comes."""

    def asked(self, process: Process, place: Place, digest: Digest) -> None:
        """Somebody waits for a blob that is not here."""
        self._askers[digest] = process, place
        self._askers.move_to_end(digest)
        if len(self._askers) > _ASKERS:
            self._askers.popitem(last=False)

    def asker(self, digest: Digest) -> tuple[Process, Place]:
        """Who asked for a blob last."""
        return self._askers.get(digest, (DAEMON, _NOWHERE))

    def arrived(self, digest: Digest, size: int) -> None:
        """Bytes of a blob came."""
        process, place = self.asker(digest)
        self.total.add(size)
        self.processes.add(process, size)
        self.blobs.add(digest, size)
        if place.output_base_id:
            self.output_bases.add(place.output_base_id, size)
            self.targets.add(place.target, size)
        for tell in self.arrivals:
            tell(process, place, digest, size)


_NOWHERE: Final = Place("", b"")


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
