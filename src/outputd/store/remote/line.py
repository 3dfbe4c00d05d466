"""Who may call a server now, and who waits for it: what somebody waits for goes first. Never makes a call.

Background work leaves a quarter of the places free: a call of it may take long, and a reader is not to wait for its end. While
both wait it gets one turn after each _TURNS urgent ones, so that it never stands still.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Final

from outputd.store.remote.window import Window
from outputd.store.urgency import errand

_TURNS: Final = 8
_FREE: Final = 4


class Line:
    """The line at one server. For one event loop."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._urgent: dict[asyncio.Future[bool], None] = {}
        """Those who wait, first come first served. The future's result is that of `enter`."""
        self._others: dict[asyncio.Future[bool], None] = {}
        self._under_way = 0
        self._others_under_way = 0
        self._turns = 0
        """Urgent calls that went while others waited, since one of those did."""

    @property
    def limit(self) -> int:
        """Calls at a time, for now."""
        return self._window.size

    @property
    def under_way(self) -> int:
        return self._under_way

    @property
    def waiting(self) -> int:
        return len(self._urgent) + len(self._others)

    async def enter(self) -> bool:
        """Return when it is the caller's turn. `leave` must follow, and is to be told the answer: whether it is background work."""
        carried = errand.get()
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if carried is None or carried.urgent:
            self._urgent[turn] = None
            hurrying: AbstractContextManager[None] = nullcontext()
        else:
            self._others[turn] = None
            hurrying = carried.listened(partial(self._hurry, turn))
        with hurrying:
            self._admit()
            try:
                return await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # it was given its turn at this moment
                    self.leave(background=turn.result())
                self._urgent.pop(turn, None)
                self._others.pop(turn, None)
                raise

    def leave(self, *, background: bool) -> None:
        """A call has ended."""
        self._under_way -= 1
        self._others_under_way -= background
        self._admit()

    def served(self) -> None:
        """A call ended well; it is still to leave."""
        if self._under_way >= self._window.size:
            self._window.served()
            self._admit()

    def pushed_back(self, began: float) -> None:
        """A call that began then, by time.monotonic(), met a server with too much to do."""
        self._window.pushed_back(began)

    def _hurry(self, turn: asyncio.Future[bool]) -> None:
        if turn in self._others:
            del self._others[turn]
            self._urgent[turn] = None
            self._admit()

    def _admit(self) -> None:
        while self._under_way < self._window.size and self.waiting:
            size = self._window.size
            room = self._others_under_way < size - size // _FREE
            if self._others and room and (not self._urgent or self._turns >= _TURNS):
                background, line = True, self._others
                self._turns = 0
            elif self._urgent:
                background, line = False, self._urgent
                self._turns += bool(self._others)
            else:
                return
            turn = next(iter(line))
            del line[turn]
            if not turn.done():  # else it was cancelled, and is about to go
                self._under_way += 1
                self._others_under_way += background
                turn.set_result(background)
