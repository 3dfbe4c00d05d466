"""The files of an output path that patterns or a profile name. Looks into directories that can match only, and brings no file.

A pattern is a path; in its names `*`, `?` and `[…]` stand for what they do in a shell, and a name `**` for any number of names. A
pattern that matches a directory means all that is below. Symlinks are not followed: what they lead to has a path of its own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final, NamedTuple, TypeAlias

from outputd.builds.pace import Pace
from outputd.builds.verification import Count
from outputd.digest import Digest
from outputd.drive.loader import Loader
from outputd.drive.profile import Part, Run
from outputd.errors import Corrupt, Invalid, NotFound
from outputd.tree.node import Child, Directory, File, blob_of

_ANY: Final = b"**"

State: TypeAlias = frozenset[tuple[int, int]]
"""Pattern and how many of its names have matched; for each way to match."""


class Patterns:
    """Compiled."""

    def __init__(self, patterns: Iterable[bytes]) -> None:
        """Raises Invalid for what leaves the output path."""
        self._names = [
            tuple(name for name in pattern.split(b"/") if name not in (b"", b".")) for pattern in patterns
        ]
        if not self._names:
            raise Invalid("patterns: there is none, expected one at least")
        if any(b".." in names for names in self._names):
            raise Invalid("patterns: `..` leads out of what they can name")

    @property
    def start(self) -> State:
        return self._closed({(index, 0) for index in range(len(self._names))})

    def step(self, state: State, name: bytes) -> State:
        """What remains to be matched below a directory, once its entry `name` is looked at."""
        after: set[tuple[int, int]] = set()
        for index, at in state:
            names = self._names[index]
            if at == len(names) or names[at] == _ANY:
                after.add((index, at))  # all below what matched matches
            elif names[at] == name or fnmatchcase(name, names[at]):
                after.add((index, at + 1))
        return self._closed(after)

    def match(self, state: State) -> bool:
        return any(at == len(self._names[index]) for index, at in state)

    def _closed(self, states: set[tuple[int, int]]) -> State:
        """`**` may also stand for no name at all."""
        for index, at in list(states):
            names = self._names[index]
            while at < len(names) and names[at] == _ANY:
                at += 1
                states.add((index, at))
        return frozenset(states)


class Selected(NamedTuple):
    """A file that matches."""

    path: bytes
    size: int
    digest: Digest | None
    """None: it was written here and is no blob yet."""


async def select(root: Directory, patterns: Patterns, loader: Loader) -> AsyncGenerator[Selected]:
    """All files that match. Raises what Loader.peek raises for a directory that has to be looked into."""
    pace = Pace()
    stack: list[tuple[bytes, Child, State]] = [(b"", root, patterns.start)]
    while stack:
        path, node, state = stack.pop()
        if isinstance(node, Directory):
            prefix = path + b"/" if path else b""
            for name, inner in (await loader.peek(node)).items():
                below = patterns.step(state, name)
                if below:
                    stack.append((prefix + name, inner, below))
        elif patterns.match(state):
            digest = blob_of(node)
            if digest is not None:
                yield Selected(path, digest.size, digest)
            elif isinstance(node, File):
                yield Selected(path, node.size, None)
        if pace.due:
            await pace.turn()


async def named_by(
    root: Directory, files: Mapping[bytes, Part], loader: Loader, matched: Count
) -> tuple[dict[Digest, tuple[Run, ...]], int]:
    """The blobs of the files that a profile names, in its order, with what of each was read (nothing: all of it); and how many of
    the paths lead to no file. Raises what Loader.peek raises, but for directories that are lost: what lies in them is absent.
    """
    pace = Pace()
    found: dict[Digest, tuple[Run, ...]] = {}
    absent = 0
    directories: dict[bytes, Mapping[bytes, Child]] = {b"": await loader.peek(root)}

    async def entries(path: bytes) -> Mapping[bytes, Child]:
        names: list[bytes] = []
        while path not in directories:
            path, _, name = path.rpartition(b"/")
            names.append(name)
        inside = directories[path]
        while names:
            name = names.pop()
            directory = inside.get(name)
            inside = await loader.peek(directory) if isinstance(directory, Directory) else {}
            path = path + b"/" + name if path else name
            directories[path] = inside
        return inside

    for path, part in files.items():
        above, _, name = path.rpartition(b"/")
        try:
            node = (await entries(above)).get(name)
        except (NotFound, Corrupt):
            node = None
            directories[above] = {}
        digest = None if node is None or isinstance(node, Directory) else blob_of(node)
        if digest is not None:
            matched.add(digest.size)
            known = found.get(digest)
            runs = part.of(digest.size)
            found[digest] = runs if known is None else _both(known, runs)
        elif isinstance(node, File):
            matched.add(node.size)  # written here
        else:
            absent += 1
        if pace.due:
            await pace.turn()
    return found, absent


def _both(some: tuple[Run, ...], others: tuple[Run, ...]) -> tuple[Run, ...]:
    """What two files of the same bytes have read; nothing stands for all."""
    if not some or not others:
        return ()
    merged: list[Run] = []
    for start, end in sorted((*some, *others)):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return tuple(merged)
