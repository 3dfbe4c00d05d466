"""Long work on the event loop in short slices, by the clock; never decides what the work is.

One loop serves the kernel and gRPC: who works longer than a millisecond hands it back in between.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

_SLICE: Final = 0.001
"""Seconds of work between two turns of the loop."""
_GROWTH: Final = 1 / 200
"""Part of the time spent so far by which a slice is longer: 6 ms after a second of work. Work that others undo as fast as it is
done (sealing a tree that is being written) comes to its end this way."""


class Pace:
    """Made when the work begins; `if pace.due: await pace.turn()` after each small step."""

    __slots__ = ("_spent", "_until")

    def __init__(self) -> None:
        self._spent = 0.0
        self._until = time.monotonic() + _SLICE

    @property
    def due(self) -> bool:
        """Whether the slice is used up."""
        return time.monotonic() >= self._until

    async def turn(self) -> None:
        """Let everybody else who is ready run once."""
        slice_ = _SLICE + self._spent * _GROWTH
        self._spent += slice_
        await asyncio.sleep(0)
        self._until = time.monotonic() + slice_
