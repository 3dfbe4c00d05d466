"""Waiting for others: results, first errors, and that nothing outlives a cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine

import pytest

from outputd.errors import NotFound
from outputd.store.waiting import in_parallel, in_thread
from tests.unit.store.worlds import run


def test_results_come_in_order() -> None:
    async def after(event: asyncio.Event | None, value: int) -> int:
        if event is not None:
            await event.wait()
        return value

    async def test() -> None:
        event = asyncio.Event()
        asyncio.get_running_loop().call_later(0.01, event.set)
        assert await in_parallel([after(event, 1), after(None, 2), after(event, 3)]) == [1, 2, 3]
        assert await in_parallel([after(None, 1)]) == [1]
        nothing: list[Coroutine[None, None, int]] = []
        assert await in_parallel(nothing) == []

    run(test)


@pytest.mark.parametrize("others", [0, 3])
def test_the_first_error_ends_the_others_and_comes_by_itself(others: int) -> None:
    ended = []

    async def endless() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(True)

    async def failing() -> None:
        await asyncio.sleep(0)
        raise NotFound("this one") from KeyError("why")

    async def test() -> None:
        with pytest.raises(NotFound, match="this one") as caught:
            await in_parallel([failing(), *[endless() for _ in range(others)]])
        assert isinstance(caught.value.__cause__, KeyError)
        assert len(ended) == others

    run(test)


def test_a_thread_gives_its_result_or_error() -> None:
    async def test() -> None:
        assert await in_thread(int, "17") == 17
        with pytest.raises(ValueError, match="invalid literal"):
            await in_thread(int, "x")

    run(test)


@pytest.mark.parametrize("fails", [False, True])
def test_cancelling_waits_for_the_end_of_the_thread(fails: bool) -> None:
    started, may_end = threading.Event(), threading.Event()
    ended = []

    def work() -> None:
        started.set()
        may_end.wait(5)
        ended.append(True)
        if fails:
            raise OSError("nobody hears it")

    async def test() -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(in_thread(work))
            await asyncio.get_running_loop().run_in_executor(None, started.wait)
            task.cancel()
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.sleep(0.01)
            assert not task.done()
            may_end.set()
        assert task.cancelled()
        assert ended == [True]

    run(test)
