"""When a failed try may be made again, and when it is over; never decides what went wrong.

Full jitter: the pause is anything between nothing and an interval that doubles, so that many clients of a server that comes
back do not come back together.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Final

from outputd.errors import OutputdError

_FIRST_INTERVAL: Final = 0.1
_LAST_INTERVAL: Final = 5.0


@dataclass(frozen=True, slots=True)
class Failure:
    """One try that failed."""

    error: OutputdError
    """To be raised when this was the last try."""
    transient: bool
    """Whether a later try may work."""
    delay: float = 0.0
    """Seconds the other side wants us to wait at least."""
    unauthenticated: bool = False
    """The server does not know who we are."""
    renewed: bool = False
    """That it was not proven who we are was the reason, and it can be proven now: one more try, at once, whatever the time."""


class Tries:
    """The tries of one operation, for at most `seconds` after the last progress."""

    __slots__ = ("_count", "_interval", "_renewed", "_seconds", "_start")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.progress()

    def progress(self) -> None:
        """Something came of it: the clock starts anew."""
        self._start = time.monotonic()
        self._interval = _FIRST_INTERVAL
        self._count = 0
        self._renewed = False

    async def again(self, failure: Failure) -> None:
        """Return when the next try is due; raise the failure's error when there is none."""
        error = failure.error
        if failure.renewed and not self._renewed:
            self._renewed = True
            return
        if not failure.transient:
            raise error
        self._count += 1
        passed = time.monotonic() - self._start
        left = self._seconds - passed
        if failure.delay >= left:
            # The last failure stands for all; how often and how long tells a hiccup from an outage.
            raise type(error)(f"{error} (tried {self._count} times in {passed:.1f} s)") from error.__cause__
        # The last try is made when the time is up, not before: what was promised is to try for so long.
        pause = min(failure.delay + random.uniform(0, self._interval), left)
        self._interval = min(2 * self._interval, _LAST_INTERVAL)
        await asyncio.sleep(pause)
