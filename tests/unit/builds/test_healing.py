"""Uploading again what the remote has lost: each blob once, refusals end it, nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from outputd.builds.healing import Healing
from outputd.digest import Digest
from outputd.errors import Denied, Exhausted, OutputdError, Unavailable
from outputd.store.base import BlobStore
from outputd.store.disk_store import DiskStore
from tests.unit.builds.world import SHA256, Cas, World, until, world


def held(w: World, count: int) -> list[Digest]:
    """Blobs that the local store holds and the remote has lost."""
    digests = []
    for number in range(count):
        data = b"blob %d" % number
        digests.append(Digest.of(SHA256, data))
        w.store.put(digests[-1], data)
    return digests


def test_each_is_uploaded_once_however_often_it_is_offered(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w, asyncio.TaskGroup() as tasks:
            digests = held(w, 20)
            assert w.healing.offer("main", digests)
            assert w.healing.offer("main", digests[:5])
            task = tasks.create_task(w.healing.run())
            await until(lambda: w.healing.of("").blobs == 20)
            assert sorted(w.cas.uploaded) == sorted(digests)
            assert w.cas.instances == {"main"}
            task.cancel()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "again"),
    [(Denied("read only"), False), (Unavailable("away"), True), (Exhausted("too large"), True)],
)
def test_a_failure_is_logged_once_and_a_refusal_is_final(
    error: OutputdError, again: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with world(tmp_path) as w, asyncio.TaskGroup() as tasks:
            digests = held(w, 1 if isinstance(error, Exhausted) else 20)
            w.cas.down = error
            assert w.healing.offer("main", digests)
            task = tasks.create_task(w.healing.run())
            await until(lambda: not len(w.healing.of("").queue) and caplog.text)
            w.cas.down = None
            assert w.healing.offer("main", digests[:1]) is again
            if again:
                await until(lambda: w.healing.of("").blobs == 1)
            assert w.healing.offer("other", digests[:1])
            task.cancel()

    asyncio.run(run())
    assert caplog.text.count("cannot be uploaded again") <= 4  # those that were under way together


def test_the_queue_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outputd.builds.healing._QUEUE", 3)

    async def run() -> None:
        async with world(tmp_path) as w:
            w.healing.offer("main", held(w, 10))
            assert len(w.healing.of("").queue) == 3

    asyncio.run(run())


class Hanging(Cas):
    """Says nothing while its gate is shut, and then that it is away."""

    async def write(self, digest: Digest, data: AsyncIterator[bytes]) -> None:
        await self.gate.wait()
        raise Unavailable("away")


class Apart(Cas):
    """Two remotes: `team` hangs."""

    def __init__(self, local: DiskStore) -> None:
        super().__init__(local)
        self.hanging = Hanging(local)
        self.hanging.gate.clear()

    def of_instance(self, name: str) -> BlobStore:
        return self.hanging if name.startswith("team/") else self


def test_a_remote_that_does_not_answer_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w, asyncio.TaskGroup() as tasks:
            digests = held(w, 20)
            cas = Apart(w.store)
            healing = Healing(cas, ["", "team"], lambda name: "team" if name.startswith("team/") else "")
            task = tasks.create_task(healing.run())
            assert healing.offer("team/a", digests)
            assert healing.offer("team/b", digests)
            assert healing.offer("main", digests)
            await until(lambda: healing.of("").blobs == 20)
            assert len(healing.of("team").queue) == 36
            cas.hanging.gate.set()
            await until(lambda: not healing.blobs())
            assert healing.of("team").blobs == 0
            task.cancel()

    asyncio.run(run())
