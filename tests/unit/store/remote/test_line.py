"""Who goes first to a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from outputd.store.remote.line import Line
from outputd.store.remote.window import Window
from outputd.store.urgency import Errand, carrying
from tests.unit.store.worlds import run


class World:
    """Calls that end when they are told to."""

    def __init__(self, group: asyncio.TaskGroup, most: int) -> None:
        self.line = Line(Window(most))
        self.went: list[str] = []
        self._group = group
        self._ends: dict[str, asyncio.Event] = {}

    async def come(self, name: str, errand: Errand | None = None) -> asyncio.Task[None]:
        self._ends[name] = asyncio.Event()
        context = None if errand is None else carrying(errand)
        task = self._group.create_task(self._call(name), context=context)
        await asyncio.sleep(0)
        return task

    async def end(self, name: str) -> None:
        self._ends[name].set()
        for _ in range(4):
            await asyncio.sleep(0)

    async def end_all(self) -> None:
        while self.line.under_way:
            for name in list(self.went):
                await self.end(name)

    async def _call(self, name: str) -> None:
        background = await self.line.enter()
        self.went.append(name)
        try:
            await self._ends[name].wait()
        finally:
            self.line.leave(background=background)


def in_world(most: int, test: Callable[[World], Coroutine[None, None, None]]) -> None:
    async def whole() -> None:
        async with asyncio.TaskGroup() as group:
            world = World(group, most)
            await test(world)
            await world.end_all()
        assert world.line.under_way == world.line.waiting == 0

    run(whole)


def test_what_somebody_waits_for_goes_before_what_nobody_does() -> None:
    async def test(world: World) -> None:
        await world.come("first")
        await world.come("ahead", Errand())
        await world.come("wanted")
        await world.end("first")
        assert world.went == ["first", "wanted"]
        await world.end("wanted")
        assert world.went == ["first", "wanted", "ahead"]

    in_world(1, test)


def test_who_comes_to_wait_for_it_moves_it_forward() -> None:
    async def test(world: World) -> None:
        await world.come("first")
        errand = Errand()
        for name in ("one", "two"):
            await world.come(name, Errand())
        await world.come("needed after all", errand)
        errand.hurry()
        await world.end("first")
        assert world.went == ["first", "needed after all"]

    in_world(1, test)


def test_background_work_leaves_places_free() -> None:
    async def test(world: World) -> None:
        for number in range(8):
            await world.come(f"ahead {number}", Errand())
        assert len(world.went) == 6
        await world.come("wanted")
        assert world.went[-1] == "wanted"

    in_world(8, test)


def test_background_work_never_stands_still() -> None:
    async def test(world: World) -> None:
        await world.come("first")
        await world.come("ahead", Errand())
        for number in range(20):
            await world.come(f"wanted {number}")
        last = "first"
        while last != "ahead":
            await world.end(last)
            last = world.went[-1]
        assert len(world.went) == 10  # the first, eight of the others, itself

    in_world(1, test)


def test_who_gives_up_leaves_the_line() -> None:
    async def test(world: World) -> None:
        await world.come("first")
        gone = await world.come("gone")
        also_gone = await world.come("also gone", Errand())
        gone.cancel()
        also_gone.cancel()
        await asyncio.sleep(0)
        assert world.line.waiting == 0
        await world.end("first")
        await world.come("next")
        assert world.went == ["first", "next"]

    in_world(1, test)


def test_who_gives_up_when_it_is_his_turn_gives_it_back() -> None:
    async def test(world: World) -> None:
        line = world.line
        background = await line.enter()
        unlucky = await world.come("unlucky")
        await world.come("next")
        line.leave(background=background)  # it is the unlucky one's turn; he does not know yet
        unlucky.cancel()
        for _ in range(4):
            await asyncio.sleep(0)
        assert world.went == ["next"]
        assert line.under_way == 1

    in_world(1, test)


def test_the_line_grows_only_when_it_was_full() -> None:
    async def test(world: World) -> None:
        before = world.line.limit
        await world.come("alone")
        world.line.served()
        assert world.line.limit == before
        for number in range(before):
            await world.come(f"{number}")
        world.line.served()
        assert world.line.limit == before + 1
        assert world.line.under_way == before + 1

    in_world(64, test)
