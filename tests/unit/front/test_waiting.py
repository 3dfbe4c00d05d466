"""Requests that wait: which of them end before they are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from outputd.front.fuse import waiting as module
from outputd.front.fuse.waiting import Request, Waiting
from outputd.wire.fuse_abi import Opcode
from tests.unit.store.worlds import until


class World:
    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.left: dict[int, bool | None] = {}
        self.asked: list[int] = []
        self.waiting = Waiting(tasks, self.look)
        self.answers: dict[int, str] = {}
        self.gate = asyncio.Event()

    def look(self, pid: int) -> bool | None:
        self.asked.append(pid)
        return self.left.get(pid, False)

    def add(self, unique: int, pid: int, *, local: bool = False) -> None:
        self.waiting.add(Request(Opcode.READ, unique, 1, pid, local=local), self._wait(unique))

    async def _wait(self, unique: int) -> None:
        try:
            await self.gate.wait()
            self.answers[unique] = "done"
        except asyncio.CancelledError:
            self.answers[unique] = "interrupted"
            raise


def run(work: Callable[[World], Coroutine[None, None, None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            world = World(tasks)
            await work(world)
            world.gate.set()

    asyncio.run(run())


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("left", "answer"), [(True, "interrupted"), (None, "interrupted"), (False, None)])
def test_interrupt_is_for_who_is_to_stop_or_cannot_be_looked_at(
    left: bool | None, answer: str | None
) -> None:
    async def work(world: World) -> None:
        world.left[17] = left
        world.add(1, 17)
        world.add(2, 18)
        world.waiting.interrupt(1)  # before its task has begun
        world.waiting.interrupt(99)
        await turns()
        assert world.answers.get(1) == answer
        assert 2 not in world.answers
        assert [request.unique for request in world.waiting] == ([2] if answer else [1, 2])

    run(work)


def test_what_waits_for_the_disk_is_not_ended_half_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """ftruncate(2) and fsync(2) on a disk know no signals, and programs expect no EINTR from them."""
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.001)

    async def work(world: World) -> None:
        world.left[17] = True
        world.add(1, 17, local=True)
        world.add(2, 17)
        world.waiting.interrupt(1)
        await until(lambda: 2 in world.answers)
        assert world.answers == {2: "interrupted"}
        world.gate.set()
        await until(lambda: 1 in world.answers)
        assert world.answers[1] == "done"

    run(work)


def test_who_leaves_without_a_word_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.001)

    async def work(world: World) -> None:
        for unique, pid in ((1, 17), (2, 17), (3, 18), (4, 19)):
            world.add(unique, pid)
        world.left = {17: True, 18: None}
        await until(lambda: len(world.answers) == 2)
        await asyncio.sleep(0.01)
        assert world.answers == {1: "interrupted", 2: "interrupted"}

    run(work)


def test_nobody_is_looked_at_when_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.001)

    async def work(world: World) -> None:
        for _ in range(2):
            world.add(1, 17)
            await until(lambda: bool(world.asked))
            world.gate.set()
            await turns()
            world.gate.clear()
            assert (len(world.waiting), world.answers) == (0, {1: "done"})
            world.asked.clear()
            await asyncio.sleep(0.01)
            assert world.asked == []
            world.answers.clear()

    run(work)


def test_all_end_with_the_mount() -> None:
    async def work(world: World) -> None:
        world.add(1, 17)
        world.add(2, 18)
        world.waiting.abandon()
        await turns()
        assert world.answers == {1: "interrupted", 2: "interrupted"}

    run(work)
