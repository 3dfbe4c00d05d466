"""UNIX-style resolution of paths that requests name, over the tree and the client's name space; changes nothing, asks no disk.

A build client names outputs by paths whose symlinks may leave the output path and come back through absolute targets, so paths
are walked as the kernel would walk them for the client (path_resolution(7)), with the client's view of the mount in between:
`output_path_prefix` and `output_path_aliases` of StartBuild (bazel_output_service.proto).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from outputd.errors import Invalid
from outputd.tree.node import MAX_NAME, Child, Directory, File, Node, Special, Symlink
from outputd.tree.status import NotLoaded

MAX_LINKS_FOLLOWED: Final = 40
"""Symlinks expanded in one path, Linux's MAXSYMLINKS; one more is a loop."""


class Kind(enum.Enum):
    """What a path leads to."""

    ABSENT = "nothing"
    FILE = "a regular file"
    DIRECTORY = "a directory"
    SYMLINK = "a symbolic link that was not to be followed"
    SPECIAL = "a fifo, socket or device"
    NOT_DIRECTORY = "something below what is no directory"
    LOOP = "too many symbolic links"
    EXTERNAL = "a place outside the output path"


class Resolution(NamedTuple):
    """Where a path led."""

    kind: Kind
    node: Child | None = None
    """What stands there, for FILE, DIRECTORY, SYMLINK and SPECIAL."""
    next_path: bytes = b""
    """For EXTERNAL: how the client goes on. Absolute if the path or a target on the way was, else relative to the output path
    and starting with `..`. Normalised, but `..` after a name stays: what is outside may be a symlink."""


_ABSENT: Final = Resolution(Kind.ABSENT)
_NOT_DIRECTORY: Final = Resolution(Kind.NOT_DIRECTORY)
_LOOP: Final = Resolution(Kind.LOOP)
_KINDS: Final[dict[type[Node] | type[bytes], Kind]] = {
    bytes: Kind.FILE,  # PackedFile
    File: Kind.FILE,
    Directory: Kind.DIRECTORY,
    Symlink: Kind.SYMLINK,
    Special: Kind.SPECIAL,
}

_NO_NAMES: Final = (b"", b".", b"..")

_Entry: TypeAlias = "dict[bytes, _Entry] | list[bytes] | None"
"""A place in the client's name space: a directory that leads to others, an alias (its target as `resolve` keeps what is to be
walked), or the output path itself (None)."""


class VirtualRoot:
    """The client's name space as far as it concerns one output path: where that begins, and the aliases that lead into it."""

    __slots__ = ("_top", "aliases", "components", "prefix")

    def __init__(self, prefix: str, suffix: str, aliases: Mapping[str, str]) -> None:
        """Raises Invalid, naming field and entry. `suffix` is ours: what is appended to the client's prefix."""
        self.prefix: Final = prefix
        self.aliases: Final = aliases
        self.components: Final = (
            *_plain_components("output_path_prefix", prefix, absolute=True),
            *_plain_components("output_path_suffix", suffix, absolute=False),
        )
        """The client's absolute path of the output path."""
        self._top: _Entry = {} if self.components else None
        if self.components:
            self._insert(self.components, None, "output_path_prefix", prefix)
        for path, target in aliases.items():
            self._add_alias(path, target)

    def enter(self, pending: list[bytes], links_left: int) -> int | Resolution:
        """Walk the absolute path in `pending` (last component first) into the output path; what is left of it stays there.

        Returns the number of links that may still be followed, or the result where the path does not lead into the output path.
        """
        entry = self._top
        walked: list[bytes] = []
        while entry is not None:
            if isinstance(entry, list):
                if not links_left:
                    return _LOOP
                links_left -= 1
                pending.extend(entry)
                walked.clear()
                entry = self._top
                continue
            if not pending:
                return _external(walked, absolute=True)
            name = pending.pop()
            walked.append(name)
            if name == b".":
                continue
            if name not in entry:  # `..` too: a directory out there may be reached through a symlink
                return _external((*walked, *reversed(pending)), absolute=True)
            entry = entry[name]
        return links_left

    def _add_alias(self, path: str, target: str) -> None:
        field = f"output_path_aliases[{_shown(path)}]"
        components = _plain_components(field, path, absolute=True)
        if not components or path.endswith(("/", "/.")):
            raise Invalid(f"{field}: expected a path that ends in a name")
        raw = _encoded(target, f"the value of {field}")
        if raw.startswith(b"/"):
            raise Invalid(f"{field}: its value {_shown(target)} is absolute, expected a relative path")
        walk = [*self.components, *_components(raw)]
        walk.reverse()
        self._insert(components, walk, field, path)

    def _insert(self, components: Sequence[bytes], mark: list[bytes] | None, field: str, path: str) -> None:
        """Put a mark into the client's name space, where none lies at, above or below it."""
        entry = self._top
        for name in components[:-1]:
            if not isinstance(entry, dict):
                break
            entry = entry.setdefault(name, {})
        if not isinstance(entry, dict) or components[-1] in entry:
            raise Invalid(f"{field}: {_shown(path)} lies at, above or below the output path or another alias")
        entry[components[-1]] = mark


