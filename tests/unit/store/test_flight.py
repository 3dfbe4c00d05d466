"""Flights: what is told to whom when a transfer ends in an unusual way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.errors import NotFound, Unavailable
from outputd.store.flight import Departure, Flight
from tests.unit.store.worlds import run

DIGEST = Digest.of(DigestFunction.SHA256, b"data")


def boarded() -> Flight:
    flight = Flight(DIGEST)
    flight.board()
    return flight


def test_a_transfer_that_is_cancelled_from_outside_tells_who_waits() -> None:
    async def test() -> None:
        flight = boarded()
        with pytest.raises(asyncio.CancelledError), Departure([flight]):
            raise asyncio.CancelledError
        with pytest.raises(Unavailable, match="cancelled"):
            await flight.arrival()

    run(test)


def test_our_own_fault_is_raised_where_somebody_waits() -> None:
    async def test() -> None:
        flight = boarded()
        with Departure([flight]):
            raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError):
            await flight.arrival()

    run(test)


def test_our_own_fault_is_reported_when_nobody_waits_any_more() -> None:
    async def test() -> None:
        reports: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
        flight = boarded()
        flight.leave()
        with Departure([flight]):
            raise ZeroDivisionError
        [report] = reports
        assert DIGEST.hash_hex in report["message"]
        assert isinstance(report["exception"], ZeroDivisionError)

    run(test)


@pytest.mark.parametrize(("error", "news"), [(NotFound("gone"), 0), (ZeroDivisionError(), 1)])
def test_an_error_that_nobody_looked_at_is_news_only_when_it_is_our_fault(
    error: Exception, news: int
) -> None:
    async def test() -> None:
        reports: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
        flight = boarded()
        flight.land(error)
        flight.leave()
        del flight
        await asyncio.sleep(0)
        assert len(reports) == news

    run(test)


def test_a_flight_lands_once() -> None:
    async def test() -> None:
        flight = boarded()
        flight.land()
        flight.land(NotFound("too late"))
        await flight.arrival()

    run(test)


@pytest.mark.parametrize(("received", "goes_on"), [(0, False), (66, False), (67, True), (100, True)])
def test_a_transfer_that_is_nearly_here_goes_on_when_nobody_waits_any_more(
    received: int, goes_on: bool
) -> None:
    async def test() -> None:
        flight = Flight(Digest.of(DigestFunction.SHA256, bytes(100)))
        flight.board()
        flight.received = received
        flight.leave()
        assert flight.over is not goes_on

    run(test)
