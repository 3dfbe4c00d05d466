"""What an output path must hold after everything that was acknowledged: a plain dict of paths, and its comparison with the mount.

Knows the names, kinds, contents, link targets, hard links, modes and extended attributes of everything; times and inode numbers as
far as somebody has looked since they last changed. Knows nothing of outputd.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

FILE: Final = "file"
DIRECTORY: Final = "directory"
LINK: Final = "symlink"
FIFO: Final = "fifo"

_KINDS: Final = {stat.S_IFREG: FILE, stat.S_IFDIR: DIRECTORY, stat.S_IFLNK: LINK, stat.S_IFIFO: FIFO}
STAGED_MODE: Final = 0o755


@dataclass(frozen=True, slots=True)
class Seen:
    """What lstat(2) has told since the last change."""

    mode: int
    mtime: int
    ctime: int

    @classmethod
    def of(cls, status: os.stat_result) -> Seen:
        return cls(stat.S_IMODE(status.st_mode), status.st_mtime_ns, status.st_ctime_ns)


@dataclass(slots=True, eq=False)
class Thing:
    """What one or more paths lead to."""

    kind: str
    mode: int
    content: bytes = b""
    """Of a file its bytes, of a symlink its target."""
    xattrs: dict[str, bytes] = field(default_factory=dict)
    untouched: bool = False
    """Staged, and nothing has been done to it since: to stage the same again changes nothing."""
    mtime: int | None = None
    """Nanoseconds since 1970, when it was set by utimensat(2)."""
    seen: Seen | None = None
    ino: int = 0
    """Its inode number, if it has been seen; stays for its whole life."""

    def touch(self) -> None:
        """Something about it changes: what was seen of it does not hold any more."""
        self.untouched = False
        self.seen = None
        self.mtime = None


class Expected:
    """The tree below one output path, which is not in it itself."""

    def __init__(self) -> None:
        self.things: dict[str, Thing] = {}
        """By path from the output path on."""

    def copy(self) -> Expected:
        """Another one, with links between paths as here."""
        made = Expected()
        clones: dict[int, Thing] = {}
        for path, thing in self.things.items():
            clone = clones.get(id(thing))
            if clone is None:
                clone = clones[id(thing)] = replace(thing, xattrs=dict(thing.xattrs))
            made.things[path] = clone
        return made

    # what is there

    def paths(self, *kinds: str) -> list[str]:
        return [path for path, thing in self.things.items() if thing.kind in kinds]

    def below(self, top: str) -> list[str]:
        """Every path under a directory."""
        return [path for path in self.things if path.startswith(f"{top}/")]

    def digests_needed(self) -> dict[str, bytes]:
        """The contents of all regular files, by path."""
        return {path: thing.content for path, thing in self.things.items() if thing.kind == FILE}

    # changes

    def enter(self, path: str, thing: Thing) -> None:
        """A name now leads to `thing`, whatever it led to before."""
        self.remove(path)
        self.things[path] = thing
        self._touch_parent(path)

    def remove(self, path: str) -> None:
        """A name is gone, with all below it; fine when there is none."""
        thing = self.things.pop(path, None)
        if thing is not None:
            for inner in self.below(path) if thing.kind == DIRECTORY else ():
                del self.things[inner]
            _lose_name(thing)
            self._touch_parent(path)

    def clear(self) -> None:
        self.things.clear()

    def move(self, old: str, new: str) -> None:
        """As rename(2) succeeded."""
        moved = {path: self.things[path] for path in (old, *self.below(old))}
        if self.things.get(new) is moved[old]:
            return  # two names of one file: nothing happens
        self.remove(new)
        for path, thing in moved.items():
            del self.things[path]
            self.things[new + path[len(old) :]] = thing
        moved[old].seen = None  # the ctime
        moved[old].untouched = False
        self._touch_parent(old)
        self._touch_parent(new)

    def exchange(self, one: str, other: str) -> None:
        """As renameat2(2) succeeded with RENAME_EXCHANGE; neither lies below the other."""
        if self.things[one] is self.things[other]:
            return
        aside = "exchange in progress"
        self.move(one, aside)
        self.move(other, one)
        self.move(aside, other)
        self.things.pop(aside, None)

    def stage(self, path: str, content: bytes) -> None:
        """A file by digest; directories are made on the way."""
        old = self.things.get(path)
        self._descend(os.path.dirname(path))
        if old is not None and old.untouched and old.content == content:
            return
        self.enter(path, Thing(FILE, STAGED_MODE, content, untouched=True))

    def stage_tree(self, path: str, files: dict[str, tuple[bytes, bool]]) -> None:
        """A directory by digest, with the contents of its files and whether they are executable."""
        self._descend(os.path.dirname(path))
        self.enter(path, Thing(DIRECTORY, 0o755))
        for name, (content, executable) in files.items():
            inner = f"{path}/{name}"
            self._descend(os.path.dirname(inner))
            self.things[inner] = Thing(FILE, 0o755 if executable else 0o644, content)

    def _descend(self, path: str) -> None:
        if path and path not in self.things:
            self._descend(os.path.dirname(path))
            self.enter(path, Thing(DIRECTORY, 0o755))

    def _touch_parent(self, path: str) -> None:
        parent = self.things.get(os.path.dirname(path))
        if parent is not None:
            parent.touch()

    # the comparison

    def differences(self, top: Path) -> list[str]:
        """How the mount differs from this; everything is looked at and every local byte read."""
        found = {path: (entry, entry.stat(follow_symlinks=False)) for path, entry in _walk(top, "")}
        wrong = [f"{path}: is not there" for path in self.things.keys() - found.keys()]
        wrong += [f"{path}: is there" for path in found.keys() - self.things.keys()]
        inodes: dict[int, int] = {}
        names: dict[int, int] = {}
        for thing in self.things.values():
            names[id(thing)] = names.get(id(thing), 0) + 1
        for path, thing in self.things.items():
            if path in found:
                entry, status = found[path]
                wrong += [f"{path}: {text}" for text in _differences(thing, entry, status)]
                if thing.kind != DIRECTORY:
                    if status.st_nlink != names[id(thing)]:
                        wrong.append(f"{path}: has {status.st_nlink} links, expected {names[id(thing)]}")
                    if inodes.setdefault(id(thing), status.st_ino) != status.st_ino:
                        wrong.append(f"{path}: is another file than its hard link")
        if len(set(inodes.values())) != len(inodes):
            wrong.append("two files have one inode number")
        return wrong


def _lose_name(thing: Thing) -> None:
    thing.seen = None
    thing.untouched = False


def _walk(top: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(top) as entries:
        for entry in list(entries):
            path = f"{prefix}{entry.name}"
            yield path, entry
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(top / entry.name, f"{path}/")


def _differences(thing: Thing, entry: os.DirEntry[str], status: os.stat_result) -> Iterable[str]:
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind != thing.kind:
        yield f"is a {kind}, expected a {thing.kind}"
        return
    if kind != LINK and stat.S_IMODE(status.st_mode) != thing.mode:
        yield f"mode {stat.S_IMODE(status.st_mode):o}, expected {thing.mode:o}"
    if thing.mtime is not None and status.st_mtime_ns != thing.mtime:
        yield f"mtime {status.st_mtime_ns}, was set to {thing.mtime}"
    if thing.seen is not None and Seen.of(status) != thing.seen:
        yield f"{Seen.of(status)}, expected {thing.seen}"
    if thing.ino and status.st_ino != thing.ino:
        yield f"inode {status.st_ino}, was {thing.ino}"
    if kind == LINK:
        if os.fsencode(os.readlink(entry.path)) != thing.content:
            yield f"leads to {os.readlink(entry.path)!r}, expected {thing.content!r}"
    elif kind == FILE:
        content = Path(entry.path).read_bytes()
        if content != thing.content:
            yield f"holds {_shown(content)}, expected {_shown(thing.content)}"
        elif status.st_size != len(content):
            yield f"size {status.st_size}, and {len(content)} bytes can be read"
    xattrs = {name: os.getxattr(entry.path, name, follow_symlinks=False) for name in _xattrs(thing, entry)}
    if xattrs != thing.xattrs:
        yield f"extended attributes {xattrs}, expected {thing.xattrs}"


def _xattrs(thing: Thing, entry: os.DirEntry[str]) -> list[str]:
    """A mount without extended attributes has none to compare."""
    return os.listxattr(entry.path, follow_symlinks=False) if thing.xattrs else []


def _shown(content: bytes) -> str:
    return f"{len(content)} bytes {content[:20]!r}…{content[-20:]!r}"
