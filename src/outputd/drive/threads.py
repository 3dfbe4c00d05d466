"""Work on descriptors in a thread, never let go of before it has ended. Knows nothing of what the work is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """The result of `work`. A cancellation is raised only once the thread is through.

    `asyncio.to_thread` raises it at once; a caller that then closed its descriptors would let the thread go on with whatever file
    gets their numbers next.
    """
    future = asyncio.get_running_loop().run_in_executor(None, work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        future.exception()  # seen: nobody asks for the result any more
        raise cancelled
    return future.result()
