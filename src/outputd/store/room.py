"""A disk without room: which errors say so, who can free some, and the words that name who holds it; frees nothing itself."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from typing import Final

from outputd.store.tally import Totals

_log = logging.getLogger(__name__)

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_TRY_AGAIN: Final = 1.0
"""Seconds for which a failure to free anything answers all who ask."""
_SILENCE: Final = 60.0
"""Seconds between two complaints about the same full disk."""


def is_full(error: OSError) -> bool:
    """Whether freeing something could help."""
    return error.errno in _NO_ROOM


class Relief:
    """Tells whoever tends the store that it grows, and asks him for room when the disk is full. For any number of threads."""

    def __init__(self, step: int) -> None:
        """`step`: bytes of growth of which watchers are told."""
        self._step = step
        self._grown = 0
        self._watchers: list[Callable[[], object]] = []
        self._offers: list[Callable[[int], bool]] = []
        self._failed = -_TRY_AGAIN
        self._complained = -_SILENCE

    def watch(self, grown: Callable[[], object]) -> None:
        """`grown` is called from any thread."""
        self._watchers.append(grown)

    def offer(self, free: Callable[[int], bool]) -> None:
        """`free` is called with the bytes that are wanted, from any thread, and says whether it freed anything."""
        self._offers.append(free)

    def grew(self, size: int) -> None:
        """A blob came. Two threads at once may lose one's size: it is only when to look that depends on it."""
        self._grown += size
        if self._grown >= self._step:
            self._grown = 0
            for grown in self._watchers:
                grown()

    def ask(self, size: int, who: Callable[[], str]) -> bool:
        """Whether it is worth trying once more; `who` says, for the log, who holds the room."""
        now = time.monotonic()
        if now - self._failed < _TRY_AGAIN:
            return False
        if any(free(size) for free in self._offers):
            return True
        self._failed = time.monotonic()
        if now - self._complained > _SILENCE:
            self._complained = now
            _log.error("the disk is full, and nothing that may go is left: %s", who())
        return False


def who_holds_it(root: str, private: str, totals: Totals, partial: int) -> str:
    """How the room of a full file system is taken, for an error message: figures in bytes, and what to run. `partial`: of blobs
    that are here in part."""
    try:
        room = os.statvfs(root)
    except OSError:
        return "how much room is left is not known; see what `outputd gc --dry-run` finds"
    left = f"{room.f_bavail * room.f_frsize} bytes and {room.f_favail} files are left on the file system of {root}"
    held = _private_bytes(private)
    used = (room.f_blocks - room.f_bfree) * room.f_frsize
    if totals.blobs < 0:
        own = f"open local files hold {held} bytes, the blobs of the store are not counted yet"
    else:
        others = max(0, used - totals.blob_bytes - partial - held)
        own = (
            f"the store holds {totals.blob_bytes - totals.local_only_bytes + partial} bytes that can be fetched again and "
            f"{totals.local_only_bytes} bytes that are only here, open local files {held} bytes, everything else {others} bytes"
        )
    return f"{left}; {own}; see what `outputd gc --dry-run` would free"


def _private_bytes(private: str) -> int:
    """Of all owners. A directory that cannot be read counts for nothing: the figure stands in a message about something worse."""
    held = 0
    for directory, _, names in os.walk(private):
        for name in names:
            try:
                held += os.lstat(f"{directory}/{name}").st_blocks * 512
            except FileNotFoundError:
                continue
    return held
