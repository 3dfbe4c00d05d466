"""Which blobs of a store go when room is wanted, and their going; knows neither trees nor builds, only who is marked.

Without an index: one walk sorts every blob into a kind by its inode and the marks and notes sizes and last use, 24 bytes a blob;
from that a plan is made, a time of last use for each kind; a second walk removes what is older. All calls block, for threads.
"""

from __future__ import annotations

import enum
import math
import time
from array import array
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from outputd.store.disk_store import DiskStore
from outputd.store.layout import Found
from outputd.store.limits import Excess
from outputd.store.partials import Part

_MARGIN: Final = 0.1
"""Seconds that a ctime may lie before the clock's time of the call (the kernel's coarse clock, generously)."""
_RELIEF: Final = 64 << 20
"""Bytes that are freed at least when the disk is full."""


class Kind(enum.IntEnum):
    """What a blob is to us. The first three may go, in this order."""

    GARBAGE = 0
    """Only here, and nothing names it any more."""
    CACHED = 1
    """The remote has it too."""
    RESULTS = 2
    """Only here, and only action results name it: an action whose result is gone is run again."""
    KEPT = 3
    """Only here, and an output path needs it, or it came so lately that its client has not said yet what it is for."""
    HELD = 4
    """Open or pinned."""


_MAY_GO: Final = (Kind.GARBAGE, Kind.CACHED, Kind.RESULTS)


@dataclass(frozen=True, slots=True)
class Judge:
    """Tells a blob's kind. Made when all that is reachable has been marked."""

    began: float
    """Seconds since 1970, from before the marking: what was referenced or used since then is not judged by the marks."""
    grace: float
    """Seconds after its last use before an unmarked blob that is only here counts as garbage."""
    trees: Container[bytes] | None
    """What output paths need; None when that could not be found out: then everything that is only here is kept."""
    results: Container[bytes] = ()
    """What action results name."""
    held: Container[bytes] = ()

    def kind(self, found: Found) -> Kind:
        digest = found.digest
        if digest in self.held:
            return Kind.HELD
        if not found.local_only:
            return Kind.CACHED
        if self.trees is None or digest in self.trees or found.status.st_atime > self.began - self.grace:
            return Kind.KEPT
        return Kind.RESULTS if digest in self.results else Kind.GARBAGE

    def kind_of_part(self, part: Part, store: DiskStore) -> Kind:
        """The same for a blob of which some bytes are here: those have come from the remote."""
        if part.open or part.digest in self.held:
            return Kind.HELD
        return Kind.GARBAGE if store.is_here(part.digest) else Kind.CACHED


@dataclass(slots=True)
class Amounts:
    """So many blobs, and the room they take on the disk."""

    blobs: int = 0
    bytes: int = 0

    def add(self, bytes_: int) -> None:
        self.blobs += 1
        self.bytes += bytes_


