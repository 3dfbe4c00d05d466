"""What an output path holds that nobody has any more: found out when a build starts, and taken away. Never asks about single files,
and never expands a directory that lacks nothing.

A client that is shown a file which nobody can read any more has no way to recover later in the build (protocols: invariant 3). To
ask also prolongs the life of everything else in the remote CAS (REv2, FindMissingBlobs).

What is asked for (docs/explanation/durability.md): everything whose lease is too old, and of the rest as many blobs as the budget
allows. If one of these is lost, the leases of all others are worth nothing: then everything is asked for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, NamedTuple

from outputd.builds.healing import Healing
from outputd.builds.kernel import Changes
from outputd.builds.leases import Lease, Leases, files_key
from outputd.builds.pace import Pace
from outputd.builds.survey import Collapsed, Survey, Unit
from outputd.digest import Digest
from outputd.drive.loader import Loader
from outputd.errors import Corrupt, NotFound, TimedOut
from outputd.store.base import BlobStore
from outputd.store.waiting import in_thread
from outputd.tree.node import Directory, blob_of

_log = logging.getLogger(__name__)

_STRIDE: Final = 256
"""Entries between two looks at the clock."""
_BLOBS_A_BATCH: Final = 10_000
"""Blobs from which on units are asked for: one call of FindMissingBlobs (store/remote/client.py)."""
_BATCHES: Final = 4
"""Batches under way at once while a build waits; how many calls there are at once is the connection's to say."""
_LOOKUPS_HERE: Final = 200
"""Lookups in the local store that are over before a thread has started."""


@dataclass(frozen=True, slots=True)
class LeaseOptions:
    """What the settings say of leases. All times in nanoseconds."""

    duration: int
    """outputs.lease_seconds: how long a lease is trusted; 0: not at all."""
    always_asked: int
    """outputs.always_asked: blobs that a starting build asks for although their leases are trusted."""
    patience: int
    """outputs.start_timeout: how long a starting build waits for the answers."""
    local_only: bool
    """There is no remote CAS."""


class Withdrawn(NamedTuple):
    """What was taken away."""

    files: int
    directories: int
    """Emptied, because the message that says what they hold is gone."""


class Checked(NamedTuple):
    """What came of asking for an output path."""

    lease: Lease | None
    """Of everything that is there; None when not everything was answered, or something is nowhere."""
    in_time: bool
    """Everything that had to be was asked for."""
    missing: int
    """Blobs and directory messages that are nowhere."""
    withdrawn: Withdrawn