class Resolver:
    """Resolves the paths of one request in a row: remembers the directories it came through, so a plain path costs one look-up.

    Gives what `resolve` gives, and stays right while the tree changes between two paths.
    """

    __slots__ = ("_changes", "_directories", "_follow_final", "_root", "_virtual_root")

    def __init__(self, root: Directory, virtual_root: VirtualRoot, *, follow_final: bool = False) -> None:
        self._root = root
        self._virtual_root = virtual_root
        self._follow_final = follow_final
        self._directories: dict[bytes, Directory] = {b"": root}
        """By the text up to and with the last slash; only where every component before it is a real directory."""
        self._changes = root.volume.changes
        """Of the volume, when `_directories` was last known to be true."""

    def resolve(self, path: str | bytes) -> Resolution:
        """As the function `resolve`. Raises NotLoaded and Invalid."""
        found = self.find(path)
        return found if isinstance(found, Resolution) else Resolution(_KINDS[type(found)], found)

    def find(self, path: str | bytes) -> Child | Resolution:
        """As `resolve`, but only what stands there, where that says it all."""
        raw = _encoded(path, "path")
        cut = raw.rfind(b"/") + 1
        if self._changes != self._root.volume.changes:
            self._directories = {b"": self._root}
            self._changes = self._root.volume.changes
        directory = self._directories.get(raw[:cut]) or self._enter(raw[:cut])
        if directory is not None:
            name = raw[cut:]
            children = directory.children
            node = None if children is None else children.get(name)
            if node is None:
                if name not in _NO_NAMES:
                    if children is None:
                        raise NotLoaded(directory)
                    return _ABSENT
            elif not self._follow_final or not isinstance(node, Symlink):
                return node
        return resolve(self._root, self._virtual_root, raw, follow_final=self._follow_final)

    def _enter(self, parent: bytes) -> Directory | None:
        """The directory a plain path leads to, remembered; None where `resolve` has to look."""
        directory = self._root
        for name in parent[:-1].split(b"/"):
            if name in _NO_NAMES:
                return None
            if directory.children is None:
                raise NotLoaded(directory)
            node = directory.children.get(name)
            if not isinstance(node, Directory):
                return None
            directory = node
        self._directories[parent] = directory
        return directory


