"""How many blobs a store holds and how large they are, kept true while they come and go; never looks at the disk itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import NamedTuple


class Entry(NamedTuple):
    """What counts of one blob."""

    size: int
    local_only: bool


class Totals(NamedTuple):
    """Sums; all -1 while nobody counted."""

    blobs: int = -1
    blob_bytes: int = -1
    local_only_blobs: int = -1
    local_only_bytes: int = -1

    def plus(self, entry: Entry, sign: int) -> Totals:
        mine = sign * entry.local_only
        return Totals(
            self.blobs + sign,
            self.blob_bytes + sign * entry.size,
            self.local_only_blobs + mine,
            self.local_only_bytes + mine * entry.size,
        )


class _Walk:
    """A count under way."""

    __slots__ = ("changes", "passed", "totals")

    def __init__(self) -> None:
        self.totals = Totals(0, 0, 0, 0)
        """Of the directories that were passed, as they are now."""
        self.passed: set[str] = set()
        self.changes: dict[str, Entry | None] = {}
        """What became of blobs in the other directories since it began, by path."""


class Tally:
    """For any number of threads. Nothing is known until `count` was called once."""

    def __init__(self, lock: threading.RLock) -> None:
        """`lock` is held around each change of a blob's file and the `changed` that tells of it, or a walk between the two would
        count it twice."""
        self._lock = lock
        self._totals = Totals()
        self._walk: _Walk | None = None

    @property
    def totals(self) -> Totals:
        with self._lock:
            return self._totals

    def changed(self, path: str, before: Entry | None, after: Entry | None) -> None:
        """A blob came (`before` is None), went (`after` is None), or is another than it was."""
        with self._lock:
            if self._totals.blobs >= 0:
                self._totals = _moved(self._totals, before, after)
            walk = self._walk
            if walk is None:
                return
            if os.path.dirname(path) in walk.passed:
                walk.totals = _moved(walk.totals, before, after)
            else:
                walk.changes[path] = after

    def count(self, fans: Iterable[tuple[str, list[tuple[str, Entry]]]]) -> None:
        """Add up what a walk meets, directory by directory, and what changes meanwhile. Raises what the walk raises; then it is as
        if nobody had counted this time."""
        with self._lock:
            if self._walk is not None:
                return  # Somebody is at it.
            walk = self._walk = _Walk()
        try:
            for directory, found in fans:
                with self._lock:
                    # What has changed since is counted from its own list, whether the walk met it or not.
                    for path, entry in found:
                        if path not in walk.changes:
                            walk.totals = walk.totals.plus(entry, 1)
                        elif (changed := walk.changes.pop(path)) is not None:
                            walk.totals = walk.totals.plus(changed, 1)
                    walk.passed.add(directory)
            with self._lock:
                for changed in walk.changes.values():
                    if changed is not None:
                        walk.totals = walk.totals.plus(changed, 1)
                self._totals = walk.totals
        finally:
            with self._lock:
                self._walk = None


def _moved(totals: Totals, before: Entry | None, after: Entry | None) -> Totals:
    if before is not None:
        totals = totals.plus(before, -1)
    return totals if after is None else totals.plus(after, 1)
