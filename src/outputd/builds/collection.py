"""Keeps the disk bounded: watches the store's marks, has evicted what may go, drops what the state database needs no more.

One task does all of it, one thing at a time; what looks at many files runs in a thread of its own. Nothing goes that an output path
needs and nobody else has: what is marked as needed is found by reachable.py, before anything is removed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Final, ParamSpec, Protocol, TypeVar

from outputd.builds.builds import Builds
from outputd.builds.reachable import Reachable
from outputd.builds.state import State
from outputd.builds.workspaces import Candidate, Stale, stale
from outputd.digest import Digest
from outputd.errors import Corrupt, OutputdError
from outputd.store.disk_store import DiskStore
from outputd.store.eviction import Amounts, Goal, Judge, Kind, plan, relieve, remove, survey
from outputd.store.limits import Limits, excess
from outputd.store.marks import Marks
from outputd.tree.node import Directory, Volume
from outputd.tree.records import Reader

_log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")

_EVERY: Final = 15.0
"""Seconds between two looks at the room that is left, when nothing arrives."""
_FLUSH_EVERY: Final = 60.0
"""Seconds between two syncs, when something arrives: so much has to be hashed after a power cut."""
_SWEEP_EVERY: Final = 3600.0
"""Seconds between two sweeps of the state database."""
_NOTHING_TO_GO: Final = 300.0
"""Seconds to wait after nothing, or too little, could go: what is kept now will be kept for a while."""
_URGENT: Final = 30.0
"""Seconds for which a writer waits for room."""
_ON_THE_LOOP: Final = 0.3
"""The same for one whom the event loop waits for."""
_RELIEF: Final = 64 << 20
"""Bytes that are to go when a writer waits for room."""


class Results(Protocol):
    """What else names blobs: the action cache, where the local store is the whole CAS."""

    async def mark(self, marks: Marks, is_here: Callable[[Digest], bool]) -> None:
        """Mark what can be reached from it, and drop what is of no use any more because blobs are not here."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants to go beyond what the limits ask for."""

    bytes: int = 0
    """So much at least."""
    garbage: bool = False
    """All that is only here and nobody needs."""
    unused_since: float | None = None
    """Blobs that the remote has too and nobody used since, in seconds since 1970; and output paths that no build used since."""
    max_bytes: int | None = None
    """So much as to leave at most these bytes of blobs."""
    output_paths: bool = False
    """Output paths whose workspace is gone, and with `unused_since` those."""


@dataclass(slots=True)
class Report:
    """What was found, and what has gone, or would go."""

    found: dict[Kind, Amounts] = field(default_factory=dict)
    going: dict[Kind, Amounts] = field(default_factory=dict)
    stale: list[Stale] = field(default_factory=list)
    dropped: int = 0
    """Messages and records of the state database."""


