"""The store that takes uploads while its remote does not answer: what is called present, what is refused, what stays an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from outputd.builds.write_back_store import WriteBackStore
from outputd.digest import Digest
from outputd.errors import Corrupt, Denied, OutputdError, TimedOut, Unavailable, Unreachable
from outputd.store.cached import CachedStore
from tests.unit.builds.test_uploads import LARGE, Remote
from tests.unit.builds.test_write_back import World, world
from tests.unit.builds.world import SHA256

SMALL = b"small"


class Failing(Remote):
    """One that fails in everything while it is down: a batch as a whole, or blob by blob."""

    def __init__(self) -> None:
        super().__init__()
        self.by_blob = False

    async def write(self, digest: Digest, data: Callable[[], AsyncGenerator[bytes]]) -> None:
        if self.down is not None:
            raise self.down
        await super().write(digest, data)

    async def write_batch(self, blobs: Mapping[Digest, bytes]) -> Mapping[Digest, OutputdError]:
        if self.down is not None and not self.by_blob:
            raise self.down
        return await super().write_batch(blobs) if self.down is None else dict.fromkeys(blobs, self.down)


@asynccontextmanager
async def served(
    path: Path, error: OutputdError, limit: int = 1 << 20
) -> AsyncIterator[tuple[World, Failing, WriteBackStore]]:
    remote = Failing()
    remote.down = error
    async with world(path, remote, limit) as w, CachedStore(w.store, remote) as store:
        yield w, remote, WriteBackStore(store, w.queue).of_instance("main")


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


def of(data: bytes) -> Digest:
    return Digest.of(SHA256, data)


@pytest.mark.parametrize("by_blob", [False, True])
@pytest.mark.parametrize("error", [Unreachable("away"), TimedOut("away")], ids=type)
def test_while_the_remote_is_away_uploads_are_queued(
    error: OutputdError, by_blob: bool, tmp_path: Path
) -> None:
    async def run() -> None:
        async with served(tmp_path, error) as (w, remote, store):
            remote.by_blob = by_blob
            assert await store.provide([of(SMALL), of(LARGE), of(b"")]) == {of(SMALL), of(LARGE)}
            assert await store.write_many({of(SMALL): SMALL, of(b""): b""}) == {}
            await store.write(of(LARGE), pieces(LARGE))
            assert w.queue.blobs() == {of(SMALL), of(LARGE)}
            assert await store.provide([of(SMALL), of(LARGE), of(b"other")]) == {of(b"other")}
            assert await store.read(of(SMALL)) == SMALL
            remote.down = None
            assert await store.provide([of(LARGE)]) == {of(LARGE)}, "a remote that answers is believed"

    asyncio.run(run())


def test_what_is_here_is_present_only_if_it_is_queued(tmp_path: Path) -> None:
    async def run() -> None:
        async with served(tmp_path, Unreachable("away"), limit=10) as (w, remote, store):
            w.store.put(of(b"fetched"), b"fetched")
            w.store.put(of(LARGE), LARGE)
            assert not w.store.only_here([of(b"fetched")])
            assert await store.provide([of(b"fetched"), of(LARGE)]) == {of(LARGE)}
            assert w.queue.blobs() == w.store.only_here([of(b"fetched")]) == {of(b"fetched")}
            with pytest.raises(Unreachable, match="away; the offline queue is full: 7 of 10 bytes"):
                await store.write(of(LARGE), pieces(LARGE))
            failures = await store.write_many({of(SMALL): SMALL, of(b"x"): b"x"})
            assert list(failures) == [of(SMALL)]
            assert type(failures[of(SMALL)]) is Unreachable
            assert w.queue.blobs() == {of(b"fetched"), of(b"x")}
            assert remote.sent == []

    asyncio.run(run())


@pytest.mark.parametrize("error", [Denied("not you"), Unavailable("of our disk")], ids=type)
def test_what_is_no_outage_stays_what_it_is(error: OutputdError, tmp_path: Path) -> None:
    async def run() -> None:
        async with served(tmp_path, error) as (w, remote, store):
            with pytest.raises(type(error)):
                await store.provide([of(SMALL)])
            with pytest.raises(type(error)):
                await store.write_many({of(SMALL): SMALL})
            remote.by_blob = True
            assert await store.write_many({of(SMALL): SMALL}) == {of(SMALL): error}
            with pytest.raises(type(error)):
                await store.write(of(SMALL), pieces(SMALL))
            assert w.queue.blobs() == set()

    asyncio.run(run())


def test_an_upload_that_never_came_is_not_queued(tmp_path: Path) -> None:
    async def stalling() -> AsyncIterator[bytes]:
        yield b"sm"
        raise TimedOut("the client sends nothing")

    async def run() -> None:
        async with served(tmp_path, Unreachable("away")) as (w, _, store):
            with pytest.raises(TimedOut, match="the client sends nothing"):
                await store.write(of(SMALL), stalling())
            with pytest.raises(Corrupt):
                await store.write(of(SMALL), pieces(b"other"))
            assert w.queue.blobs() == set()

    asyncio.run(run())


def test_without_a_queue_for_it_a_remote_that_is_away_is_away(tmp_path: Path) -> None:
    async def run() -> None:
        async with served(tmp_path, Unreachable("away")) as (w, remote, store):
            for name in ("team/x", "nobody's"):
                other = store.of_instance(name)
                with pytest.raises(Unreachable):
                    await other.provide([of(SMALL)])
                with pytest.raises(Unreachable):
                    await other.write_many({of(SMALL): SMALL})
                with pytest.raises(Unreachable):
                    await other.write(of(SMALL), pieces(SMALL))
                remote.by_blob = True
                assert await other.write_many({of(SMALL): SMALL}) == {of(SMALL): remote.down}
                remote.by_blob = False
            assert w.queue.blobs() == set()

    asyncio.run(run())
