"""Many blobs kept at once, and flights that nobody waits for any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable

import grpc
import pytest

from outputd.digest import Digest, DigestFunction
from outputd.errors import Corrupt, Invalid, OutputdError, Unreachable
from outputd.store.cached import CachedStore
from tests.unit.store.fake_remote import Fault
from tests.unit.store.worlds import HASTY, cached_world, local_world, run, until

SMALL = b"small"
LARGE = bytes(range(256)) * 2000


def digest_of(data: bytes) -> Digest:
    return Digest.of(DigestFunction.SHA256, data)


class TestWriteMany:
    def test_one_call_for_all_and_each_its_own_error(self) -> None:
        async def test() -> None:
            async with cached_world() as (fake, local, store):
                blobs = {digest_of(data): data for data in (b"blob %d" % number for number in range(100))}
                refused, wrong = list(blobs)[:2]
                blobs[wrong] = b"other!"
                code = grpc.StatusCode.INVALID_ARGUMENT
                fake.fail("BatchUpdateBlobs", Fault(code=code, blob=refused))
                failures = await store.write_many(blobs)
                assert {digest: type(error) for digest, error in failures.items()} == {
                    refused: Invalid,
                    wrong: Corrupt,
                }
                assert set(fake.blobs) == set(blobs) - {refused, wrong}
                assert local.missing(blobs) == {wrong}
                assert fake.calls.count("BatchUpdateBlobs") == 1

        run(test)

    def test_what_is_here_is_sent_all_the_same(self) -> None:
        async def test() -> None:
            async with cached_world() as (fake, local, store):
                local.put(digest_of(SMALL), SMALL)
                assert await store.write_many({digest_of(SMALL): SMALL}) == {}
                assert fake.blobs == {digest_of(SMALL): SMALL}

        run(test)

    def test_without_a_remote(self) -> None:
        async def test() -> None:
            async with local_world() as local, CachedStore(local, None) as store:
                assert await store.write_many({digest_of(SMALL): SMALL}) == {}
                assert local.read(digest_of(SMALL)) == SMALL

        run(test)


class TestNonsense:
    """What a remote answers to an upload says nothing about the bytes: the client would be told that its own were wrong."""

    @pytest.mark.parametrize("fault", [Fault(garbage=True), Fault(blob=digest_of(SMALL))])
    def test_about_a_batch(self, fault: Fault) -> None:
        async def test() -> None:
            async with cached_world(HASTY) as (fake, _, store):
                fake.fail("BatchUpdateBlobs", *[fault] * 1000)
                [error] = await outcomes(store.write_many({digest_of(SMALL): SMALL}))
                assert type(error) is Unreachable
                with pytest.raises(Unreachable):
                    await store.write(digest_of(SMALL), source(SMALL))

        run(test)

    def test_about_a_stream(self) -> None:
        async def test() -> None:
            async with cached_world(HASTY) as (fake, _, store):
                fake.committed_size = 3
                fake.fail("Write", Fault(), *[Fault(code=grpc.StatusCode.DATA_LOSS)] * 10)
                with pytest.raises(Unreachable):
                    await store.write(digest_of(LARGE), source(LARGE))

        run(test)


async def outcomes(work: Awaitable[dict[Digest, OutputdError]]) -> list[OutputdError]:
    try:
        return list((await work).values())
    except OutputdError as error:
        return [error]


async def source(data: bytes) -> AsyncGenerator[bytes]:
    yield data


class TestLeaving:
    def test_what_is_nearly_here_comes_and_is_forgotten(self) -> None:
        async def test() -> None:
            async with cached_world() as (fake, local, store):
                assert isinstance(store, CachedStore)
                digest = fake.add(LARGE)
                gate = asyncio.Event()
                # The stream ends when nearly all has come; the next call, for the rest, waits.
                fake.fail("Read", Fault(after=len(LARGE) - 10), Fault(gate=gate))
                async with asyncio.TaskGroup() as group:
                    task = group.create_task(store.fetch(digest))
                    await until(lambda: fake.calls.count("Read") == 2)
                    [(flight, instance)] = store.under_way()
                    assert (flight.waiters, instance) == (1, "")
                    assert flight.received == len(LARGE) - 10
                    task.cancel()
                assert [flight.waiters for flight, _ in store.under_way()] == [0]
                gate.set()
                await until(lambda: local.has(digest) and not store._flights)

        run(test)