class Collection:
    """For one event loop, on which it must be made."""

    def __init__(
        self,
        store: DiskStore,
        builds: Builds,
        state: State,
        limits: Limits,
        results: Results | None,
        held: Callable[[], Container[Digest]],
    ) -> None:
        """`held` tells the blobs that must stay whatever they are, because somebody has them open; it is called from any thread."""
        self._store = store
        self._builds = builds
        self._state = state
        self._limits = limits
        self._results = results
        self._held = held
        self._loop = asyncio.get_running_loop()
        self._thread_of_loop = threading.get_ident()
        # Not the loop's own threads: all of these may be waiting for the room that this one makes.
        self._executor = ThreadPoolExecutor(1, "outputd-collection")
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._urgent: list[Future[bool]] = []
        """Writers that wait for room."""
        self._not_before = -math.inf
        self._flushed = self._swept = time.monotonic()
        self._cleans_swept = builds.cleans
        store.relief.watch(lambda: self._loop.call_soon_threadsafe(self._wake.set))
        store.relief.offer(self._relieve)

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            while True:
                try:
                    async with asyncio.timeout(_EVERY):
                        await self._wake.wait()
                except TimeoutError:
                    pass  # Local files are written without our being told: look from time to time.
                self._wake.clear()
                try:
                    await self._tend()
                except OutputdError as error:
                    _log.warning("the store could not be tended: %s", error)
        finally:
            for waiting in self._urgent:
                waiting.set_result(False)
            self._urgent.clear()
            self._executor.shutdown(wait=False)

    async def collect(
        self, wish: Wish, *, dry_run: bool, progress: Callable[[str, Amounts], object] | None = None
    ) -> Report:
        """Have go what the limits and a wish ask for, or with `dry_run` say what would. `progress` is told of the steps, from any
        thread. Raises Unavailable or Exhausted.
        """

        def tell(step: str, amounts: Amounts) -> None:
            if progress is not None:
                progress(step, amounts)

        async with self._turn:
            report = Report()
            since = None if wish.unused_since is None else int(wish.unused_since * 1e9)
            if wish.output_paths:
                candidates = Candidate.of(self._builds.bases)
                report.stale = await self._in_thread(stale, candidates, since)
                if not dry_run:
                    await self._clean(report.stale)
            tell("marking", Amounts())
            leaving = {base.id for base in report.stale} if dry_run else set()
            try:
                judge, marks = await self._judge(sweeping=not dry_run and wish.garbage, leaving=leaving)
                tell("looking", Amounts())
                surveyed = await self._in_thread(survey, self._store, judge, _rest)
                report.found = surveyed.amounts
                held = sum(amounts.bytes for amounts in surveyed.amounts.values())
                over = excess(self._limits, self._store.usage())
                surplus = 0 if wish.max_bytes is None else held - wish.max_bytes
                over = over._replace(room=max(over.room, surplus, wish.bytes))
                cached_before = -math.inf if wish.unused_since is None else wish.unused_since
                goal = Goal(over, wish.garbage, cached_before)
                bounds, report.going = plan(surveyed, goal)
                if dry_run:
                    return report
                report.going = await self._in_thread(
                    remove, self._store, judge, bounds, _rest, lambda gone: tell("removing", gone)
                )
                if wish.garbage:
                    report.dropped = await self._sweep(marks)
            finally:
                self._state.end_sweep()
        return report

    # within

    async def _tend(self) -> None:
        now = time.monotonic()
        if now - self._flushed >= _FLUSH_EVERY:
            self._flushed = now
            await self._in_thread(self._store.flush)
        urgent, self._urgent = self._urgent, []
        freed = 0
        try:
            if self._limits.counting and self._store.usage().blobs < 0:
                await self._in_thread(self._store.count)
            over = excess(self._limits, self._store.usage())
            if urgent or (over and now >= self._not_before):
                report = await self.collect(Wish(bytes=_RELIEF if urgent else 0), dry_run=False)
                freed = sum(amounts.bytes for amounts in report.going.values())
                if over:
                    self._log(report, freed)
        finally:
            for waiting in urgent:
                waiting.set_result(freed > 0)
        if self._builds.cleans != self._cleans_swept or now - self._swept >= _SWEEP_EVERY:
            async with self._turn:
                try:
                    _, marks = await self._judge(sweeping=True, leaving=set())
                    await self._sweep(marks)
                finally:
                    self._state.end_sweep()

    def _log(self, report: Report, freed: int) -> None:
        blobs = sum(amounts.blobs for amounts in report.going.values())
        _log.info("the store was over its marks: %d blobs went, which took %d bytes", blobs, freed)
        left = sum(report.found[kind].blobs - amounts.blobs for kind, amounts in report.going.items())
        if left <= 0 and excess(self._limits, self._store.usage()):
            self._not_before = time.monotonic() + _NOTHING_TO_GO
            kept = report.found[Kind.KEPT]
            _log.warning(
                "the store stays over its marks: nothing that may go is left; %d bytes in %d blobs are only here, and output "
                "paths need them or they came lately",
                kept.bytes,
                kept.blobs,
            )

    async def _judge(self, *, sweeping: bool, leaving: set[str]) -> tuple[Judge, Marks | None]:
        """Mark all that is needed, but for what output bases `leaving` alone need; the marks, and who judges by them. With
        `sweeping`, what the state database is asked for from here on stays there."""
        began = time.time()
        if sweeping:
            self._state.begin_sweep()
        results = Marks()
        if self._results is not None:
            await self._results.mark(results, self._store.is_here)
        marks = await self._mark_trees(leaving)
        trees = marks
        if others := self._store.others():
            trees = None
            _log.warning(
                "what is only here is kept, for the cache directory also holds what belongs to the state %s; remove what is not "
                "needed any more",
                ", ".join(others),
            )
        return Judge(began, self._store.grace, trees, results, self._held()), marks

    async def _mark_trees(self, leaving: set[str]) -> Marks | None:
        """None when a part of what is needed cannot be known."""
        if not self._builds.restored:
            return None
        # What a journal names on its way from the last checkpoint to now is needed by whoever plays it back, though no tree
        # holds it any more. With checkpoints made now, all that journals name is either marked or was brought since.
        if not await self._builds.checkpoints.now():
            _log.warning("nothing goes that is only here: there are output paths whose checkpoint has failed")
            return None
        reachable = Reachable(self._state, self._store)
        try:
            saved = [_saved_root(base.root) for base in self._state.bases() if base.id not in leaving]
            await reachable.walk(saved)
            for finishing in (False, True):
                roots = [base.volume.root for base in self._builds.live() if base.id not in leaving]
                if finishing:
                    reachable.finish(roots)
                else:
                    await reachable.walk(roots)
                    await reachable.walk(roots)  # what changed during the first, so that the last is short
        except Corrupt as error:
            _log.warning(
                "what output paths need cannot be found out, nothing goes that is only here: %s", error
            )
            return None
        return reachable.marks

    async def _clean(self, leaving: list[Stale]) -> None:
        for base in leaving:
            if all(known.id != base.id or known.build is None for known in self._builds.bases):
                _log.info("output base %s is cleaned: %s", base.id, base.reason)
                await self._builds.clean(base.id)

    async def _sweep(self, marks: Marks | None) -> int:
        self._swept, self._cleans_swept = time.monotonic(), self._builds.cleans
        if marks is None:
            return 0
        dropped = await self._state.sweep(marks)
        if dropped:
            _log.info("%d messages and records that no output path needs were dropped", dropped)
        return dropped

    def _relieve(self, wanted: int) -> bool:
        """A writer met a full disk. Called in its thread, which may be the loop's."""
        on_loop = threading.get_ident() == self._thread_of_loop
        try:
            if relieve(self._store, self._held(), wanted, _ON_THE_LOOP if on_loop else _URGENT):
                self._loop.call_soon_threadsafe(self._wake.set)
                return True
        except OutputdError as error:
            _log.warning("the store could not be relieved: %s", error)
        waiting: Future[bool] = Future()
        self._loop.call_soon_threadsafe(self._ask, waiting)
        if on_loop:
            return False
        try:
            return waiting.result(_URGENT)
        except FutureTimeoutError:
            return False

    def _ask(self, waiting: Future[bool]) -> None:
        self._urgent.append(waiting)
        self._wake.set()

    async def _in_thread(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        return await self._loop.run_in_executor(self._executor, lambda: work(*arguments, **named))


def _rest(worked: float) -> None:
    """As long as the work took: reading thousands of inodes in a row would keep others from the interpreter and the disk."""
    time.sleep(min(worked, 0.05))


def _saved_root(root: bytes) -> Directory:
    """The root of a saved output path. Raises Corrupt."""
    _, node = Reader(root).leftover(Volume(0, 0, writable=False))
    if not isinstance(node, Directory):
        raise Corrupt("a saved root is no directory")
    return node
