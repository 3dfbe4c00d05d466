from __future__ import annotations

import asyncio

from outputd.rpc.pace import SLICE, paced


def test_others_run_between_slices_and_nothing_is_lost() -> None:
    async def main() -> None:
        turns = 0
        stop = False

        async def other() -> None:
            nonlocal turns
            while not stop:
                turns += 1
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(other())
            items = list(range(10 * SLICE + 1))
            slices = [some async for some in paced(items)]
            stop = True
        assert [item for some in slices for item in some] == items
        assert max(map(len, slices)) == SLICE
        assert turns >= 10

    asyncio.run(main())


def test_no_items_no_slices() -> None:
    nothing: list[int] = []

    async def main() -> None:
        assert [some async for some in paced(nothing)] == []

    asyncio.run(main())
