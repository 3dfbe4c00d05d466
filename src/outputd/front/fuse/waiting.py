"""Requests of the kernel that cannot be answered at once: each a task, until it is answered or its caller wants no answer any more.

Never looks at what they ask for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

from outputd.errors import TimedOut
from outputd.front.fuse.callers import wants_out

_LOOK_EVERY: Final = 0.5
"""Seconds between two looks at the callers of those that wait."""
_CALLERS_A_TURN: Final = 20
"""Callers looked at before the loop gets its turn: 25 us each."""


class Request:
    """One that waits."""

    __slots__ = ("began", "given_up", "local", "message", "nodeid", "opcode", "pid", "unique")

    def __init__(self, opcode: int, unique: int, nodeid: int, pid: int, *, local: bool = False) -> None:
        self.opcode = opcode
        self.unique = unique
        self.nodeid = nodeid
        self.pid = pid
        """The thread that made it; 0 when it is of a process namespace that we do not see."""
        self.local = local
        """Only this machine's disk is waited for: no signal ends it half done, as on any file system."""
        self.began = time.monotonic()
        self.message: bytes | None = None
        """The request itself, as long as it only waits: nothing was changed for it, and it may be asked again."""
        self.given_up = False
        """It is not to be answered now: it will be asked again."""


class Waiting:
    """All of them."""

    def __init__(self, tasks: asyncio.TaskGroup, left: Callable[[int], bool | None] = wants_out) -> None:
        """`left` tells of a thread whether it wants no answer any more; None when that cannot be known."""
        self._tasks = tasks
        self._left = left
        self._requests: dict[int, tuple[Request, asyncio.Task[None]]] = {}
        """By their `unique`."""
        self._watch: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter([request for request, _ in self._requests.values()])

    def add(self, request: Request, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, which answers the request, also when it is cancelled."""
        self._requests[request.unique] = request, self._tasks.create_task(self._run(request, work))
        if self._watch is None:
            self._watch = self._tasks.create_task(self._look_at_callers())

    def interrupt(self, unique: int) -> None:
        """The caller got a signal; the kernel tells of no second one. If it is not to stop by this one, we look for others."""
        found = self._requests.get(unique)
        if found is not None and not found[0].local and self._left(found[0].pid) is not False:
            _cancel(found[1])

    def abandon(self) -> None:
        """The mount is gone: nobody waits for the answers any more."""
        for _, task in self._requests.values():
            _cancel(task)

    async def come_to_rest(self, seconds: float) -> list[bytes]:
        """Wait for the end of what has begun to change something, and give up what only waits; returns the latter, to be asked
        again.

        Raises TimedOut when something has not ended within `seconds`; then nothing was given up.
        """
        end = time.monotonic() + seconds
        await asyncio.sleep(0)  # so that each has begun: who is cancelled before that has not run at all
        while busy := [task for request, task in self._requests.values() if request.message is None]:
            if (left := end - time.monotonic()) <= 0:
                raise TimedOut(f"{len(busy)} requests of the kernel have not ended within {seconds:g} s")
            await asyncio.wait(busy, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        given_up = list(self._requests.values())
        for request, task in given_up:
            request.given_up = True
            task.cancel()
        if given_up:
            await asyncio.wait([task for _, task in given_up])
        return [request.message for request, _ in given_up if request.message is not None]

    async def _run(self, request: Request, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            del self._requests[request.unique]
            if not self._requests and self._watch is not None:
                self._watch.cancel()
                self._watch = None

    async def _look_at_callers(self) -> None:
        """End what nobody waits for. Work until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            before = time.monotonic() - _LOOK_EVERY
            left: dict[int, bool] = {}
            for request, task in list(self._requests.values()):
                if request.local or request.began > before:
                    continue
                if request.pid not in left:
                    left[request.pid] = self._left(request.pid) is True
                    if len(left) % _CALLERS_A_TURN == 0:
                        await asyncio.sleep(0)
                if left[request.pid] and not task.done():
                    _cancel(task)


def _cancel(task: asyncio.Task[None]) -> None:
    # Not at once: a task that is cancelled before its first step never answers, and its caller would wait for ever.
    asyncio.get_running_loop().call_soon(task.cancel)
