"""Writing blobs: batches and streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc
import grpc.aio
import pytest

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import DigestFunction, empty_digest
from outputd.errors import Invalid, NotFound
from tests.unit.store.fake_remote import Fault
from tests.unit.store.remote.operations import absent, source
from tests.unit.store.worlds import remote_world, run

Code = grpc.StatusCode
SHA256 = DigestFunction.SHA256


class TestWrite:
    DATA = bytes(range(256)) * 20_000

    @pytest.mark.parametrize("piece", [10_000, 3 << 20])
    def test_a_blob_arrives(self, piece: int) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                digest = absent(self.DATA)
                await client.write(digest, source(self.DATA, piece))
                assert fake.blobs == {digest: self.DATA}

        run(test)

    def test_a_blob_that_is_there_is_not_sent_to_its_end(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                data = bytes(64 << 20)
                digest = fake.add(data)
                await client.write(digest, source(data, 1 << 20))
                assert fake.calls.count("Write") == 1

        run(test)

    def test_it_is_sent_again_when_the_stream_breaks_or_the_server_kept_less(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                digest = absent(self.DATA)
                fake.fail("Write", *[Fault(code=Code.UNAVAILABLE, after=after) for after in (0, 1_000_000)])
                await client.write(digest, source(self.DATA))
                assert fake.blobs == {digest: self.DATA}
                fake.blobs.clear()
                fake.committed_size = 17
                await client.write(digest, source(self.DATA))
                assert fake.calls.count("Write") == 5

        run(test)

    def test_wrong_bytes_are_refused(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                digest = absent(b"right")
                with pytest.raises(Invalid, match=digest.hash_hex):
                    await client.write(digest, source(b"wrong"))
                assert fake.blobs == {}

        run(test)

    def test_an_error_of_the_source_ends_the_call(self) -> None:
        async def failing() -> AsyncGenerator[bytes]:
            yield b"some"
            raise NotFound("gone while it was read")

        async def test() -> None:
            async with remote_world() as (fake, client):
                with pytest.raises(NotFound, match="gone while"):
                    await client.write(absent(b"something"), failing)
                assert fake.blobs == {}

        run(test)

    def test_the_empty_blob_is_not_sent(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                empty = empty_digest(SHA256)
                await client.write(empty, source(b""))
                await client.write_batch({empty: b""})
                assert not {"Write", "BatchUpdateBlobs"} & set(fake.calls)

        run(test)

    def test_batches_keep_to_the_limit_and_larger_blobs_are_streamed(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                fake.limit_batches(1000)
                blobs = {absent(data): data for data in (b"%03d" % i * 60 for i in range(20))}
                blobs |= {absent(b"large" * 300): b"large" * 300}
                await client.write_batch(blobs)
                assert fake.blobs == blobs
                assert (fake.calls.count("BatchUpdateBlobs"), fake.calls.count("Write")) == (7, 1)

        run(test)

    @pytest.mark.parametrize("fault", [Fault(code=Code.ABORTED), Fault()])
    def test_a_blob_that_failed_for_a_moment_is_sent_again_alone(self, fault: Fault) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                blobs = {absent(data): data for data in (b"one", b"two")}
                fake.fail("BatchUpdateBlobs", Fault(code=fault.code, blob=absent(b"two")))
                await client.write_batch(blobs)
                assert fake.blobs == blobs
                second = fake.requests[-1]
                assert isinstance(second, reapi.BatchUpdateBlobsRequest)
                assert [item.data for item in second.requests] == [b"two"]

        run(test)

    def test_a_batch_with_wrong_bytes_is_refused(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                failures = await client.write_batch({absent(b"right"): b"wrong", absent(b"one"): b"one"})
                [(digest, error)] = failures.items()
                assert digest == absent(b"right")
                assert isinstance(error, Invalid)
                assert digest.hash_hex in str(error)
                assert fake.blobs == {absent(b"one"): b"one"}
                assert fake.calls.count("BatchUpdateBlobs") == 1

        run(test)

    def test_a_server_without_batches_gets_streams(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                fake.fail("BatchUpdateBlobs", Fault(code=Code.UNIMPLEMENTED))
                await client.write_batch({absent(b"one"): b"one"})
                assert fake.blobs == {absent(b"one"): b"one"}

        run(test)
