"""From an output base to its saved row and back. Never fails a build: what cannot be saved is logged and kept on the base.

Saving seals what changed, in slices between which everybody else runs, and writes objects and row in one transaction. Restoring
decodes one row for each output base: its root comes back collapsed, and the rest when somebody looks.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Final

from outputd.builds.finalized import Finalized
from outputd.builds.loading import Loading
from outputd.builds.output_base import OutputBase
from outputd.builds.pace import Pace
from outputd.builds.state import SavedBase, State
from outputd.builds.unfinished import Unfinished, decode, encode, file_at, unfinished_below
from outputd.drive.content import Content
from outputd.drive.ingest import Ingest
from outputd.drive.loader import Loader
from outputd.errors import Corrupt, OutputdError
from outputd.tree.merkle import Sealed, seal
from outputd.tree.node import Directory, File, Local, Volume
from outputd.tree.records import Reader, encode_leftover
from outputd.tree.tree import Tree

_log = logging.getLogger(__name__)

_SETTLING: Final = 30.0
"""Seconds to wait for files that were just closed to become blobs. Those that take longer are saved as local files."""


class Saving:
    """Saves and restores the output bases of one tree."""

    def __init__(
        self,
        tree: Tree,
        loader: Loader,
        content: Content,
        ingest: Ingest,
        state: State,
        *,
        tracking: bool,
        now: Callable[[], int],
    ) -> None:
        """`tracking`: whether finalized paths are wanted."""
        self._tree = tree
        self._loader = loader
        self._content = content
        self._ingest = ingest
        self._state = state
        self._tracking = tracking
        self._now = now

    async def settle(self) -> None:
        """Wait until what was closed by now is in the store, but not for ever."""
        try:
            async with asyncio.timeout(_SETTLING):
                await self._ingest.settle()
        except TimeoutError:
            _log.warning("files closed lately are no blobs yet after %g s: they stay local files", _SETTLING)

    async def save(self, base: OutputBase) -> None:
        """Save an output base, whose lock the caller holds, durably."""
        volume = base.volume
        finalized = None if base.finalized is None else await asyncio.to_thread(base.finalized.encode)
        try:
            digest, record = await self._sealed(volume)
        except OutputdError as error:
            self._not_saved(base, error)
            return
        if base.removed:
            return
        # No await from here to `State.save`: what is written is one moment of the tree.
        changes = volume.changes
        saved = SavedBase(
            base.id,
            volume.number,
            base.instance_name,
            volume.function,
            encode_leftover(b"", volume.root, digest, record),
            base.created,
            base.last_build_id,
            base.last_build_time,
            encode([*unfinished_below(volume.root), *base.unreclaimed]),
        )
        try:
            await self._state.save(saved, finalized)
        except OutputdError as error:
            self._not_saved(base, error)
        else:
            base.save_error = ""
            base.saved_changes = changes

    async def restore(self) -> list[OutputBase]:
        """Everything that was saved. Raises Corrupt or Unavailable when the state cannot be read at all."""
        bases: list[OutputBase] = []
        complete = self._state.set_aside is None
        for saved in self._state.bases():
            try:
                bases.append(self._restored(saved))
            except Corrupt as error:
                complete = False
                _log.error("output base %s cannot be restored and is left out: %s", saved.id, error)
        if complete:
            # What lies there for a base that is left out might be wanted by whoever repairs it.
            needed = {file.key for base in bases for file in base.unreclaimed}
            swept = await asyncio.to_thread(self._content.sweep, needed)
            if swept:
                _log.info("%d private files that no output path needs were deleted", swept)
        unfinished = [base for base in bases if base.unreclaimed]
        for base in unfinished:
            await self._reclaim(base)
        if unfinished:
            # Once they are blobs their private files are gone: that must not be news to the next restart.
            await self.settle()
            for base in unfinished:
                await self.save(base)
        return bases

    async def _sealed(self, volume: Volume) -> Sealed:
        """What names the state of an output path at the moment this returns; all of it is in the state's sink."""
        while (directory := self._tree.lacking(volume)) is not None:
            await self._loader.load(directory)
        pace = Pace()
        for step in seal(volume.root, volume.function, self._state.sink):
            if isinstance(step, Sealed):
                return step
            if pace.due:
                await pace.turn()
        raise AssertionError("sealing ends with its result")

    def _not_saved(self, base: OutputBase, error: OutputdError) -> None:
        base.save_error = str(error)
        _log.error(
            "output base %s is not saved, a restart would find it as it was before: %s", base.id, error
        )

    def _restored(self, saved: SavedBase) -> OutputBase:
        now = self._now()
        # Another number than before: inode numbers that were given after the last save must not come again.
        number = self._state.take_number()
        _, root = Reader(saved.root).leftover(Volume(number, now, writable=True))
        if not isinstance(root, Directory) or root.digest is None:
            raise Corrupt("its saved root is no sealed directory")
        unreclaimed = decode(saved.unfinished)
        finalized = self._state.finalized(saved.id) if self._tracking else None
        tracked = None if finalized is None else Finalized.decode(finalized)
        volume = self._tree.add_volume(number, saved.id.encode(), now)
        volume.function = saved.function
        _take_over(volume.root, root)
        base = OutputBase(saved.id, volume, saved.instance_name, saved.created)
        base.last_build_id = saved.last_build_id
        base.last_build_time = saved.last_build_time
        base.finalized = tracked
        base.unreclaimed = unreclaimed
        base.saved_changes = volume.changes
        return base

    async def _reclaim(self, base: OutputBase) -> None:
        """Hand the local files that were saved before they were blobs to ingest, with the size they have now."""
        loading = Loading(self._loader)
        waiting, base.unreclaimed = base.unreclaimed, []
        for unfinished in waiting:
            found = await loading.run(partial(file_at, base.volume.root, unfinished))
            if isinstance(found, OutputdError):
                base.unreclaimed.append(unfinished)
                _log.error("output base %s: %s cannot be looked at: %s", base.id, unfinished, found)
            elif found is not None and not self._reclaim_file(base, unfinished, *found):
                base.unreclaimed.append(unfinished)

    def _reclaim_file(
        self, base: OutputBase, unfinished: Unfinished, directory: Directory, file: File
    ) -> bool:
        """False when the disk does not let us look."""
        assert isinstance(file.content, Local)
        try:
            file.content.size = os.stat(self._content.private_path(file.content)).st_size
        except FileNotFoundError:
            # It became a blob after the last save, and nobody knows any more which one.
            _log.error("output base %s: %s is lost: it was still open when it was saved", base.id, unfinished)
            self._tree.withdraw(directory, unfinished.path[-1], self._now())
            return True
        except OSError as error:
            _log.error("output base %s: %s: %s", base.id, unfinished, error)
            return False
        self._ingest.closed(file)
        return True


def _take_over(root: Directory, saved: Directory) -> None:
    """Make the root of a new volume what was saved: collapsed, with its attributes."""
    root.children = None
    root.digest = saved.digest
    root.record = saved.record
    root.ino = saved.ino
    root.mode = saved.mode
    root.mtime = saved.mtime
    root.ctime = saved.ctime
    root.extra = saved.extra
