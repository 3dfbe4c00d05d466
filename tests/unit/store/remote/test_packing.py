"""Blobs that travel as Zstandard: when they do, and what comes of bytes that are none."""

from __future__ import annotations

import os
from contextlib import aclosing

import pytest

from outputd._proto import bytestream_pb2 as bytestream
from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest
from outputd.errors import Corrupt
from outputd.store.remote import RemoteOptions, RemoteStore
from outputd.store.remote.endpoint import parse_endpoint
from tests.unit.store.fake_remote import FakeRemote, Fault
from tests.unit.store.remote.operations import absent, source, stream
from tests.unit.store.worlds import remote_world, run

OPTIONS = RemoteOptions(timeout=5.0, retry_seconds=5.0, compression="zstd")
TEXT = b"".join(b"line %d of a text\n" % number for number in range(40_000))
NOISE = os.urandom(300_000)


def read_requests(fake: FakeRemote) -> list[bytestream.ReadRequest]:
    return [request for request in fake.requests if isinstance(request, bytestream.ReadRequest)]


def packed_reads(fake: FakeRemote) -> list[bool]:
    return ["compressed-blobs/zstd/" in request.resource_name for request in read_requests(fake)]


def packed_writes(fake: FakeRemote) -> list[bool]:
    return [
        "compressed-blobs/zstd/" in request.resource_name
        for request in fake.requests
        if isinstance(request, bytestream.WriteRequest)
    ]


class TestWhen:
    @pytest.mark.parametrize("offset", [0, 1, 65_537, len(TEXT) - 2000])
    def test_reads_begin_anywhere(self, offset: int) -> None:
        async def test() -> None:
            async with remote_world(OPTIONS) as (fake, client):
                fake.offer_zstd()
                assert await stream(client, fake.add(TEXT), offset) == TEXT[offset:]
                assert packed_reads(fake) == [True]

        run(test)

    @pytest.mark.parametrize("compression", ["off", "auto"])
    def test_not_when_off_nor_on_this_machine(self, compression: str) -> None:
        async def test() -> None:
            async with remote_world(RemoteOptions(compression=compression)) as (fake, client):
                fake.offer_zstd()
                digest = fake.add(TEXT)
                assert await stream(client, digest) == TEXT
                await client.read_batch([digest])
                await client.write(absent(TEXT * 2), source(TEXT * 2))
                await client.write_batch({absent(TEXT[1:]): TEXT[1:]})
                assert packed_reads(fake) == [False]
                assert packed_writes(fake) == [False]
                for request in fake.requests:
                    if isinstance(request, reapi.BatchReadBlobsRequest):
                        assert not request.acceptable_compressors
                    if isinstance(request, reapi.BatchUpdateBlobsRequest):
                        assert not request.requests[0].compressor

        run(test)

    def test_not_unless_offered(self) -> None:
        async def test() -> None:
            async with remote_world(OPTIONS) as (fake, client):
                assert await stream(client, fake.add(TEXT)) == TEXT
                await client.write(absent(TEXT * 2), source(TEXT * 2))
                assert packed_reads(fake) == packed_writes(fake) == [False]

        run(test)

    @pytest.mark.parametrize(
        ("url", "near"),
        [
            ("unix:/socket", True),
            ("grpc://localhost:1", True),
            ("grpc://127.8.0.1:1", True),
            ("grpc://[::1]:1", True),
            ("grpc://10.0.0.1:1", False),
            ("cache.example.com", False),
        ],
    )
    def test_what_is_on_this_machine(self, url: str, near: bool) -> None:
        assert parse_endpoint(url).near is near

    def test_a_short_range_is_asked_for_with_its_end(self) -> None:
        async def test() -> None:
            async with remote_world(OPTIONS) as (fake, client):
                fake.offer_zstd()
                digest = fake.add(TEXT)
                assert await limited(client, digest, 1000, 5000) == TEXT[1000:6000]
                assert packed_reads(fake) == [False]
                assert read_requests(fake)[0].read_limit == 5000

        run(test)

    def test_a_long_range_is_cut_by_us(self) -> None:
        async def test() -> None:
            async with remote_world(OPTIONS) as (fake, client):
                fake.offer_zstd()
                data = TEXT * 30
                digest = fake.add(data)
                assert await limited(client, digest, 100, 9 << 20) == data[100 : 100 + (9 << 20)]
                assert packed_reads(fake) == [True]

        run(test)

    def test_what_becomes_no_smaller_goes_as_it_is(self) -> None:
        async def test() -> None:
            async with remote_world(OPTIONS) as (fake, client):
                fake.offer_zstd()
                for data in (TEXT, NOISE, b"tiny"):
                    await client.write(absent(data), source(data))
                    assert fake.blobs[absent(data)] == data
                assert packed_writes(fake) == [True, False, False]

        run(test)

    def test_batches(self) -> None:
        async def test() -> None:
            async with remote_world(OPTIONS) as (fake, client):
                fake.offer_zstd()
                blobs = {absent(data): data for data in (TEXT, NOISE, b"tiny")}
                assert await client.write_batch(blobs) == {}
                assert fake.blobs == blobs
                [update] = [r for r in fake.requests if isinstance(r, reapi.BatchUpdateBlobsRequest)]
                assert [bool(item.compressor) for item in update.requests] == [True, False, False]
                assert len(update.requests[0].data) < len(TEXT) / 4
                assert await client.read_batch(blobs) == blobs
                [read] = [r for r in fake.requests if isinstance(r, reapi.BatchReadBlobsRequest)]
                assert list(read.acceptable_compressors) == [reapi.Compressor.ZSTD]

        run(test)


