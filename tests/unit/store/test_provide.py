"""What a client must upload, when the remote lacks what the local store holds."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc
import pytest

from outputd.digest import Digest, DigestFunction
from outputd.errors import NotFound
from outputd.store.cached import _SMALL
from tests.unit.store.fake_remote import Fault
from tests.unit.store.worlds import cached_world, run


def digest_of(data: bytes) -> Digest:
    return Digest.of(DigestFunction.SHA256, data)


def test_small_blobs_that_only_we_hold_reach_the_remote_and_need_not_be_sent() -> None:
    async def test() -> None:
        async with cached_world() as (fake, local, store):
            there = fake.add(b"at the remote")
            here, nowhere = digest_of(b"only here"), digest_of(b"nowhere")
            large = bytes(_SMALL + 1)
            local.put(here, b"only here")
            local.put(digest_of(large), large)
            assert await store.provide([there, here, nowhere, digest_of(large)]) == {
                nowhere,
                digest_of(large),
            }
            assert fake.blobs[here] == b"only here"
            assert fake.calls.count("BatchUpdateBlobs") == 1
            assert await store.provide([there, here]) == set()
            assert fake.calls.count("BatchUpdateBlobs") == 1

    run(test)


def test_what_the_remote_does_not_take_from_us_the_client_is_asked_for() -> None:
    async def test() -> None:
        async with cached_world() as (fake, local, store):
            here, other = digest_of(b"only here"), digest_of(b"here, too")
            local.put(here, b"only here")
            local.put(other, b"here, too")
            fake.fail("BatchUpdateBlobs", Fault(code=grpc.StatusCode.INVALID_ARGUMENT, blob=here))
            assert await store.provide([here, other]) == {here}

    run(test)


def test_there_is_a_limit_to_what_a_client_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outputd.store.cached._PROVIDED_BYTES", 25)

    async def test() -> None:
        async with cached_world() as (fake, local, store):
            blobs = [f"only here {number}".encode() for number in range(5)]
            for data in blobs:
                local.put(digest_of(data), data)
            assert len(await store.provide(list(map(digest_of, blobs)))) == 3
            assert len(fake.blobs) == 2

    run(test)


def test_a_large_one_goes_from_here_when_it_is_written() -> None:
    async def test() -> None:
        async with cached_world() as (fake, local, store):
            data = bytes(_SMALL + 1)
            local.put(digest_of(data), data)

            async def unread() -> AsyncGenerator[bytes]:
                for _ in range(1):
                    raise AssertionError("the client's bytes were read")
                yield b""

            await store.write(digest_of(data), unread())
            assert fake.blobs[digest_of(data)] == data
            with pytest.raises(NotFound):
                await store.fetch(digest_of(b"nowhere"))

    run(test)
