"""What a start finds: output bases from their saved rows, brought up to date from their journals. Never sees a client.

A row gives a collapsed root, and the rest comes when somebody looks. A journal of this boot is played back on that, so that after a
crash of the daemon everything is as it was, the running build included; one of an earlier boot counts for nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial

from outputd.builds.finalized import Finalized
from outputd.builds.journals import Chain, Journals
from outputd.builds.loading import Loading
from outputd.builds.output_base import OutputBase
from outputd.builds.replay import Replay
from outputd.builds.state import SavedBase, State
from outputd.builds.unfinished import Unfinished, decode, file_at, unfinished_below
from outputd.drive.content import Content
from outputd.drive.ingest import Ingest
from outputd.drive.loader import Loader
from outputd.drive.orphans import cut_off
from outputd.errors import Corrupt, OutputdError
from outputd.tree.merkle import Sealed
from outputd.tree.node import Directory, File, Local, Volume, first_ino
from outputd.tree.records import Reader
from outputd.tree.tree import Tree

_log = logging.getLogger(__name__)


class Restoring:
    """Done once, before anybody can see the tree."""

    def __init__(
        self,
        tree: Tree,
        loader: Loader,
        content: Content,
        ingest: Ingest,
        state: State,
        journals: Journals,
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
        self._journals = journals
        self._tracking = tracking
        self._now = now
        self.complete = True
        """Everything that there was has come back: else, what nobody seems to need may be wanted yet."""

    async def restore(
        self, first: Callable[[], Awaitable[Collection[int]]] | None = None
    ) -> list[OutputBase]:
        """Everything that there was; `first` as Builds.restore has it.

        Raises Corrupt or Unavailable when the state cannot be read at all.
        """
        rows = {saved.id: saved for saved in self._state.bases()}
        chains = self._journals.chains({saved.id: saved.journal for saved in rows.values()})
        numbers = [saved.number for saved in rows.values()] + [chain.number for chain in chains.values()]
        # Inode numbers that were handed out must not come again, so neither must the numbers of volumes.
        self._state.use_no_number_below(max(numbers, default=0) + 1)
        bases: list[OutputBase] = []
        self.complete = self._state.set_aside is None
        for base_id in sorted(rows.keys() | chains.keys()):
            try:
                bases.append(await self._restored(base_id, rows.get(base_id), chains.get(base_id)))
            except Corrupt as error:
                self.complete = False
                _log.error("output base %s cannot be restored and is left out: %s", base_id, error)
        other_keys = () if first is None else await first()
        if self.complete:
            # Else what lies there might be wanted by whoever repairs it.
            self._journals.sweep(chains.values())
            needed = {file.key for base in bases for file in base.unreclaimed}.union(other_keys)
            swept = await asyncio.to_thread(self._content.private.sweep, needed)
            if swept:
                _log.info("%d private files that no output path needs were deleted", swept)
        for base in bases:
            await self._reclaim(base)
        return bases

    async def _restored(self, base_id: str, saved: SavedBase | None, chain: Chain | None) -> OutputBase:
        if chain is not None and chain.facts["fresh"]:
            saved = None
        if saved is not None:
            base = self._from_row(saved)
        else:
            assert chain is not None
            volume = self._tree.add_volume(self._state.take_number(), os.fsencode(base_id), self._now())
            volume.root.ino = first_ino(chain.facts["number"])  # which the kernel may still know
            base = OutputBase(base_id, volume, "", chain.facts["created"], now=time.monotonic())
            base.finalized = Finalized() if self._tracking else None
        last = 0 if saved is None else saved.journal
        if chain is not None:
            try:
                await self._play_back(base, chain)
            except Corrupt:
                self._tree.remove_volume(base.volume, self._now())
                raise
            base.journals = list(chain.paths)
            last = chain.last
        base.keep(self._journals.open(base.facts, after=last))
        return base

    async def _play_back(self, base: OutputBase, chain: Chain) -> None:
        loading = Loading(self._loader)
        replay = Replay(self._tree, base.volume, loading)
        # What was unfinished at the checkpoint is met before a directory above it moves.
        unmet = [
            unfinished
            for unfinished in base.unreclaimed
            if isinstance(await loading.run(partial(file_at, base.volume.root, unfinished)), OutputdError)
        ]
        for path in chain.paths:
            await replay.run(self._journals.records(path))
        replayed = replay.replayed
        for file, key, digest in replayed.adopted:
            # Killed between the word and the deed: it is a local file still.
            if file.content == digest and os.path.lexists(self._content.private.path(Local(key))):
                self._tree.set_content(file, Local(key))
        base.unreclaimed = list(dict.fromkeys([*unfinished_below(base.volume.root), *unmet]))
        try:
            base.take_facts(replayed.facts)
        except (KeyError, ValueError, TypeError, AttributeError, OutputdError) as error:
            raise Corrupt(f"its journal says {replayed.facts!r:.300}: {error!r}") from error
        if base.finalized is not None:
            for entries in replayed.finalized:
                base.finalized.add_encoded(entries)
        _log.info(
            "output base %s: %d records of its journal were played back, %d left out%s",
            base.id,
            replayed.records,
            replayed.left_out,
            "" if base.build is None else f"; build {base.build.id} goes on",
        )

    def _from_row(self, saved: SavedBase) -> OutputBase:
        now = self._now()
        # Another number than before: inode numbers that were given after the last save must not come again.
        number = self._state.take_number()
        _, root = Reader(saved.root).leftover(Volume(number, now, writable=True))
        if not isinstance(root, Directory) or root.digest is None:
            raise Corrupt("its saved root is no sealed directory")
        unreclaimed = decode(saved.unfinished)
        finalized = self._state.finalized(saved.id) if self._tracking else None
        tracked = None if finalized is None else Finalized.decode(finalized)
        volume = self._tree.add_volume(number, os.fsencode(saved.id), now)
        volume.function = saved.function
        _take_over(volume.root, root)
        base = OutputBase(saved.id, volume, saved.instance_name, saved.created, now=time.monotonic())
        base.last_build_id = saved.last_build_id
        base.last_build_time = saved.last_build_time
        base.finalized = tracked
        base.unreclaimed = unreclaimed
        base.saved_changes = volume.changes
        if root.record is not None:
            base.sealed = Sealed(root.digest, root.record)
        return base

    async def _reclaim(self, base: OutputBase) -> None:
        """Hand the local files to ingest, with the size they have now."""
        loading = Loading(self._loader)
        waiting, base.unreclaimed = base.unreclaimed, []
        for unfinished in waiting:
            found = await loading.run(partial(file_at, base.volume.root, unfinished))
            if isinstance(found, OutputdError):
                base.unreclaimed.append(unfinished)
                _log.error("output base %s: %s cannot be looked at: %s", base.id, unfinished, found)
            elif found is not None and not await self._reclaim_file(base, unfinished, *found):
                base.unreclaimed.append(unfinished)

    async def _reclaim_file(
        self, base: OutputBase, unfinished: Unfinished, directory: Directory, file: File
    ) -> bool:
        """False when the disk does not let us."""
        assert isinstance(file.content, Local)
        try:
            status = os.stat(self._content.private.path(file.content))
        except FileNotFoundError:
            # Only without the journal that said which blob it became.
            _log.error("output base %s: %s is lost: it was still open when it was saved", base.id, unfinished)
            self._tree.withdraw(directory, unfinished.path[-1], self._now())
            return True
        except OSError as error:
            _log.error("output base %s: %s: %s", base.id, unfinished, error)
            return False
        try:
            if not self._content.is_open(file):  # else by handles that were taken over, of which we know
                await cut_off(file, self._tree, self._content)
        except OutputdError as error:
            file.content.writers += 1  # it must not become a blob: there is somebody who can change it
            _log.error("output base %s: %s: %s", base.id, unfinished, error)
            return False
        if file.content.key == unfinished.key:
            file.content.size = status.st_size
        if status.st_mtime_ns > file.ctime:  # written to after the last word about it
            file.mtime = file.ctime = status.st_mtime_ns
        self._tree.written(file)
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