class TestFaults:
    def test_a_cut_stream_goes_on_where_it_stopped(self) -> None:
        async def test() -> None:
            async with remote_world(OPTIONS) as (fake, client):
                fake.offer_zstd()
                data = NOISE + TEXT
                fake.fail("Read", Fault(after=200_000))
                assert await stream(client, fake.add(data)) == data
                assert packed_reads(fake) == [True, True]
                assert 0 < read_requests(fake)[1].read_offset < len(data)

        run(test)

    @pytest.mark.parametrize("fault", [Fault(damaged=True), Fault(bomb=50 << 20)])
    def test_what_cannot_be_unpacked_is_asked_for_as_it_is(self, fault: Fault) -> None:
        async def test() -> None:
            async with remote_world(OPTIONS) as (fake, client):
                fake.offer_zstd()
                fake.plan = lambda _: fault
                digest = fake.add(NOISE)
                assert await stream(client, digest) == NOISE
                assert packed_reads(fake) == [True, False]
                assert await client.read_batch([digest]) == {digest: NOISE}

        run(test)

    def test_a_packed_blob_that_is_another_is_corrupt(self) -> None:
        async def test() -> None:
            async with remote_world(OPTIONS) as (fake, client):
                fake.offer_zstd()
                digest = fake.add(TEXT)
                fake.fail("BatchReadBlobs", Fault(wrong=True))
                [answer] = (await client.read_batch([digest])).values()
                assert isinstance(answer, Corrupt)

        run(test)

    def test_uploads_that_the_server_cannot_unpack_go_as_they_are(self) -> None:
        async def test() -> None:
            async with remote_world(OPTIONS) as (fake, client):
                fake.offer_zstd()
                fake.plan = lambda _: Fault(damaged=True)
                await client.write(absent(TEXT), source(TEXT))
                assert packed_writes(fake) == [True, False]
                other = TEXT + b"more"
                assert await client.write_batch({absent(other): other}) == {}
                assert fake.blobs == {absent(TEXT): TEXT, absent(other): other}

        run(test)

    def test_frames_that_never_give_a_byte_do_not_keep_us(self) -> None:
        # A skippable frame (RFC 8878, section 3.1.2) of no bytes, over and over.
        nothing = bytes.fromhex("502a4d1800000000")

        async def test() -> None:
            async with remote_world(OPTIONS) as (fake, client):
                fake.offer_zstd()
                digest = fake.add(TEXT)
                fake.fail("Read", Fault(empty=2000, raw=nothing))
                with pytest.raises(Corrupt, match="without a byte"):
                    await stream(client, digest)

        run(test)


async def limited(client: RemoteStore, digest: Digest, offset: int, limit: int) -> bytes:
    async with aclosing(client.read_stream(digest, offset, limit)) as pieces:
        return b"".join([piece async for piece in pieces])
