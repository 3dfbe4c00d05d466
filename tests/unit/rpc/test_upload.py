from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from outputd.digest import Digest
from outputd.errors import Exhausted, Unavailable
from outputd.rpc.upload import Upload
from tests.unit.rpc.fakes import SHA256, FakeStore

DATA = b"abcdef"
DIGEST = Digest.of(SHA256, DATA)


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def begin(tasks: asyncio.TaskGroup, store: FakeStore, upload: Upload) -> asyncio.Task[None]:
    task = tasks.create_task(upload.run(store))
    task.add_done_callback(lambda _: upload.end())
    return task


def test_pieces_reach_the_store_in_order() -> None:
    async def main() -> None:
        store, upload = FakeStore(), Upload(DIGEST, patience=60)
        async with asyncio.TaskGroup() as tasks:
            begin(tasks, store, upload)
            for piece in (b"ab", b"cde", b"f"):
                assert await upload.room()
                upload.push(piece)
            await upload.finish()
        assert store.blobs == {DIGEST: DATA}
        assert upload.received == 6
        assert not await upload.room()

    asyncio.run(main())


def test_a_slow_store_holds_the_client_back() -> None:
    class Slow(FakeStore):
        def __init__(self) -> None:
            super().__init__()
            self.go = asyncio.Event()

        async def write(self, digest: Digest, data: AsyncIterator[bytes]) -> None:
            await self.go.wait()
            await super().write(digest, data)

    async def main() -> None:
        store, upload = Slow(), Upload(DIGEST, patience=60)
        async with asyncio.TaskGroup() as tasks:
            begin(tasks, store, upload)
            for piece in (b"ab", b"cd"):
                assert await upload.room()
                upload.push(piece)
            waiting = tasks.create_task(upload.room())
            await settle()
            assert not waiting.done()
            store.go.set()
            assert await waiting
            upload.push(b"ef")
            await upload.finish()
        assert store.blobs == {DIGEST: DATA}

    asyncio.run(main())


def test_a_client_that_is_held_back_hears_when_the_store_fails() -> None:
    class Failing(FakeStore):
        async def write(self, digest: Digest, data: AsyncIterator[bytes]) -> None:
            await self.writing.wait()
            raise Exhausted("disk full")

    async def main() -> None:
        store, upload = Failing(), Upload(DIGEST, patience=60)
        async with asyncio.TaskGroup() as tasks:
            begin(tasks, store, upload)
            upload.push(b"ab")
            upload.push(b"cd")

            async def fail() -> None:
                await settle()
                store.writing.set()

            heard = await asyncio.gather(upload.room(), upload.finish(), fail(), return_exceptions=True)
        assert [type(error) for error in heard] == [Exhausted, Exhausted, type(None)]

    asyncio.run(main())


def test_an_upload_that_is_dropped_before_its_first_step_lets_everybody_go() -> None:
    async def main() -> None:
        upload = Upload(DIGEST, patience=60)
        async with asyncio.TaskGroup() as tasks:
            begin(tasks, FakeStore(), upload).cancel()
        with pytest.raises(Unavailable, match="begin it again"):
            await upload.room()
        with pytest.raises(Unavailable, match="begin it again"):
            await upload.finish()

    asyncio.run(main())