@dataclass(slots=True)
class Survey:
    """What one walk has found, by kind, blobs of which some bytes are here among them. The arrays have the same order."""

    amounts: dict[Kind, Amounts] = field(default_factory=lambda: {kind: Amounts() for kind in Kind})
    uses: dict[Kind, array[float]] = field(default_factory=lambda: {kind: array("d") for kind in _MAY_GO})
    """Times of last use, in seconds since 1970."""
    rooms: dict[Kind, array[int]] = field(default_factory=lambda: {kind: array("q") for kind in _MAY_GO})
    """Bytes on the disk."""
    sizes: dict[Kind, array[int]] = field(default_factory=lambda: {kind: array("q") for kind in _MAY_GO})

    def add(self, kind: Kind, used: float, room: int, size: int) -> None:
        self.amounts[kind].add(room)
        if kind in self.uses:
            self.uses[kind].append(used)
            self.rooms[kind].append(room)
            self.sizes[kind].append(size)


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to go, of what may."""

    excess: Excess
    """At least so much, garbage first, then by last use."""
    garbage: bool = False
    """All garbage."""
    cached_before: float = -math.inf
    """And what the remote has and nobody used since this time, in seconds since 1970."""


class Bound(NamedTuple):
    """Which blobs of a kind go."""

    used: float
    """The latest time of last use with which one goes; before, all do."""
    ties: int
    """So many of that very time: a batch of small blobs has one and the same."""


Plan = dict[Kind, Bound]
"""A kind that is not in it stays."""


def survey(store: DiskStore, judge: Judge, rest: Callable[[float], object] | None = None) -> Survey:
    """Look at every blob. Raises Unavailable."""
    result = Survey()
    for fan in store.walk(rest):
        for found in fan:
            result.add(judge.kind(found), found.status.st_atime, found.room, found.digest.size)
    for part in store.partials.list():
        result.add(judge.kind_of_part(part, store), part.used, part.room, part.room)
    return result


def plan(surveyed: Survey, goal: Goal) -> tuple[Plan, dict[Kind, Amounts]]:
    """What has to go for the goal, as far as it may, and how much that is."""
    going: dict[Kind, Amounts] = {kind: Amounts() for kind in _MAY_GO}
    bounds: Plan = {}
    room, size, files = goal.excess
    for kind in _MAY_GO:
        uses, rooms, sizes = surveyed.uses[kind], surveyed.rooms[kind], surveyed.sizes[kind]
        always = -math.inf
        if kind is Kind.GARBAGE and goal.garbage:
            always = math.inf
        elif kind is Kind.CACHED:
            always = goal.cached_before
        used, ties = -math.inf, 0
        for index in sorted(range(len(uses)), key=uses.__getitem__):
            if uses[index] > always and room <= 0 and size <= 0 and files <= 0:
                break
            ties = ties + 1 if uses[index] == used else 1
            used = uses[index]
            going[kind].add(rooms[index])
            room -= rooms[index]
            size -= sizes[index]
            files -= 1
        if ties:
            bounds[kind] = Bound(used, ties)
    return bounds, going


def remove(
    store: DiskStore,
    judge: Judge,
    bounds: Plan,
    rest: Callable[[float], object] | None = None,
    progress: Callable[[Amounts], object] | None = None,
) -> dict[Kind, Amounts]:
    """Carry out a plan; what has gone. Raises Unavailable."""
    gone: dict[Kind, Amounts] = {kind: Amounts() for kind in _MAY_GO}
    whole = Amounts()
    if not bounds:
        return gone
    ties = {kind: bound.ties for kind, bound in bounds.items()}

    def goes(kind: Kind, used: float) -> bool:
        return kind in bounds and (used < bounds[kind].used or (used == bounds[kind].used and ties[kind] > 0))

    def went(kind: Kind, used: float, room: int) -> None:
        ties[kind] -= used == bounds[kind].used
        gone[kind].add(room)
        whole.add(room)

    for part in store.partials.list():
        kind = judge.kind_of_part(part, store)
        if goes(kind, part.used) and (room := store.partials.remove(part.digest, part.used)) is not None:
            went(kind, part.used, room)
    for fan in store.walk(rest):
        for found in fan:
            kind = judge.kind(found)
            used = found.status.st_atime
            # What can be fetched again may go whatever happens; the rest, if nobody has asked for it since.
            if goes(kind, used) and store.evict(
                found, math.inf if kind is Kind.CACHED else judge.began - _MARGIN
            ):
                went(kind, used, found.room)
        if progress is not None:
            progress(whole)
    return gone


def relieve(store: DiskStore, held: Container[bytes], wanted: int, seconds: float) -> int:
    """The disk is full: free at once what the remote has too, the least recently used as far as can be told in `seconds`.

    Bytes freed; 0 when there was nothing. Raises Unavailable.
    """
    wanted = max(wanted, _RELIEF)
    now = time.time()
    end = time.monotonic() + seconds
    freed = 0
    # Not the least recently used of all, that would take a look at every blob: those of an age, wherever they are met first.
    for age in (24 * 3600.0, 3600.0, 60.0, 0.0):
        for part in store.partials.list():
            if part.used <= now - age and not part.open and part.digest not in held:
                freed += store.partials.remove(part.digest) or 0
        for fan in store.walk(shuffled=True):
            for found in fan:
                if found.local_only or found.digest in held or found.status.st_atime > now - age:
                    continue
                if store.evict(found, math.inf):
                    freed += found.room
            if freed >= wanted or time.monotonic() > end:
                return freed
    return freed
