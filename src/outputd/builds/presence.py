"""What an output path holds that the CAS has lost: found out with one question when a build starts, and taken away. Never asks
about single files, and never expands a directory that lacks nothing.

A client that is shown a file which nobody can read any more has no way to recover later in the build (protocols: invariant 3). To
ask also prolongs the life of everything else in the remote CAS (REv2, FindMissingBlobs).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final, NamedTuple

from outputd.builds.kernel import Changes
from outputd.builds.pace import Pace
from outputd.digest import Digest
from outputd.drive.loader import Loader
from outputd.errors import Corrupt, NotFound
from outputd.store.base import BlobStore
from outputd.tree.node import DIRECTORY_MODE, Child, Directory, Volume, blob_of

_log = logging.getLogger(__name__)

_STRIDE: Final = 256
"""Entries between two looks at the clock."""


class _Collapsed(NamedTuple):
    """What a collapsed directory holds. Equal ones are looked through once, or a Tree could be made that takes for ever."""

    digest: Digest | None
    record: bytes | None
    tree: Digest | None

    @classmethod
    def of(cls, directory: Directory) -> _Collapsed:
        return cls(directory.digest, directory.record, directory.tree)

    def directory(self, volume: Volume) -> Directory:
        """One such directory that lies in no tree. The volume says which instance of the CAS has its message."""
        made = Directory(DIRECTORY_MODE, 0, volume)
        made.children = None
        made.digest, made.record, made.tree = self
        return made


class Withdrawn(NamedTuple):
    """What was taken away."""

    files: int
    directories: int
    """Emptied, because the message that says what they hold is gone."""


async def withdraw_missing(
    root: Directory, loader: Loader, blobs: BlobStore, changes: Changes, now: int
) -> Withdrawn:
    """Take away everything below `root` that cannot be read any more. Asks nobody when there is nothing to ask about.

    Raises Unavailable, TimedOut, Denied or Exhausted when the CAS does not answer; then nothing was changed.
    """
    survey = _Survey(root, loader)
    await survey.look_through()
    missing = await blobs.find_missing(survey.files) if survey.files else set()
    if not missing and not survey.gone:
        return Withdrawn(0, 0)
    lacking = await survey.lacking(missing)
    return await _withdraw(root, missing, survey.gone, lacking, loader, changes, now)


class _Survey:
    """The blobs that an output path consists of, without expanding any of it."""

    def __init__(self, root: Directory, loader: Loader) -> None:
        self._root = root
        self._loader = loader
        self.files: set[Digest] = set()
        self.gone: set[_Collapsed] = set()
        """Whose message cannot be had, or is none."""
        self._holders: dict[_Collapsed, list[_Collapsed]] = {}
        """All collapsed directories that were found, with the collapsed ones that hold them."""

    async def look_through(self) -> None:
        """Fill `files` and `gone`. Raises what Loader.load raises, but for NotFound and Corrupt."""
        pace = Pace()
        stack: list[tuple[Directory | _Collapsed, _Collapsed | None]] = [(self._root, None)]
        while stack:
            place, holder = stack.pop()
            if isinstance(place, Directory) and place.children is not None:
                children: Mapping[bytes, Child] = place.children
                here = None
            else:
                here = _Collapsed.of(place) if isinstance(place, Directory) else place
                known = here in self._holders
                holders = self._holders.setdefault(here, [])
                if holder is not None:
                    holders.append(holder)
                if known:
                    continue
                found = await self._entries(here)
                if found is None:
                    continue
                children = found
            for index, node in enumerate(list(children.values()), 1):
                content = blob_of(node)
                if content is not None:
                    self.files.add(content)
                elif isinstance(node, Directory):
                    # Not the node of a collapsed one: it would keep all entries beside it in memory.
                    stack.append((node if here is None else _Collapsed.of(node), here))
                if index % _STRIDE == 0 and pace.due:
                    await pace.turn()
            if pace.due:
                await pace.turn()

    async def lacking(self, missing: set[Digest]) -> set[_Collapsed]:
        """The collapsed directories that hold something missing or gone, at any depth."""
        pace = Pace()
        stack: list[_Collapsed] = []
        for place in self._holders:
            if place in self.gone or (missing and await self._lacks_file(place, missing)):
                stack.append(place)
            if pace.due:
                await pace.turn()
        lacking: set[_Collapsed] = set()
        while stack:
            place = stack.pop()
            if place not in lacking:
                lacking.add(place)
                stack.extend(self._holders[place])
        return lacking

    async def _lacks_file(self, place: _Collapsed, missing: set[Digest]) -> bool:
        children = await self._entries(place) or {}
        return any(blob_of(child) in missing for child in children.values())

    async def _entries(self, place: _Collapsed) -> Mapping[bytes, Child] | None:
        """None when they are gone."""
        try:
            return await self._loader.peek(place.directory(self._root.volume))
        except (NotFound, Corrupt) as error:
            _log.warning("a directory cannot be shown any more: %s", error)
            self.gone.add(place)
            return None


async def _withdraw(
    root: Directory,
    missing: set[Digest],
    gone: set[_Collapsed],
    lacking: set[_Collapsed],
    loader: Loader,
    changes: Changes,
    now: int,
) -> Withdrawn:
    pace = Pace()
    files = directories = 0
    stack = [root]
    while stack:
        directory = stack.pop()
        if directory.children is None:
            place = _Collapsed.of(directory)
            if place not in lacking:
                continue
            if place not in gone:
                try:
                    await loader.load(directory)
                except (NotFound, Corrupt) as error:
                    _log.warning("a directory cannot be shown any more: %s", error)
        if directory.children is None:
            changes.tree.clear(directory, now)
            directories += 1
            changes.note()
            continue
        for index, (name, node) in enumerate(list(directory.children.items()), 1):
            if isinstance(node, Directory):
                stack.append(node)
            elif blob_of(node) in missing and blob_of(directory.children.get(name)) in missing:  # still
                changes.tree.withdraw(directory, name, now)
                files += 1
            if index % _STRIDE == 0 and pace.due:
                changes.note()
                await pace.turn()
        changes.note()
        if pace.due:
            await pace.turn()
    return Withdrawn(files, directories)