class Presence:
    """Asks for output paths. Lives on the event loop."""

    def __init__(
        self,
        loader: Loader,
        blobs: BlobStore,
        leases: Leases,
        healing: Healing | None,
        options: LeaseOptions,
        *,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        """Without `healing` nothing is uploaded. `now` tells the time in nanoseconds since 1970."""
        self._loader = loader
        self._blobs = blobs
        self._leases = leases
        self._healing = healing
        self._options = options
        self._now = now

    async def withdraw_missing(self, root: Directory, changes: Changes) -> Checked:
        """Take away everything below `root` that cannot be read any more. Asks nobody when there is nothing to ask for.

        When the time is up, it is what was found until then. Raises Unavailable, TimedOut, Denied or Exhausted when the CAS does
        not answer; then nothing was changed.
        """
        began = self._now()
        patience = self._options.patience / 1e9
        survey = self._survey(root, began, began - self._options.duration)
        in_time = True
        try:
            async with asyncio.timeout(patience):
                await self._ask(survey, root, self._options.always_asked, _BATCHES)
                if survey.trusting and survey.losses:
                    # Where something was lost more may have been: only what was asked for just now is certain.
                    again = self._survey(root, began, began)
                    again.missing, again.answers = survey.missing, survey.answers
                    survey = again
                    await self._ask(survey, root, 0, _BATCHES)
        except TimeoutError:
            if not survey.answers:
                raise TimedOut(f"the CAS did not tell within {patience:g} s which blobs it holds") from None
            in_time = False
            _log.warning(
                "the CAS told of %d blobs within %g s: the build starts, the others are asked for while it runs",
                survey.answers,
                patience,
            )
        lease = await survey.conclude()
        await self._leases.flush()
        missing = len(survey.missing) + len(survey.gone)
        withdrawn = Withdrawn(0, 0)
        if missing:
            withdrawn = await _withdraw(root, survey, self._loader, changes, self._now())
        return Checked(lease if in_time else None, in_time, missing, withdrawn)

    async def prolong(self, root: Directory, trusted: int, pause: float) -> Checked:
        """Ask for everything below `root` that has no lease since `trusted` (nanoseconds since 1970), and change nothing.

        One batch after the other, with `pause` times as long between two as the last one took. Raises as `withdraw_missing`.
        """
        survey = self._survey(root, self._now(), trusted)
        try:
            await self._ask(survey, root, 0, 1, pause)
        finally:
            lease = await survey.conclude()
            await self._leases.flush()
        return Checked(lease, True, len(survey.missing) + len(survey.gone), Withdrawn(0, 0))

    def known(self, root: Directory) -> Lease | None:
        """What is known of everything below `root` without looking into it."""
        key = Collapsed.of(root).key
        return None if key is None else self._leases.get(root.volume.instance_name, [key]).get(key)

    def doubt(self, directory: Directory) -> None:
        """A blob of this directory is nowhere, whatever its lease says: it is asked for when the next build starts."""
        walk: Directory | None = directory
        keys: list[bytes] = []
        if directory.digest is not None:
            keys.append(files_key(directory.digest))
        while walk is not None and (key := Collapsed.of(walk).key) is not None:
            keys.append(key)
            walk = walk.parent
        self._leases.drop(directory.volume.instance_name, keys)

    # within

    def _survey(self, root: Directory, now: int, trusted: int) -> Survey:
        return Survey(root, self._loader, self._leases, now=now, trusted=trusted)

    async def _ask(
        self, survey: Survey, root: Directory, budget: int, at_once: int, pause: float = 0.0
    ) -> None:
        blobs = self._blobs.of_instance(root.volume.instance_name)
        slots = asyncio.Semaphore(at_once)

        async def answer(batch: list[Unit]) -> None:
            began = time.monotonic()
            await self._answer(survey, batch, blobs)
            if pause:
                await asyncio.sleep(pause * (time.monotonic() - began))
            slots.release()

        try:
            async with asyncio.TaskGroup() as batches, aclosing(survey.units(budget)) as units:
                batch: list[Unit] = []
                size = 0
                async for unit in units:
                    batch.append(unit)
                    size += len(unit.files)
                    if size >= _BLOBS_A_BATCH:
                        await slots.acquire()
                        batches.create_task(answer(batch))
                        batch, size = [], 0
                if batch:
                    await slots.acquire()
                    batches.create_task(answer(batch))
        except BaseExceptionGroup as failed:
            # The others were cancelled because of it, so there is one that came first.
            raise failed.exceptions[0] from failed.exceptions[0].__cause__

    async def _answer(self, survey: Survey, batch: list[Unit], blobs: BlobStore) -> None:
        digests: set[Digest] = set()
        for unit in batch:
            digests |= unit.digests()
        absent = await blobs.missing_remotely(digests)
        if len(absent) <= _LOOKUPS_HERE:
            missing, lost = self._sort(absent)
        else:
            missing, lost = await in_thread(self._sort, absent)
        survey.answered(batch, missing, lost)
        if self._healing is not None and lost and self._healing.offer(survey.instance_name, lost):
            survey.lost = True

    def _sort(self, absent: set[Digest]) -> tuple[set[Digest], set[Digest]]:
        """Of what the remote lacks: what is nowhere, and what it has lost and we hold. May run in a thread."""
        local = self._blobs.local
        missing = local.missing(absent)
        here = absent - missing
        return missing, set() if self._options.local_only else here - local.only_here(here)


async def _withdraw(root: Directory, survey: Survey, loader: Loader, changes: Changes, now: int) -> Withdrawn:
    lacking, missing = survey.lacking(), survey.missing
    gone = {place.what for place in survey.gone}
    pace = Pace()
    files = directories = 0
    stack = [root]
    while stack:
        directory = stack.pop()
        if directory.children is None:
            held = Collapsed.of(directory)
            if held not in lacking:
                continue
            if held not in gone:
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
