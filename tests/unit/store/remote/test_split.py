"""Asking a server for the chunks of a blob."""

from __future__ import annotations

import grpc
import pytest

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction
from outputd.errors import Corrupt, Unsupported
from tests.unit.store.fake_remote import Fault
from tests.unit.store.remote.operations import absent
from tests.unit.store.worlds import remote_world, run

DATA = bytes(range(256)) * 40


def test_the_chunks_in_order() -> None:
    async def test() -> None:
        async with remote_world() as (fake, client):
            digest = fake.add(DATA)
            chunks = fake.cut(digest, 1000)
            assert await client.split(digest) == chunks
            [request] = [one for one in fake.requests if isinstance(one, reapi.SplitBlobRequest)]
            assert request.digest_function == reapi.DigestFunction.Value.Value("SHA256")

    run(test)


def test_a_long_list() -> None:
    async def test() -> None:
        async with remote_world() as (fake, client):
            digest = fake.add(DATA)
            chunks = fake.cut(digest, 20)
            assert await client.split(digest) == chunks

    run(test)


def test_one_that_offers_none_is_not_asked_and_one_that_knows_none_says_so() -> None:
    async def test() -> None:
        async with remote_world() as (fake, client):
            assert await client.split(absent(b"gone")) is None
            assert "SplitBlob" not in fake.calls
        async with remote_world() as (fake, client):
            fake.cut(fake.add(DATA), 1000)
            assert await client.split(absent(b"gone")) is None
            assert "SplitBlob" in fake.calls

    run(test)


def test_one_that_does_not_know_the_call_is_not_asked_again() -> None:
    async def test() -> None:
        async with remote_world() as (fake, client):
            digest = fake.add(DATA)
            fake.cut(digest, 1000)
            fake.fail("SplitBlob", Fault(grpc.StatusCode.UNIMPLEMENTED))
            with pytest.raises(Unsupported):
                await client.split(digest)
            assert await client.split(digest) is None
            assert fake.calls.count("SplitBlob") == 1

    run(test)


def test_what_is_no_answer() -> None:
    async def test() -> None:
        async with remote_world() as (fake, client):
            digest = fake.add(DATA)
            fake.cut(digest, 1000)
            fake.fail("SplitBlob", Fault(garbage=True))
            with pytest.raises(Corrupt, match="no SplitBlobResponse"):
                await client.split(digest)
            fake.chunks[digest] = [Digest.make(DigestFunction.SHA256, b"short", 4)]
            with pytest.raises(Corrupt, match="malformed"):
                await client.split(digest)

    run(test)
