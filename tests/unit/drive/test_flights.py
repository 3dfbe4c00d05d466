"""Flights: one run for all who ask, cancelled when nobody waits any more, or going on when they are lasting."""

from __future__ import annotations

import asyncio

import pytest

from outputd.drive.flights import Flights
from outputd.errors import NotFound


class _Run:
    """A coroutine to be flown: counts its starts, ends when it is told to."""

    def __init__(self) -> None:
        self.starts = 0
        self.gate = asyncio.Event()
        self.error: Exception | None = None
        self.ended = asyncio.Event()

    async def __call__(self) -> None:
        self.starts += 1
        try:
            await self.gate.wait()
            if self.error is not None:
                raise self.error
        finally:
            self.ended.set()


async def _leave(waiter: asyncio.Task[None]) -> None:
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter


def test_all_who_ask_share_one_run_and_its_error() -> None:
    async def test() -> None:
        run = _Run()
        async with asyncio.TaskGroup() as tasks:
            flights: Flights[str] = Flights(tasks)
            waiters = [asyncio.create_task(flights.join("key", run)) for _ in range(3)]
            await asyncio.sleep(0)
            run.error = NotFound("nowhere")
            run.gate.set()
            for waiter in waiters:
                with pytest.raises(NotFound, match="nowhere"):
                    await waiter
            assert run.starts == 1
            run.error = None
            await flights.join("key", run)
            assert run.starts == 2

    asyncio.run(test())


def test_a_run_that_nobody_waits_for_is_cancelled() -> None:
    async def test() -> None:
        run = _Run()
        async with asyncio.TaskGroup() as tasks:
            flights: Flights[str] = Flights(tasks)
            first, second = (asyncio.create_task(flights.join("key", run)) for _ in range(2))
            await _leave(first)
            assert not run.ended.is_set()
            await _leave(second)
            await run.ended.wait()
            assert not run.gate.is_set()

    asyncio.run(test())


def test_a_lasting_run_goes_on_and_can_be_joined_again() -> None:
    async def test() -> None:
        run = _Run()
        async with asyncio.TaskGroup() as tasks:
            flights: Flights[str] = Flights(tasks, lasting=True)
            await _leave(asyncio.create_task(flights.join("key", run)))
            again = asyncio.create_task(flights.join("key", run))
            await asyncio.sleep(0)
            run.gate.set()
            await again
            assert run.starts == 1

    asyncio.run(test())


def test_a_lasting_run_that_fails_alone_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        run = _Run()
        async with asyncio.TaskGroup() as tasks:
            flights: Flights[str] = Flights(tasks, lasting=True)
            await _leave(asyncio.create_task(flights.join("key", run)))
            run.error = NotFound("nowhere")
            run.gate.set()

    asyncio.run(test())
    assert [record.getMessage() for record in caplog.records] == [
        "'key' failed after everybody who waited for it had left"
    ]
