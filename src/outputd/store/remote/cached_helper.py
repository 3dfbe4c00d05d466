"""The headers of one credential helper: kept until they end, asked for again before that, one question at a time. Never sends any.

A helper that fails is left alone for a while that doubles; what it told before serves until it ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from outputd.errors import OutputdError, TimedOut, Unproven
from outputd.store.remote.credential_facts import CredentialFacts, Headers, facts_of
from outputd.store.remote.credential_helper import ask

_log = logging.getLogger(__name__)

_MARGIN: Final = 60.0
_MARGIN_PART: Final = 0.2
"""Asked again so many seconds before the end, or this part of the time if that is less."""
_FIRST_PAUSE: Final = 1.0
_LAST_PAUSE: Final = 15.0
"""After a failure nobody asks for so long: it doubles from the first to the last."""
_FORCED_PAUSE: Final = 5.0
"""A server that takes nothing may not have the helper run for each call."""
_LONGEST_SLEEP: Final = 30.0
"""Ends are told in the time of day, which may be set, and goes on while a laptop sleeps."""


class CachedHelper:
    """One helper and one URI. For one event loop."""

    def __init__(
        self, program: str, uri: str, timeout: float, duration: float, clock: Callable[[], float] = time.time
    ) -> None:
        self.program: Final = program
        self._uri = uri
        self._timeout = timeout
        self._duration = duration
        self._clock = clock
        self._headers: Headers = ()
        self._ends = 0.0
        """By `clock`, as all times here."""
        self._told_end = False
        self._renewal = 0.0
        self._pause = 0.0
        self._rests_until = 0.0
        self._forced = float("-inf")
        self._failure: OutputdError | None = None
        """What came of the last question, if not headers."""
        self._asking = asyncio.Lock()
        self._wanted = asyncio.Event()
        """Somebody has used the headers since they were told; nobody renews what nobody uses."""

    def headers(self) -> Headers:
        """None when they have ended, or nobody asked yet."""
        if self._clock() >= self._ends:
            return ()
        self._wanted.set()
        return self._headers

    async def prepare(self) -> OutputdError | None:
        """Have headers that have not ended; or why there are none."""
        if self._clock() < self._ends:
            return None
        async with self._asking:
            if self._clock() < self._ends:
                return None
            if self._failure is not None and self._clock() < self._rests_until:
                return self._failure
            return await self._ask()

    async def renew(self, refused: Headers) -> None:
        """The server did not take these: ask for others, unless that was done."""
        async with self._asking:
            now = self._clock()
            if self._headers == refused and now >= self._forced + _FORCED_PAUSE and now >= self._rests_until:
                self._forced = now
                await self._ask()

    async def run(self) -> None:
        """Ask again before the headers end, as long as somebody uses them; until cancelled."""
        while True:
            await self._wanted.wait()
            wait = max(self._renewal, self._rests_until) - self._clock()
            if wait > 0:
                await asyncio.sleep(min(wait, _LONGEST_SLEEP))
                continue
            async with self._asking:
                if self._clock() < self._renewal:
                    continue  # somebody else did
                if await self._ask() is None or self._clock() >= self._ends:
                    self._wanted.clear()  # whoever needs them next says so, and asks himself if they have ended

    def facts(self) -> CredentialFacts:
        valid = self._clock() < self._ends
        return facts_of(
            self._headers if valid else (),
            f"credential helper {self.program}",
            self._ends if valid and self._told_end else None,
            "" if self._failure is None else str(self._failure),
        )

    async def _ask(self) -> OutputdError | None:
        """With `_asking` held."""
        try:
            told = await ask(self.program, self._uri, self._timeout)
        except (Unproven, TimedOut) as error:
            return self._failed(error)
        now = self._clock()
        if told.expires is not None and told.expires <= now:
            return self._failed(Unproven(f"credential helper {self.program} told headers that have ended"))
        if self._pause:
            _log.info("credential helper %s works again", self.program)
        self._failure = None
        self._pause = self._rests_until = 0.0
        self._headers = told.headers
        self._told_end = told.expires is not None
        self._ends = now + self._duration if told.expires is None else told.expires
        self._renewal = self._ends - min(_MARGIN, _MARGIN_PART * (self._ends - now))
        return None

    def _failed(self, error: OutputdError) -> OutputdError:
        if not self._pause:
            until = "nothing it told before serves any more"
            if self._clock() < self._ends:
                until = f"what it told before serves until {datetime.fromtimestamp(self._ends, UTC):%FT%TZ}"
            _log.warning("%s; %s", error, until)
        self._failure = error
        self._pause = min(2 * self._pause, _LAST_PAUSE) if self._pause else _FIRST_PAUSE
        self._rests_until = self._clock() + self._pause
        return error
