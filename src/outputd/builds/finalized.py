"""The paths that builds declared final, and which of them have changed since; compared when somebody asks, so that no write pays.

Protocol: FinalizeArtifacts and InitialOutputPathContents (bazel_output_service.proto).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Final

from outputd.builds.pace import Pace
from outputd.digest import Digest
from outputd.drive.loader import Loader
from outputd.errors import Corrupt, NotFound
from outputd.tree.node import Child, Directory, Symlink, blob_of

_ENTRY: Final = struct.Struct("<II")  # length of what stood there, length of the path
_FILE: Final = b"f"
_SYMLINK: Final = b"s"


class Finalized:
    """Of one output base."""

    __slots__ = ("_paths",)

    def __init__(self) -> None:
        self._paths: dict[bytes, bytes] = {}
        """What stood at a path when it was finalized: `f` and the digest the client gave, or `s` and the target of a symlink."""

    def __len__(self) -> int:
        return len(self._paths)

    def copy(self) -> Finalized:
        """As of now."""
        made = Finalized()
        made._paths = self._paths.copy()
        return made

    def add(self, root: Directory, path: bytes, digest: Digest) -> bytes:
        """The client says that `path` will not change any more in this build, and what it should hold.

        Of an output that is a symlink it gives the digest of the file behind it, which is a path of its own or not ours: there
        the link itself is what counts. Returns what `add_encoded` takes.
        """
        names = _names(path)
        node = _look_up(root, names)
        what = _SYMLINK + node.target if isinstance(node, Symlink) else _FILE + digest
        path = b"/".join(names)
        self._paths[path] = what
        return _ENTRY.pack(len(what), len(path)) + what + path

    def add_encoded(self, entries: bytes) -> None:
        """What `add` returned, any number one after the other. Raises struct.error."""
        at = 0
        while at < len(entries):
            what_size, path_size = _ENTRY.unpack_from(entries, at)
            middle = at + _ENTRY.size + what_size
            at_end = middle + path_size
            self._paths[entries[middle:at_end]] = entries[at + _ENTRY.size : middle]
            at = at_end

    async def modified(self, root: Directory, loader: Loader) -> list[bytes]:
        """The paths where something else is now, sorted. Paths with nothing at all are forgotten here: this tells of them last.

        Expands nothing. Raises Unavailable when a directory message cannot be had now.
        """
        pace = Pace()
        modified: list[bytes] = []
        parents = _Parents(root, loader)
        for path, before in sorted(self._paths.items()):
            parent, _, name = path.rpartition(b"/")
            node = (await parents.entries(parent)).get(name)
            if node is None:
                self._paths.pop(path, None)
            if node is None or _what(node) != before:
                modified.append(path)
            if pace.due:
                await pace.turn()
        return modified

    def encode(self) -> bytes:
        """In the form that is kept. May run in a thread, of a copy."""
        parts: list[bytes] = []
        for path, what in self._paths.items():
            parts += (_ENTRY.pack(len(what), len(path)), what, path)
        return zlib.compress(b"".join(parts), 1)

    @classmethod
    def decode(cls, data: bytes) -> Finalized:
        """From the form that is kept. Raises Corrupt."""
        made = cls()
        try:
            made.add_encoded(zlib.decompress(data))
        except (zlib.error, struct.error) as error:
            raise Corrupt(f"list of finalized paths: {error}") from error
        return made


class _Parents:
    """The entries of the directories that sorted paths lie in, one after the other."""

    def __init__(self, root: Directory, loader: Loader) -> None:
        self._root = root
        self._loader = loader
        self._path = b""
        self._entries: Mapping[bytes, Child] | None = None

    async def entries(self, path: bytes) -> Mapping[bytes, Child]:
        """None of a directory that is none, or cannot be read for good."""
        if self._entries is None or path != self._path:
            self._path, self._entries = path, await self._walk(path.split(b"/") if path else [])
        return self._entries

    async def _walk(self, names: list[bytes]) -> Mapping[bytes, Child]:
        directory = self._root
        try:
            for name in names:
                node = (await self._loader.peek(directory)).get(name)
                if not isinstance(node, Directory):
                    return {}
                directory = node
            return await self._loader.peek(directory)
        except (NotFound, Corrupt):
            return {}  # what cannot be read is gone for the client; the look-through at the start has logged it


def _names(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def _look_up(root: Directory, names: list[bytes]) -> Child | None:
    """What stands at a plain path, as far as it is in memory."""
    node: Child | None = root
    for name in names:
        if not isinstance(node, Directory) or node.children is None:
            return None
        node = node.children.get(name)
    return node


def _what(node: Child) -> bytes:
    content = blob_of(node)
    if content is not None:
        return _FILE + content
    if isinstance(node, Symlink):
        return _SYMLINK + node.target
    return b""
