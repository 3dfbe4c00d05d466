"""From an output base to its saved row, the checkpoint. Never fails a build: what cannot be saved is logged and kept on the base.

A checkpoint seals what changed, in slices between which everybody else runs; at the end of that it lets a new journal begin. Then
it syncs the blobs, so that a saved tree never names one that a power cut takes away, and writes objects and row in one transaction.
What the old journals say is in there, and they are removed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from outputd.builds.finalized import Finalized
from outputd.builds.journals import BROKEN, Journals
from outputd.builds.output_base import OutputBase
from outputd.builds.pace import Pace
from outputd.builds.state import SavedBase, State
from outputd.builds.unfinished import encode, unfinished_below
from outputd.drive.ingest import Ingest
from outputd.drive.loader import Loader
from outputd.errors import OutputdError
from outputd.store.base import LocalStore
from outputd.store.waiting import in_thread
from outputd.tree.merkle import Sealed, seal
from outputd.tree.node import Volume
from outputd.tree.records import encode_leftover
from outputd.tree.tree import Tree

_log = logging.getLogger(__name__)

_SETTLING: Final = 30.0
"""Seconds to wait for files that were just closed to become blobs. Those that take longer are saved as local files."""


class Saving:
    """Makes the checkpoints of one tree."""

    def __init__(
        self, tree: Tree, loader: Loader, ingest: Ingest, blobs: LocalStore, state: State, journals: Journals
    ) -> None:
        self._tree = tree
        self._loader = loader
        self._ingest = ingest
        self._blobs = blobs
        self._state = state
        self._journals = journals

    async def settle(self) -> None:
        """Wait until what was closed by now is in the store, but not for ever."""
        try:
            async with asyncio.timeout(_SETTLING):
                await self._ingest.settle()
        except TimeoutError:
            _log.warning("files closed lately are no blobs yet after %g s: they stay local files", _SETTLING)

    async def save(self, base: OutputBase) -> None:
        """Make a checkpoint, durably, unless the base is removed. Who changes the output path meanwhile is not kept waiting."""
        async with base.saving:
            if base.removed:
                return
            try:
                async with base.lock:
                    sealed = await self._sealed(base.volume)
                # No await from here on: what is written is one moment of the tree, and the new journal begins with it.
                changes = base.volume.changes
                finalized = None if base.finalized is None else base.finalized.copy()
                behind = self._let_new_journal_begin(base)
                assert base.journal is not None
                saved = _saved(base, sealed, base.journal.sequence)
                await self._write(base, saved, finalized)
            except OutputdError as error:
                base.save_error = str(error)
                _log.error("output base %s has no new checkpoint, only its journal: %s", base.id, error)
                return
            base.save_error = ""
            base.sealed = sealed
            base.saved_changes = changes
            base.saved_time = time.monotonic()
            self._journals.remove(behind)
            base.journals = [path for path in base.journals if path not in behind]

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

    def _let_new_journal_begin(self, base: OutputBase) -> list[str]:
        """The journals that are behind it.

        Raises Exhausted or Unavailable: then the one there is goes on, which has a reserve for changes that a full disk allows.
        """
        journal = base.journal
        assert journal is not None
        if base.removed:
            return []
        if journal.exists or journal.incomplete:
            after = BROKEN if journal.incomplete else journal.sequence
            following = self._journals.open(base.facts, after=after)
            following.create()
            journal.close()
            base.journals.append(journal.path)
            base.keep(following)
        else:
            journal.create()  # a build that runs is known from there only, once those behind are removed
        return list(base.journals)

    async def _write(self, base: OutputBase, saved: SavedBase, finalized: Finalized | None) -> None:
        await in_thread(self._blobs.flush)
        paths = None if finalized is None else await in_thread(finalized.encode)
        if not base.removed:  # else the row would come back after Clean has removed it
            await self._state.save(saved, paths)


def _saved(base: OutputBase, sealed: Sealed, journal: int) -> SavedBase:
    root = base.volume.root
    return SavedBase(
        base.id,
        base.volume.number,
        base.instance_name,
        base.volume.function,
        encode_leftover(b"", root, *sealed),
        base.created,
        base.last_build_id,
        base.last_build_time,
        encode([*unfinished_below(root), *base.unreclaimed]),
        journal,
    )
