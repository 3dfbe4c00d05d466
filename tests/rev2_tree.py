"""REv2 Directory and Tree messages of a directory that a test writes down as a dict. Independent of how outputd makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import DigestFunction
from tests.service_client import SHA256, digest_of

Entry: TypeAlias = "bytes | Program | str | Mapping[str, Entry]"
"""A file, an executable, a symlink's target, a directory."""


class Program(NamedTuple):
    """An executable file."""

    content: bytes


class Rev2Tree:
    """A directory as REv2 has it."""

    def __init__(self, entries: Mapping[str, Entry], function: DigestFunction = SHA256) -> None:
        self._function = function
        self.files: Final[list[bytes]] = []
        """Contents."""
        self.directories: Final[list[bytes]] = []
        """Directory messages as a CAS keeps them, the root last."""
        self._tree = reapi.Tree()
        root = self._add(entries)
        self._tree.root.CopyFrom(root)
        self.message: Final = self._tree.SerializeToString(deterministic=True)
        """The Tree."""
        self.digest: Final = digest_of(self.message, function)
        self.root_digest: Final = digest_of(self.directories[-1], function)

    def _add(self, entries: Mapping[str, Entry]) -> reapi.Directory:
        directory = reapi.Directory()
        for name, entry in sorted(entries.items()):
            if isinstance(entry, str):
                directory.symlinks.add(name=name, target=entry)
            elif isinstance(entry, Mapping):
                child = self._add(entry)
                self._tree.children.append(child)
                directory.directories.add(name=name, digest=digest_of(self.directories[-1], self._function))
            else:
                executable = isinstance(entry, Program)
                content = entry.content if isinstance(entry, Program) else entry
                self.files.append(content)
                directory.files.add(
                    name=name, digest=digest_of(content, self._function), is_executable=executable
                )
        self.directories.append(directory.SerializeToString(deterministic=True))
        return directory
