"""Long lists in slices, so that the kernel's requests are answered in between; never changes the order.

One event loop serves gRPC and the file system. A handler that goes through a hundred thousand entries at a stretch would
stop every open file for a third of a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final, TypeVar

Item = TypeVar("Item")

SLICE: Final = 128
"""Entries between two turns of the loop: below a millisecond for what one entry costs here."""


async def paced(items: Sequence[Item]) -> AsyncIterator[Sequence[Item]]:
    """`items` in slices of SLICE, with a turn of the event loop between them."""
    for start in range(0, len(items), SLICE):
        if start:
            await asyncio.sleep(0)
        yield items[start : start + SLICE]
