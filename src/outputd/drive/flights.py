"""One flight per key: concurrent askers share one run of a coroutine. Knows nothing of what is fetched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

_log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)


class Flights(Generic[K]):
    """Runs at most one coroutine per key in the given TaskGroup, cancelled when its last waiter has left unless it is `lasting`."""

    def __init__(self, tasks: asyncio.TaskGroup, *, lasting: bool = False) -> None:
        self._tasks = tasks
        self._lasting = lasting
        self._flying: dict[K, tuple[asyncio.Future[None], list[int]]] = {}

    async def join(self, key: K, start: Callable[[], Awaitable[None]]) -> None:
        """Wait for the flight of `key`, starting it if none is under way. Raises what it raises."""
        flight = self._flying.get(key)
        if flight is None:
            landed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            flight = self._flying[key] = (landed, [0])
            task = self._tasks.create_task(self._fly(key, start, landed))
            landed.add_done_callback(lambda _: task.cancel())
        landed, waiters = flight
        waiters[0] += 1
        try:
            await asyncio.shield(landed)
        finally:
            waiters[0] -= 1
            if waiters[0] == 0 and not landed.done() and not self._lasting:
                self._flying.pop(key, None)
                landed.cancel()

    async def _fly(self, key: K, start: Callable[[], Awaitable[None]], landed: asyncio.Future[None]) -> None:
        try:
            await start()
        except asyncio.CancelledError:
            landed.cancel()
            raise
        except Exception as error:  # not swallowed: every waiter raises it
            if self._lasting and self._flying[key][1] == [0]:
                _log.error("%r failed after everybody who waited for it had left", key, exc_info=error)
            if not landed.done():
                landed.set_exception(error)
                landed.exception()  # seen: a waiter that left meanwhile must not make it a warning
        else:
            if not landed.done():
                landed.set_result(None)
        finally:
            if self._flying.get(key, (None,))[0] is landed:
                del self._flying[key]
