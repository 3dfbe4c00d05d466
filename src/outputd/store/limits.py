"""How much room a store may take, and how much of what it has is to go when it takes more; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from outputd.store.base import Usage

_DEFAULT_FREE_PERCENT: Final = 10
_DEFAULT_FREE_BYTES: Final = 10 << 30
_FREE_FILES_PERCENT: Final = 5
_LOW: Final = 0.9
"""Where no low mark is set: part of the high mark."""
_SLACK: Final = 1.25
"""So many times the room to be kept is made free, so that the next blob is not over the mark again."""


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes, or a part of the file system."""

    bytes: int = 0
    percent: float = 0.0

    def of(self, total: int) -> int:
        return self.bytes + int(total * self.percent / 100)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the settings say of the store's size; None is "not set"."""

    high_mark: Amount | None = None
    """Of the blobs' sizes; of those that are here in part, what is here counts."""
    low_mark: Amount | None = None
    max_blobs: int | None = None
    keep_free: Amount | None = None
    """Room to be left on the file system; not set: a tenth of it, but at most 10 GiB."""

    @property
    def counting(self) -> bool:
        """Whether the blobs have to be counted to tell."""
        return self.high_mark is not None or self.max_blobs is not None

    def free_goal(self, total: int) -> int:
        """Bytes to be left free of a file system of `total` bytes."""
        if self.keep_free is not None:
            return self.keep_free.of(total)
        return min(total * _DEFAULT_FREE_PERCENT // 100, _DEFAULT_FREE_BYTES)


class Excess(NamedTuple):
    """What is to go; nothing while no mark is passed."""

    room: int = 0
    """Bytes on the disk."""
    sizes: int = 0
    """Bytes of the blobs' sizes; small blobs take more room than that."""
    files: int = 0

    def __bool__(self) -> bool:
        return self.room > 0 or self.sizes > 0 or self.files > 0


def excess(limits: Limits, usage: Usage) -> Excess:
    """By how much a store is over its marks, counted down to the low ones."""
    room = sizes = files = 0
    known = usage.blobs >= 0
    blob_bytes, blobs = usage.blob_bytes + usage.partial_bytes, usage.blobs + usage.partial_blobs
    if known and limits.high_mark is not None and blob_bytes > (high := limits.high_mark.of(usage.total)):
        low = int(high * _LOW) if limits.low_mark is None else min(limits.low_mark.of(usage.total), high)
        sizes = blob_bytes - low
    free = limits.free_goal(usage.total)
    if usage.available < free:
        room = int(free * _SLACK) - usage.available
    if known and limits.max_blobs is not None and blobs > limits.max_blobs:
        files = blobs - int(limits.max_blobs * _LOW)
    # Some file systems make inodes as they need them, and tell 0 of 0 (btrfs).
    free_files = usage.files * _FREE_FILES_PERCENT // 100
    if usage.files_free < free_files:
        files = max(files, int(free_files * _SLACK) - usage.files_free)
    return Excess(room, sizes, files)
