"""Work in a thread is waited for, also by who is cancelled."""

from __future__ import annotations

import asyncio
import threading

import pytest

from outputd.drive.threads import in_thread


def test_result_and_error_come_back() -> None:
    async def run() -> None:
        assert await in_thread(lambda: threading.current_thread() is threading.main_thread()) is False
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 // 0)

    asyncio.run(run())


@pytest.mark.parametrize("fails", [False, True])
def test_who_is_cancelled_goes_only_when_the_thread_has_ended(fails: bool) -> None:
    async def run() -> None:
        began, go_on = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def work() -> None:
            loop.call_soon_threadsafe(began.set)
            assert go_on.wait(5)
            if fails:
                raise OSError("nobody hears of it")

        waiting = asyncio.ensure_future(in_thread(work))
        await began.wait()
        for _ in range(2):
            waiting.cancel()
            await asyncio.sleep(0)
            assert not waiting.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(run())
