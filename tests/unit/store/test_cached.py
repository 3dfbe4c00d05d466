"""The local store before the remote one: one flight per digest, batches, verification, and what waiters see."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator

import grpc
import pytest

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction, empty_digest
from outputd.disk.disk import RealDisk
from outputd.errors import Corrupt, Exhausted, NotFound, OutputdError, Unavailable, Unproven
from outputd.store.base import BlobStore
from outputd.store.cached import CachedStore
from outputd.store.disk_store import DiskStore
from outputd.store.remote import RemoteOptions, retry
from tests.unit.store.fake_remote import Fault, other
from tests.unit.store.worlds import HASTY, cached_world, local_world, remote_world, run

SHA256 = DigestFunction.SHA256
SMALL = b"small blob"
LARGE = bytes(range(256)) * 4000
"""A megabyte: it goes in a stream, in several strides."""
BOTH = pytest.mark.parametrize(
    ("data", "method"), [(SMALL, "BatchReadBlobs"), (LARGE, "Read")], ids=["small", "large"]
)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_INTERVAL", 0.005)


def digest_of(data: bytes) -> Digest:
    return Digest.of(SHA256, data)


async def source(*pieces: bytes) -> AsyncGenerator[bytes]:
    for piece in pieces:
        yield piece


async def outcome(store: BlobStore, digest: Digest) -> OutputdError | None:
    try:
        await store.fetch(digest)
    except OutputdError as error:
        return error
    return None


class TestFetch:
    @BOTH
    def test_a_blob_is_brought_once_and_kept(self, data: bytes, method: str) -> None:
        async def test() -> None:
            async with cached_world() as (fake, local, store):
                digest = fake.add(data)
                await store.fetch(digest)
                assert local.read(digest) == data
                await store.fetch(digest)
                assert await store.read(digest) == data
                assert fake.calls.count(method) == 1

        run(test)

    @BOTH
    def test_all_who_ask_share_one_flight(self, data: bytes, method: str) -> None:
        async def test() -> None:
            async with cached_world() as (fake, _, store):
                digest = fake.add(data)
                gate = asyncio.Event()
                fake.fail(method, Fault(gate=gate))
                async with asyncio.TaskGroup() as group:
                    for _ in range(10):
                        group.create_task(store.fetch(digest))
                    await fake.called(method)
                    group.create_task(store.fetch(digest))
                    many = group.create_task(store.fetch_many([digest]))
                    await asyncio.sleep(0)
                    gate.set()
                assert many.result() == {}
                assert fake.calls.count(method) == 1

        run(test)

    @BOTH
    def test_who_gives_up_does_not_harm_the_others(self, data: bytes, method: str) -> None:
        async def test() -> None:
            async with cached_world() as (fake, local, store):
                digest = fake.add(data)
                gate = asyncio.Event()
                fake.fail(method, Fault(gate=gate))
                async with asyncio.TaskGroup() as group:
                    first = group.create_task(store.fetch(digest))
                    group.create_task(store.fetch(digest))
                    await fake.called(method)
                    first.cancel()
                    await asyncio.wait([first])
                    assert first.cancelled()
                    gate.set()
                assert local.has(digest)
                assert fake.calls.count(method) == 1

        run(test)

    @BOTH
    def test_when_nobody_waits_any_more_the_flight_ends_and_the_next_begins_anew(
        self, data: bytes, method: str
    ) -> None:
        async def test() -> None:
            # With a client that would wait for longer than this test may take.
            async with cached_world(RemoteOptions(timeout=60)) as (fake, local, store):
                digest = fake.add(data)
                fake.fail(method, Fault(hang=True))
                async with asyncio.TaskGroup() as group:
                    waiters = [group.create_task(store.fetch(digest)) for _ in range(2)]
                    await fake.called(method)
                    for waiter in waiters:
                        waiter.cancel()
                    await fake.ended(method)
                assert not local.has(digest)
                await store.fetch(digest)
                assert local.has(digest)
                assert fake.calls.count(method) == 2

        run(test)

    def test_a_blob_nobody_wants_any_more_does_not_end_the_batch_of_others(self) -> None:
        async def test() -> None:
            async with cached_world() as (fake, local, store):
                one, two = fake.add(b"one"), fake.add(b"two")
                gate = asyncio.Event()
                fake.fail("BatchReadBlobs", Fault(gate=gate))
                async with asyncio.TaskGroup() as group:
                    first = group.create_task(store.fetch(one))
                    group.create_task(store.fetch(two))
                    await fake.called("BatchReadBlobs")
                    first.cancel()
                    await asyncio.wait([first])
                    gate.set()
                assert local.has(two)

        run(test)

    def test_small_blobs_asked_for_at_once_travel_together(self) -> None:
        async def test() -> None:
            async with cached_world() as (fake, local, store):
                digests = [fake.add(b"%d" % number) for number in range(100)]
                async with asyncio.TaskGroup() as group:
                    for digest in digests:
                        group.create_task(store.fetch(digest))
                assert fake.calls.count("BatchReadBlobs") == 1
                assert local.missing(digests) == set()

        run(test)

    def test_a_batch_has_its_limit(self) -> None:
        async def test() -> None:
            async with cached_world() as (fake, _, store):
                digests = [fake.add(bytes([number]) * 200_000) for number in range(25)]
                assert await store.fetch_many(digests) == {}
                assert fake.calls.count("BatchReadBlobs") == 3

        run(test)

    def test_functions_do_not_mix(self) -> None:
        async def test() -> None:
            async with cached_world() as (fake, local, store):
                functions = [function for function in DigestFunction if function.supported]
                fake.offer(*functions)
                small = [fake.add(SMALL, function) for function in functions]
                large = [fake.add(LARGE, function) for function in functions]
                assert await store.fetch_many(small + large) == {}
                assert local.missing(small + large) == set()

        run(test)

    def test_the_empty_blob_needs_nobody(self) -> None:
        async def test() -> None:
            async with cached_world() as (fake, _, store):
                await store.fetch(empty_digest(SHA256))
                assert await store.read(empty_digest(SHA256)) == b""
                assert fake.calls == []

        run(test)


class TestFailures:
    @BOTH
    def test_wrong_bytes_are_asked_for_once_more(self, data: bytes, method: str) -> None:
        async def test() -> None:
            async with cached_world() as (fake, local, store):
                digest = fake.add(data)
                fake.fail(method, Fault(wrong=True))
                await store.fetch(digest)
                assert local.read(digest) == data
                assert fake.calls.count(method) == 2

        run(test)

    @BOTH
    def test_a_remote_that_insists_on_wrong_bytes_is_corrupt_and_nothing_is_kept(
        self, data: bytes, method: str
    ) -> None:
        async def test() -> None:
            async with cached_world() as (fake, local, store):
                digest, good = fake.add(data), fake.add(b"good")
                fake.blobs[digest] = other(data)
                failures = await store.fetch_many([digest, good])
                assert list(failures) == [digest]
                assert isinstance(failures[digest], Corrupt)
                assert digest.hash_hex in str(failures[digest])
                assert not local.has(digest)
                assert local.has(good)
                assert await left_over(local) == []
                assert 2 <= fake.calls.count(method) <= 3

        run(test)

    @BOTH
    def test_a_blob_nobody_has(self, data: bytes, method: str) -> None:
        async def test() -> None:
            async with cached_world() as (fake, _, store):
                with pytest.raises(NotFound, match=f"{digest_of(data).hash_hex}.*{fake.url}"):
                    await store.fetch(digest_of(data))
                # It is asked for again: it may have come meanwhile.
                digest = fake.add(data)
                await store.fetch(digest)

        run(test)

    @BOTH
    def test_every_waiter_is_told(self, data: bytes, method: str) -> None:
        async def test() -> None:
            async with cached_world() as (fake, _, store):
                digest = fake.add(data)
                fake.fail(method, Fault(code=grpc.StatusCode.UNAUTHENTICATED))
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(outcome(store, digest)) for _ in range(3)]
                assert [type(task.result()) for task in tasks] == [Unproven] * 3
                assert fake.calls.count(method) == 1

        run(test)

    @BOTH
    def test_a_remote_that_dies_midway(self, data: bytes, method: str) -> None:
        async def test() -> None:
            async with cached_world(HASTY) as (fake, local, store):
                digest = fake.add(data)
                here = digest_of(b"here already")
                local.put(here, b"here already")
                fake.fail("Read", Fault(code=grpc.StatusCode.UNAVAILABLE, after=300_000))
                fake.fail(method, *[Fault(code=grpc.StatusCode.UNAVAILABLE)] * 1000)
                with pytest.raises(Unavailable, match=fake.url):
                    await store.fetch(digest)
                assert await left_over(local) == []
                # What is here needs no remote.
                await fake.stop()
                await store.fetch(here)
                assert await store.read(here) == b"here already"

        run(test)

    @BOTH
    def test_no_room(self, data: bytes, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
        async def test() -> None:
            async with cached_world() as (fake, local, store):
                digest = fake.add(data)

                def full(*_: object) -> None:
                    raise OSError(28, "No space left on device")

                monkeypatch.setattr(RealDisk, "write", full)
                with pytest.raises(Exhausted, match=f"{digest.hash_hex}.*bytes and"):
                    await store.fetch(digest)
                monkeypatch.undo()
                assert await left_over(local) == []
                await store.fetch(digest)

        run(test)

    @BOTH
    def test_our_own_fault_stops_the_request_and_not_the_store(
        self, data: bytes, method: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def test() -> None:
            async with cached_world() as (fake, _, store):
                digest = fake.add(data)

                def broken(*_: object, **__: object) -> None:
                    raise AssertionError("a mistake of ours")

                monkeypatch.setattr(DiskStore, "writer", broken)
                with pytest.raises(AssertionError, match="a mistake of ours"):
                    await store.fetch(digest)
                monkeypatch.undo()
                await store.fetch(digest)

        run(test)

    def test_fetch_many_names_each_failure(self) -> None:
        async def test() -> None:
            async with cached_world() as (fake, local, store):
                good = [fake.add(b"%d" % number) for number in range(300)]
                gone = [digest_of(b"gone %d" % number) for number in range(3)]
                failures = await store.fetch_many([*good, *gone, digest_of(LARGE)])
                assert {digest: type(error) for digest, error in failures.items()} == dict.fromkeys(
                    [*gone, digest_of(LARGE)], NotFound
                )
                assert local.missing(good) == set()

        run(test)

    def test_without_a_remote(self) -> None:
        async def test() -> None:
            async with cached_world() as (_, local, _), CachedStore(local, None) as store:
                digest = digest_of(SMALL)
                with pytest.raises(NotFound, match=f"{digest.hash_hex}.*there is no remote"):
                    await store.fetch(digest)
                with pytest.raises(NotFound):
                    await store.read(digest)
                assert [type(error) for error in (await store.fetch_many([digest])).values()] == [NotFound]
                assert await store.find_missing([digest, empty_digest(SHA256)]) == {digest}
                await store.write(digest, source(SMALL))
                assert await store.find_missing([digest]) == set()
                assert await store.read(digest) == SMALL

        run(test)


class TestClosing:
    @BOTH
    def test_who_still_waits_is_told(self, data: bytes, method: str) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client), local_world() as local:
                digest = fake.add(data)
                fake.fail(method, Fault(hang=True))
                async with asyncio.TaskGroup() as group, CachedStore(local, client) as closing:
                    task = group.create_task(outcome(closing, digest))
                    await fake.called(method)
                    late = fake.add(b"asked for in the last moment")
                    last = group.create_task(outcome(closing, late))
                    await asyncio.sleep(0)
                assert fake.calls.count(method) == 1
                for error in (task.result(), last.result()):
                    assert isinstance(error, Unavailable)
                    assert "closing" in str(error)
                assert await left_over(local) == []
                with pytest.raises(Unavailable, match="closing"):
                    await closing.fetch(digest)

        run(test)


class TestFindMissing:
    def test_the_remote_is_asked_for_all_and_what_is_here_is_not_missing(self) -> None:
        async def test() -> None:
            async with cached_world() as (fake, local, store):
                here, there, nowhere = digest_of(b"here"), fake.add(b"there"), digest_of(b"nowhere")
                local.put(here, b"here")
                assert await store.find_missing([here, there, nowhere]) == {nowhere}
                request = fake.requests[-1]
                assert isinstance(request, reapi.FindMissingBlobsRequest)
                assert len(request.blob_digests) == 3

        run(test)

    def test_it_is_unavailable_when_the_remote_is(self) -> None:
        async def test() -> None:
            async with cached_world(HASTY) as (fake, local, store):
                local.put(digest_of(b"here"), b"here")
                await fake.stop()
                with pytest.raises(Unavailable):
                    await store.find_missing([digest_of(b"here")])

        run(test)


class TestWrite:
    @BOTH
    def test_a_blob_goes_to_both(self, data: bytes, method: str) -> None:
        async def test() -> None:
            async with cached_world() as (fake, local, store):
                digest = digest_of(data)
                await store.write(digest, source(data[:7], b"", data[7:]))
                assert local.read(digest) == data
                assert fake.blobs == {digest: data}

        run(test)

    @BOTH
    def test_one_that_is_here_is_not_read_again_but_goes_to_the_remote(
        self, data: bytes, method: str
    ) -> None:
        async def test() -> None:
            async with cached_world() as (fake, local, store):
                local.put(digest_of(data), data)
                await store.write(digest_of(data), source(b"it would be refused if it were read"))
                assert fake.blobs == {digest_of(data): data}

        run(test)

    @BOTH
    def test_wrong_bytes_go_nowhere(self, data: bytes, method: str) -> None:
        async def test() -> None:
            async with cached_world() as (fake, local, store):
                digest = digest_of(data)
                for wrong in (other(data), data + b"x", data[:-1], b""):
                    with pytest.raises(Corrupt, match=digest.hash_hex):
                        await store.write(digest, source(wrong))
                assert not local.has(digest)
                assert fake.blobs == {}
                assert await left_over(local) == []

        run(test)

    @BOTH
    def test_it_is_not_done_before_the_remote_has_it(self, data: bytes, method: str) -> None:
        async def test() -> None:
            async with cached_world(HASTY) as (fake, local, store):
                await fake.stop()
                with pytest.raises(Unavailable):
                    await store.write(digest_of(data), source(data))
                # The next try needs only the rest.
                assert local.has(digest_of(data))

        run(test)

    def test_a_cancelled_upload_leaves_nothing(self) -> None:
        async def test() -> None:
            taken = asyncio.Event()

            async def endless() -> AsyncGenerator[bytes]:
                yield LARGE[:500_000]
                taken.set()
                await asyncio.get_running_loop().create_future()

            async with cached_world() as (fake, local, store):
                task = asyncio.ensure_future(store.write(digest_of(LARGE), endless()))
                await taken.wait()
                assert await left_over(local) != []
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
                assert await left_over(local) == []
                assert fake.blobs == {}

        run(test)


def test_what_takes_long_is_not_done_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: dict[bool, int] = {True: 0, False: 0}
    loop_thread = threading.get_ident()
    real_write = RealDisk.write

    def write(disk: RealDisk, fd: int, data: bytes | bytearray | memoryview) -> None:
        writes[threading.get_ident() == loop_thread] += len(data)
        real_write(disk, fd, data)

    async def test() -> None:
        async with cached_world() as (fake, _, store):
            writes[True] = 0  # what the store writes of itself when it is opened
            large = fake.add(LARGE)
            many = [fake.add(b"%d" % number * 1000) for number in range(100)]
            assert await store.fetch_many([large, *many]) == {}
            await store.write(digest_of(LARGE[1:]), source(LARGE[1:]))
            assert writes[True] == 0
            assert writes[False] > 2_000_000
            # A thread costs more than one small file.
            await store.fetch(fake.add(SMALL))
            await store.write(digest_of(SMALL * 2), source(SMALL * 2))
            assert writes[True] == 3 * len(SMALL)

    monkeypatch.setattr(RealDisk, "write", write)
    run(test)


async def left_over(local: DiskStore) -> list[str]:
    """Temporaries; after a cancellation the last write of a thread may have to end first."""
    await asyncio.sleep(0)
    top = local.layout.tmp
    return [name for process in os.listdir(top) for name in os.listdir(f"{top}/{process}")]
