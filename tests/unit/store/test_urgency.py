"""What somebody waits for reaches the remote before what is brought ahead of need, also when both want the same blob."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import grpc

from outputd._proto import bytestream_pb2 as bytestream
from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest
from outputd.disk.disk import RealDisk
from outputd.store.cached import CachedStore
from outputd.store.partials import Partials
from outputd.store.remote import RemoteOptions
from outputd.store.urgency import Errand, carrying, unhurried, urgent
from tests.unit.store.fake_remote import FakeRemote, Fault
from tests.unit.store.worlds import local_world, remote_world, run, until

MIB = 1 << 20


class World:
    """A store whose remote takes one call at a time, and has one that does not end before `open`."""

    def __init__(self, fake: FakeRemote, store: CachedStore, group: asyncio.TaskGroup) -> None:
        self.fake = fake
        self.store = store
        self.open = asyncio.Event()
        self._group = group

    def begin(self, work: Coroutine[Any, Any, object], errand: Errand | None = None) -> None:
        self._group.create_task(work, context=None if errand is None else carrying(errand))

    def read(self) -> list[Digest]:
        """Blobs in the order they were asked for, after the first."""
        asked = []
        for request in self.fake.requests:
            if isinstance(request, bytestream.ReadRequest):
                asked.append(request.resource_name.split("/")[1])
            elif isinstance(request, reapi.BatchReadBlobsRequest):
                asked += [digest.hash for digest in request.digests]
        by_hash = {digest.hash_hex: digest for digest in self.fake.blobs}
        return [by_hash[name] for name in asked[1:]]


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    async with (
        remote_world(RemoteOptions(max_concurrent=1)) as (fake, client),
        local_world() as local,
        CachedStore(local, client, Partials(f"{local.layout.root}/partial", RealDisk(), local)) as store,
        asyncio.TaskGroup() as group,
    ):
        made = World(fake, store, group)
        fake.fail("Read", Fault(gate=made.open))
        made.begin(store.fetch(fake.add(os.urandom(MIB))))
        await fake.called("Read")
        yield made
        made.open.set()


def test_a_reader_goes_before_what_is_fetched_ahead() -> None:
    async def test() -> None:
        async with world() as here:
            ahead, wanted = (here.fake.add(os.urandom(MIB)) for _ in range(2))
            here.begin(here.store.fetch(ahead), Errand())
            await asyncio.sleep(0)
            here.begin(here.store.fetch(wanted))
        assert here.read() == [wanted, ahead]

    run(test)


def test_small_blobs_of_one_turn_travel_apart() -> None:
    async def test() -> None:
        async with world() as here:
            ahead, wanted = (here.fake.add(os.urandom(100)) for _ in range(2))
            here.begin(here.store.fetch(ahead), Errand())
            here.begin(here.store.fetch(wanted))
        assert here.read() == [wanted, ahead]
        assert here.fake.calls.count("BatchReadBlobs") == 2

    run(test)


def test_a_reader_who_comes_later_hurries_the_flight() -> None:
    async def test() -> None:
        async with world() as here:
            first, second = (here.fake.add(os.urandom(MIB)) for _ in range(2))
            for digest in (first, second):
                here.begin(here.store.fetch(digest), Errand())
            for _ in range(5):
                await asyncio.sleep(0)
            here.begin(here.store.fetch(second))
        assert here.read() == [second, first]

    run(test)


def test_of_a_large_blob_what_is_read_goes_before_what_lies_ahead() -> None:
    async def test() -> None:
        async with world() as here:
            large, other = here.fake.add(os.urandom(6 * MIB)), here.fake.add(os.urandom(MIB))
            ranges = here.store.ranges(large)
            assert ranges is not None
            here.begin(here.store.fetch(other), Errand())
            await asyncio.sleep(0)
            here.begin(ranges.need(0, 4096))
            here.open.set()
            await until(lambda: len(here.read()) >= 2)
            ranges.close()
        assert here.read()[:2] == [large, other]

    run(test)


def test_a_server_that_pushes_back_gets_less() -> None:
    async def test() -> None:
        async with remote_world() as (fake, client):
            before = client.line.limit
            digest = fake.add(b"data")
            throttled = Fault(code=grpc.StatusCode.RESOURCE_EXHAUSTED)
            fake.fail("BatchReadBlobs", throttled)
            assert await client.read_batch([digest]) == {digest: b"data"}
            assert client.line.limit == before // 2
            fake.fail(
                "BatchReadBlobs", Fault(code=grpc.StatusCode.RESOURCE_EXHAUSTED, blob=digest)
            )  # said of one blob alone
            assert await client.read_batch([digest]) == {digest: b"data"}
            assert client.line.limit == before // 4

    run(test)


def test_within_unhurried_nobody_waits() -> None:
    assert urgent()
    with unhurried():
        assert not urgent()
    assert urgent()