def resolve(
    root: Directory, virtual_root: VirtualRoot, path: str | bytes, *, follow_final: bool
) -> Resolution:
    """Where `path` leads from `root`, the root of an output path. A trailing slash follows a final symlink in any case.

    Raises NotLoaded where a collapsed directory is in the way, Invalid for a path that no file system could have.
    """
    raw = _encoded(path, "path")
    pending = _components(raw)
    pending.reverse()
    links_left = MAX_LINKS_FOLLOWED
    came_by: Sequence[bytes] | None = None
    if raw.startswith(b"/"):
        entered = virtual_root.enter(pending, links_left)
        if isinstance(entered, Resolution):
            return entered
        links_left = entered
        came_by = virtual_root.components
    stack = [root]
    while pending:
        name = pending.pop()
        if name == b".":
            continue
        if name == b"..":
            if len(stack) == 1:
                return _external((*(came_by or ()), b"..", *reversed(pending)), absolute=came_by is not None)
            stack.pop()
            continue
        children = stack[-1].children
        if children is None:
            raise NotLoaded(stack[-1])
        node = children.get(name)
        if node is None:
            return _ABSENT
        if isinstance(node, Directory):
            stack.append(node)
        elif isinstance(node, Symlink) and (pending or follow_final):
            if not links_left:
                return _LOOP
            links_left -= 1
            pending.extend(reversed(_components(node.target)))
            if node.target.startswith(b"/"):
                entered = virtual_root.enter(pending, links_left)
                if isinstance(entered, Resolution):
                    return entered
                links_left = entered
                came_by = virtual_root.components
                stack = [root]
        elif pending:
            return _NOT_DIRECTORY
        else:
            return Resolution(_KINDS[type(node)], node)
    return Resolution(Kind.DIRECTORY, stack[-1])


def creating_path(path: str | bytes) -> tuple[tuple[bytes, ...], bytes]:
    """A path that is to be created: the steps to its parent from the root of the output path, and its name.

    A step is the name of a directory to enter, made if need be (`a/../b` makes `a`), or `..` to go back; never above the root.
    Symlinks are not followed: `Tree.descend` replaces them. Raises Invalid for a path that cannot name a new entry.
    """
    raw = _encoded(path, "path")
    if raw.startswith(b"/"):
        raise Invalid(f"path {_shown(path)}: is absolute, expected one relative to the output path")
    steps = _components(raw)
    name = steps.pop() if steps else b"."
    if b".." in steps or name == b"..":
        level = 0
        for step in (*steps, name):
            level += -1 if step == b".." else 1
            if level < 0:
                raise Invalid(f"path {_shown(path)}: climbs above the output path")
    if name in (b".", b".."):
        raise Invalid(f"path {_shown(path)}: resolves to a directory, expected the name of an entry")
    if len(raw) > MAX_NAME and any(len(step) > MAX_NAME for step in (*steps, name)):
        raise Invalid(f"path {_shown(path)}: a component is longer than {MAX_NAME} bytes")
    return tuple(steps), name


def _components(path: bytes) -> list[bytes]:
    """A path in pieces, without empty ones and `.`; but `.` ends it where the path says that it leads to a directory."""
    components = [piece for piece in path.split(b"/") if piece not in (b"", b".")]
    if components and path.endswith((b"/", b"/.")):
        components.append(b".")
    return components


def _plain_components(field: str, path: str, *, absolute: bool) -> list[bytes]:
    """The components of a path in which no symlink is known, so that `..` has no meaning."""
    raw = _encoded(path, field)
    if raw.startswith(b"/") is not absolute:
        raise Invalid(f"{field} {_shown(path)}: expected {'an absolute' if absolute else 'a relative'} path")
    components = [piece for piece in raw.split(b"/") if piece not in (b"", b".")]
    if b".." in components:
        raise Invalid(f"{field} {_shown(path)}: expected a path without '..'")
    return components


def _external(components: Sequence[bytes], *, absolute: bool) -> Resolution:
    names = [name for name in components if name != b"."]
    text = (b"/" if absolute else b"") + b"/".join(names)
    if names and names[-1] != b".." and components[-1] == b".":
        text += b"/"
    return Resolution(Kind.EXTERNAL, None, text)


def _encoded(path: str | bytes, field: str) -> bytes:
    """The bytes of a path. Raises Invalid where no file name can have them."""
    try:
        raw = path if isinstance(path, bytes) else path.encode()
    except UnicodeEncodeError as error:
        raise Invalid(f"{field} {_shown(path)}: expected UTF-8") from error
    if b"\0" in raw:
        raise Invalid(f"{field} {_shown(path)}: contains a NUL byte")
    return raw


def _shown(path: str | bytes) -> str:
    """A path for an error message."""
    shown = repr(path) if isinstance(path, str) else repr(path)[1:]
    return shown if len(shown) <= 300 else shown[:300] + "…"
