"""When another try is made, by a clock that does not run by itself."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from outputd.errors import Unavailable
from outputd.store.remote.retry import Failure, Tries

BUSY = Failure(Unavailable("the server is busy"), transient=True)


class Clock:
    """Time passes only in sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(asyncio, "sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds


def tries_of(seconds: float, failure: Failure, clock: Clock) -> list[float]:
    """When they were made, of an operation that always fails like this; seconds after the first."""

    async def main() -> list[float]:
        start = clock.now
        tries = Tries(seconds)
        made = [0.0]
        with pytest.raises(Unavailable, match=r"the server is busy"):
            while True:
                await tries.again(failure)
                made.append(clock.now - start)
        return made

    return asyncio.run(main())


@pytest.mark.parametrize("luck", [0.01, 0.5, 1.0])
def test_the_last_try_is_made_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch, luck: float) -> None:
    """However the pauses fall: none of the time that was promised is given away."""
    monkeypatch.setattr(random, "uniform", lambda least, most: least + luck * (most - least))
    made = tries_of(0.5, BUSY, Clock(monkeypatch))
    assert made[-1] == pytest.approx(0.5)


def test_a_pause_that_the_server_asks_for_and_that_is_too_long_is_not_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    assert tries_of(2.0, Failure(BUSY.error, transient=True, delay=3.0), clock) == [0.0]
    assert clock.now == 1000.0


def test_no_patience_is_one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tries_of(0.0, BUSY, Clock(monkeypatch)) == [0.0]
