"""Work that comes in small steps, done on the event loop between other work. Never decides what the work is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import Final, TypeVar

T = TypeVar("T")

_SLICE: Final = 0.001
"""Seconds of work between two turns of the event loop."""


async def in_slices(work: Generator[None, None, T]) -> T:
    """What the work returns in the end; each of its steps is to be shorter than a slice."""
    until = time.monotonic() + _SLICE
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
        if time.monotonic() > until:
            await asyncio.sleep(0)
            until = time.monotonic() + _SLICE


def at_once(work: Generator[None, None, T]) -> T:
    """The same without a turn for anybody else."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
