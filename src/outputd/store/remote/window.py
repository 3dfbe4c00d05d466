"""How many calls a server is given at a time: as many as it takes without complaint, within a bound; pure.

As TCP finds its window (RFC 5681): one more with each call that was served, half of them when the server pushes back; from there
on one more with each full round. Only calls that were made with the window full say anything about it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_FIRST: Final = 16.0
_MEMORY: Final = 30.0
"""Seconds after which a server that pushed back is no reason any more to go on carefully."""


class Window:
    """For one server."""

    __slots__ = ("_careful_from", "_clock", "_most", "_narrowed", "_size")

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = float(most)
        self._clock = clock
        self._size = min(_FIRST, self._most)
        self._careful_from = self._most
        """From here on it grows by one a round."""
        self._narrowed = float("-inf")
        """When the server pushed back the last time."""

    @property
    def size(self) -> int:
        """Never below 1."""
        return int(self._size)

    def served(self) -> None:
        """A call ended well while others waited for their turn, or would have."""
        if self._clock() - self._narrowed > _MEMORY:
            self._careful_from = self._most
        step = 1.0 if self._size < self._careful_from else 1.0 / self._size
        self._size = min(self._size + step, self._most)

    def pushed_back(self, began: float) -> None:
        """A call that began then met a server with too much to do. Calls that began before the last such answer knew no better."""
        if began >= self._narrowed:
            self._narrowed = self._clock()
            self._size = self._careful_from = max(1.0, self._size / 2)
