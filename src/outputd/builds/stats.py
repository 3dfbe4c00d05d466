"""Answering what stands at paths of an output path, thousands in one request; downloads nothing, follows no final symlink.

Rules: protocols "stat walk" and "digests in stats"; BatchStat (bazel_output_service.proto).
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Sequence
from typing import Final, TypeAlias

from outputd.builds.loading import Loading
from outputd.builds.output_base import Build
from outputd.digest import Digest
from outputd.drive.ingest import Ingest
from outputd.errors import Invalid, OutputdError
from outputd.tree.node import Child, Directory, File, Local, Symlink, packed_content
from outputd.tree.resolve import Kind, Resolution, Resolver
from outputd.tree.status import NotLoaded

_log = logging.getLogger(__name__)

_HASHING: Final = 60.0
"""Seconds to wait for the digests of files that were written here. The client reads and hashes those without one itself."""


class Known(enum.Enum):
    """What stands at a path, where neither a digest nor a target says it."""

    ABSENT = "nothing"
    FILE = "a regular file whose digest cannot be told"
    DIRECTORY = "a directory"
    OTHER = "something that has no type in the protocols, or lies outside the output path"


class Target(bytes):
    """Something is a symbolic link, to this."""

    __slots__ = ()


Stat: TypeAlias = "Digest | Target | Known"
"""A regular file by its digest, a symlink by its target, anything else by a word."""

_WORDS: Final = {
    Kind.ABSENT: Known.ABSENT,
    Kind.NOT_DIRECTORY: Known.ABSENT,  # as for POSIX callers: ENOTDIR means there is nothing
    Kind.LOOP: Known.OTHER,
    Kind.EXTERNAL: Known.OTHER,
}


class Stats:
    """One request. The paths may come in parts."""

    def __init__(self, build: Build, loading: Loading, ingest: Ingest) -> None:
        self._build = build
        self._loading = loading
        self._ingest = ingest
        self._resolver = Resolver(build.base.volume.root, build.virtual_root)

    async def of(self, paths: Sequence[bytes]) -> list[Stat]:
        """What stands at each path. Raises Precondition.

        A path that cannot be followed to its end (a NUL in it, a directory on the way that cannot be loaded) is OTHER: it must not
        fail the batch, and clients take such an output for one that is to be made again.
        """
        self._build.check()
        stats: list[Stat] = []
        unhashed: list[tuple[int, File]] = []
        find = self._resolver.find
        function = self._build.function
        for path in paths:
            try:
                found = find(path)
            except (NotLoaded, Invalid):
                loaded = await self._find(path)
                self._build.check()
                if loaded is None:
                    stats.append(Known.OTHER)
                    continue
                found = loaded
            if isinstance(found, Resolution):
                if found.node is None:
                    stats.append(_WORDS[found.kind])
                    continue
                found = found.node
            if isinstance(found, bytes):
                stats.append(packed_content(found) if found[0] == function else Known.FILE)
            elif isinstance(found, File):
                content = found.content
                if isinstance(content, Local):
                    unhashed.append((len(stats), found))
                    stats.append(Known.FILE)
                else:
                    stats.append(content if content[0] == function else Known.FILE)
            elif isinstance(found, Symlink):
                stats.append(Target(found.target))
            else:
                stats.append(Known.DIRECTORY if isinstance(found, Directory) else Known.OTHER)
        if unhashed:
            await self._hash(unhashed, stats)
        return stats

    async def _find(self, path: bytes) -> Child | Resolution | None:
        """For a path that needs loading, or is none."""
        try:
            found = await self._loading.run(lambda: self._resolver.find(path))
        except Invalid as error:
            _log.debug("stat: %s", error)
            return None
        if isinstance(found, OutputdError):
            _log.warning("stat of %r: %s", path, found)
            return None
        return found

    async def _hash(self, files: list[tuple[int, File]], stats: list[Stat]) -> None:
        """Fill in the digests of files that were written here."""
        if any(isinstance(file.content, Local) and file.content.writers for _, file in files):
            # The kernel sends RELEASE after close(2) has returned, so the client may be here before it. Twice, because asyncio
            # runs what became readable only after what was ready already.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        for _, file in files:
            if isinstance(file.content, Local) and not file.content.writers and file.nlink:
                self._ingest.closed(file)  # all of them, so that they are hashed together
        try:
            async with asyncio.timeout(_HASHING):
                for index, file in files:
                    stats[index] = await self._ingest.digest_of(file, self._build.function) or Known.FILE
        except TimeoutError:
            _log.warning("stat: %d files were not hashed within %g s", len(files), _HASHING)
