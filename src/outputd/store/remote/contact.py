"""Whether a server serves us, learnt from the calls that were made, and when to stop asking it: a circuit breaker. Makes no call.

An outage no longer than the patience is ridden out by whoever tries again. After that the server is suspected, and asked by a
probe: if that is not answered either, the server is given up. Calls fail at once then, and only probes ask. One that is answered
puts the server on trial: calls go out again, the first that is answered ends the outage, the first that is not ends the trial.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from outputd.errors import Unreachable

_log = logging.getLogger(__name__)

_FAILURES: Final = 2
"""Calls in a row without an answer that may be an outage: one may be a blob that the server chokes on."""
_QUIET: Final = 60.0
"""Seconds without a call after which a failure has nothing to do with the one before."""


class Standing(enum.Enum):
    """What we do with a server."""

    SERVING = "serving"
    SUSPECTED = "suspected"
    GIVEN_UP = "given up"
    ON_TRIAL = "on trial"


class Contact:
    """One server. Times are those of time.monotonic() where nothing else is said."""

    __slots__ = (
        "_clock",
        "_ended",
        "_failures",
        "_patience",
        "_since",
        "_since_date",
        "_spared",
        "_url",
        "breaks",
        "last_error",
        "last_error_time",
        "reached",
        "standing",
    )

    def __init__(self, url: str, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._patience = patience
        self._clock = clock
        self.breaks = False
        """Whether it may be given up; only where somebody probes it."""
        self.standing = Standing.SERVING
        self.reached: bool | None = None
        """Whether the last call was answered, and well; None before the first has ended."""
        self.last_error = ""
        self.last_error_time = 0.0
        """Seconds since 1970."""
        self._failures = 0
        """Calls in a row that got no answer."""
        self._since = 0.0
        """When the first of them began."""
        self._since_date = 0.0
        """The same in seconds since 1970."""
        self._ended = 0.0
        """When the last of them ended."""
        self._spared = False
        """Whether a probe was answered since, while calls still are not."""

    @property
    def unanswered_since(self) -> float | None:
        """Seconds since 1970 when the outage began; None while the server is not given up."""
        return self._since_date if self.standing in (Standing.GIVEN_UP, Standing.ON_TRIAL) else None

    def refusal(self) -> Unreachable | None:
        """What a call is told while the server is given up."""
        if self.standing is not Standing.GIVEN_UP:
            return None
        since = datetime.fromtimestamp(self._since_date, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return Unreachable(f"{self._url} was given up, it has not answered since {since}: {self.last_error}")

    def answered(self) -> None:
        """A call got what it asked for, or was told why not."""
        self.reached = True
        self._end_of_row()

    def refused(self, text: str) -> None:
        """A call was answered, but the server does not serve us."""
        self._note(text)
        self._end_of_row()

    def unanswered(self, text: str, began: float) -> None:
        """A call that began then reached nobody, or nothing came back."""
        self._note(text)
        now = self._clock()
        if not self._failures or began - self._ended > _QUIET:
            self._failures = 0
            self._since = began
            self._since_date = time.time() - (now - began)
        self._failures += 1
        self._ended = now
        if self.standing is Standing.ON_TRIAL:
            self.standing = Standing.GIVEN_UP
        elif (
            self.standing is Standing.SERVING
            and self.breaks
            and self._failures >= _FAILURES
            and now - self._since >= self._patience
        ):
            self.standing = Standing.SUSPECTED
            if self._spared:
                self.probed(answered=False)

    def probed(self, *, answered: bool) -> None:
        """A probe of a server that is suspected or given up has ended."""
        if self.standing is Standing.GIVEN_UP and answered:
            self.standing = Standing.ON_TRIAL
            self.reached = True
        elif self.standing is Standing.SUSPECTED and answered:
            self.standing = Standing.SERVING
            self._failures = 0  # they get their time once more, on what may be a new connection
            self._spared = True
        elif self.standing is Standing.SUSPECTED:
            self.standing = Standing.GIVEN_UP
            _log.warning("%s; reads of what is not here fail until it answers", self.refusal())

    def _note(self, text: str) -> None:
        self.reached = False
        self.last_error = text
        self.last_error_time = time.time()

    def _end_of_row(self) -> None:
        self._failures = 0
        self._spared = False
        before, self.standing = self.standing, Standing.SERVING
        if before in (Standing.GIVEN_UP, Standing.ON_TRIAL):
            _log.info("%s answers again, after %.0f s", self._url, self._clock() - self._since)
