"""Blobs on their way in and those who wait for them: one flight per digest, whoever asks; never moves a byte itself.

A waiter may give up without harm to the others. When the last one has given up, the work ends, unless most of it is done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType

from outputd.digest import Digest
from outputd.errors import OutputdError, Unavailable
from outputd.store.urgency import Errand, urgent


class Flight:
    """One blob on its way in."""

    __slots__ = ("_departure", "_landed", "_waiters", "began", "digest", "received", "urgent")

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        self.began = time.monotonic()
        self.received = 0
        """Bytes that have come so far."""
        self.urgent = False
        """Whether anybody who boarded waits for it himself, and does not do what may be needed later."""
        self._landed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters = 0
        self._departure: Departure | None = None

    @property
    def over(self) -> bool:
        """Landed, failed, or given up by everybody."""
        return self._landed.done()

    @property
    def waiters(self) -> int:
        return self._waiters

    @property
    def nearly_here(self) -> bool:
        """Whether it goes on when nobody waits any more: two thirds have come, and would have to come again."""
        return self.received > 2 * (self.digest.size - self.received)

    def board(self) -> None:
        """Wait from now on: `leave` must follow."""
        self._waiters += 1
        if not self.urgent and urgent():
            self.urgent = True
            if self._departure is not None:
                self._departure.errand.hurry()

    def leave(self) -> None:
        self._waiters -= 1
        if self._waiters == 0 and not self.over and not self.nearly_here:
            self._landed.cancel()
            self._end_if_over()

    def close(self, error: BaseException) -> None:
        """Tell those who wait that it will not land, and end the work."""
        self.land(error)
        self._end_if_over()

    async def arrival(self) -> None:
        """Return when the blob is here; raise what went wrong. For those who boarded."""
        # Cancelling one who waits must not cancel what the others wait for.
        await asyncio.shield(self._landed)

    def land(self, error: BaseException | None = None) -> None:
        """Wake everybody. Nothing happens when the flight is over."""
        if self.over:
            return
        if error is None:
            self._landed.set_result(None)
            return
        self._landed.set_exception(error)
        if isinstance(error, OutputdError):
            # Looked at: when all who wait were cancelled at this moment, a fault of the world is no news. One of ours is, and
            # asyncio reports it.
            self._landed.exception()

    def _end_if_over(self) -> None:
        if self._departure is not None:
            self._departure.end_if_over()


class Departure:
    """The flights that one task brings in. Entered by that task: however it ends, each flight is told.

    So an error is raised where somebody waits, never in the task group, which would end with all that is in it.
    """

    __slots__ = ("_flights", "_task", "errand")

    def __init__(self, flights: Sequence[Flight]) -> None:
        self._flights = flights
        self.errand = Errand()
        """What the task is to carry."""
        if any(flight.urgent for flight in flights):
            self.errand.hurry()
        self._task: asyncio.Task[None] | None = None
        for flight in flights:
            flight._departure = self

    def carried_by(self, task: asyncio.Task[None]) -> None:
        """The task to be cancelled when nobody waits any more."""
        self._task = task

    def end_if_over(self) -> None:
        if self._task is not None and all(flight.over for flight in self._flights):
            self._task.cancel()

    def __enter__(self) -> Sequence[Flight]:
        return self._flights

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, OutputdError | asyncio.CancelledError | None):
            self._report_unless_awaited(error)
        # Usually all flights are over when the task was cancelled: that is why it was. Whoever does wait was not cancelled.
        cancelled = isinstance(error, asyncio.CancelledError)
        for flight in self._flights:
            flight.land(Unavailable("the transfer was cancelled") if cancelled else error)
        return isinstance(error, Exception)

    def _report_unless_awaited(self, error: BaseException) -> None:
        """A fault of ours that nobody is left to be told goes to the log."""
        if all(flight.over for flight in self._flights):
            message = f"bringing blob {self._flights[0].digest} failed when nobody wanted it any more"
            asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
