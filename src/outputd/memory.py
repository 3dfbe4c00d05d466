"""What the whole process does about its memory: buffers given back, collections kept short, no dumps. For the daemon alone."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import resource
from typing import Final

# <malloc.h>
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_FREEZE_EVERY: Final = 2.0
"""Seconds between two times that what has grown old is taken out of the garbage collector's sight."""


def return_large_buffers() -> None:
    """Have glibc give a large buffer back to the system when it is freed: it would keep what a 20 MB request has needed.

    mallopt(3): fixed thresholds instead of growing ones, and few arenas. Messages of up to 4 MiB are not large: fresh pages for
    each of them cost a sixth of the processor time of fetching (docs/explanation/performance.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    for option, value in ((_M_MMAP_THRESHOLD, 4 << 20), (_M_TRIM_THRESHOLD, 8 << 20), (_M_ARENA_MAX, 2)):
        mallopt(option, value)


def stay_out_of_core_dumps() -> None:
    """Have the kernel write no core of this process and its children (core(5)): tokens would be in it. prlimit(1) can allow it."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


async def spare_the_collector() -> None:
    """Keep collections short: a full one over a million nodes stops everything for a quarter of a second.

    Young objects are collected as ever; what has grown old is mostly tree, which reference counting frees (drive/reaper.py).
    """
    gc.set_threshold(10_000, 2, 1_000_000)
    while True:
        gc.freeze()
        await asyncio.sleep(_FREEZE_EVERY)
