"""Two ways to wait for work done elsewhere, so that nothing is left running or closed beneath anybody; knows no blobs."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


async def in_parallel(jobs: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run side by side, results in order. The first that fails ends the others, and its error is raised by itself."""
    if len(jobs) == 1:
        return [await jobs[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
    except BaseExceptionGroup as failed:
        # The others were cancelled because of it, so there is one that came first.
        raise failed.exceptions[0] from failed.exceptions[0].__cause__
    return [task.result() for task in tasks]


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking call in a thread. Cancelling waits for its end, for it may use what the caller is about to close.

    So the call must be short: a write or a hash of some megabytes, nothing that waits on the network.
    """
    loop = asyncio.get_running_loop()
    job = loop.run_in_executor(None, functools.partial(function, *args, **kwargs))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        while not job.done():
            try:
                await asyncio.wait([job])
            except asyncio.CancelledError:
                continue  # Being asked twice does not make the thread end sooner.
        if not job.cancelled():
            job.exception()  # Looked at, or asyncio would report it as lost; the cancellation is what counts now.
        raise
