"""Our client against servers of other projects: what one client uploads, the other reads, byte for byte."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from outputd.digest import Digest, DigestFunction, empty_digest
from outputd.disk.disk import RealDisk
from outputd.errors import Invalid, NotFound, OutputdError, Unavailable
from outputd.store.cached import CachedStore
from outputd.store.disk_store import DiskStore
from outputd.store.remote import RemoteOptions, RemoteStore
from tests.interop.servers import Server, buildbox_casd, buildgrid

LARGE = 50 << 20


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    # pytest's own directories have paths too long for a socket.
    with tempfile.TemporaryDirectory(prefix="outputd-test-") as name:
        yield Path(name)


@pytest.fixture(scope="module", params=[buildgrid, buildbox_casd], ids=["buildgrid", "casd"])
def server(request: pytest.FixtureRequest, directory: Path) -> Iterator[Server]:
    with request.param(directory / request.param.__name__) as running:
        yield running


@asynccontextmanager
async def client_of(server: Server, patience: float = 20.0) -> AsyncIterator[RemoteStore]:
    client = RemoteStore(server.url, options=RemoteOptions(timeout=patience, retry_seconds=patience))
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def store_of(server: Server, root: Path, patience: float = 20.0) -> AsyncIterator[CachedStore]:
    local = DiskStore(str(root), RealDisk())
    async with client_of(server, patience) as client, CachedStore(local, client) as store:
        yield store
    local.close()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 110))


def digest_of(data: bytes) -> Digest:
    return Digest.of(DigestFunction.SHA256, data)


async def source(data: bytes) -> AsyncGenerator[bytes]:
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


def test_capabilities(server: Server) -> None:
    async def test() -> None:
        async with client_of(server) as client:
            abilities = await client.abilities()
            assert DigestFunction.SHA256 in abilities.digest_functions
            assert abilities.max_batch_bytes > 0
            assert abilities.api_version.startswith("2.")

    run(test)


def test_what_another_client_uploads_is_read_here(server: Server, tmp_path: Path) -> None:
    contents = [
        b"x",
        os.urandom(1000),
        os.urandom(256 << 10),
        os.urandom((256 << 10) + 1),
        os.urandom(9 << 20),
    ]
    files = []
    for number, content in enumerate(contents):
        files.append(tmp_path / f"file{number}")
        files[-1].write_bytes(content)
    digests = server.upload(*files)

    async def test() -> None:
        async with store_of(server, tmp_path / "cas") as store:
            assert await store.find_missing(digests) == set()
            assert store.local.missing(digests) == set(digests)
            assert await store.fetch_many(digests) == {}
            assert [await store.read(digest) for digest in digests] == contents

    run(test)
    again = DiskStore(str(tmp_path / "cas"), RealDisk())
    assert [again.read(digest) for digest in digests] == contents
    again.close()


def test_what_is_written_here_is_read_by_another_client(server: Server, tmp_path: Path) -> None:
    contents = [os.urandom(size) for size in (1, 5000, 4 << 20, LARGE)]

    async def test() -> None:
        async with store_of(server, tmp_path / "cas") as store:
            digests = [digest_of(content) for content in contents]
            assert await store.find_missing(digests) == set(digests)
            for digest, content in zip(digests, contents, strict=True):
                await store.write(digest, source(content))
            assert await store.find_missing(digests) == set()
            # Again: the server may end the upload at once.
            for digest, content in zip(digests, contents, strict=True):
                await store.write(digest, source(content))
        async with store_of(server, tmp_path / "other cas") as store:
            assert await store.fetch_many(digests) == {}
            assert [store.local.read(digest) for digest in digests] == contents

    run(test)
    for number, content in enumerate(contents):
        server.download(digest_of(content), tmp_path / f"file{number}")
        assert (tmp_path / f"file{number}").read_bytes() == content


def test_many_small_blobs(server: Server, tmp_path: Path) -> None:
    blobs = {digest_of(data): data for data in (b"small blob %d" % number * 50 for number in range(3000))}

    async def test() -> None:
        async with client_of(server) as client:
            assert await client.find_missing(blobs) == set(blobs)
            assert await client.write_batch(blobs) == {}
            assert await client.find_missing(blobs) == set()
        async with store_of(server, tmp_path / "cas") as store:
            assert await store.fetch_many(blobs) == {}
            assert {digest: store.local.read(digest) for digest in blobs} == blobs

    run(test)


def test_a_stream_goes_on_in_the_middle(server: Server) -> None:
    data = os.urandom(5 << 20)

    async def test() -> None:
        async with client_of(server) as client:
            await client.write(digest_of(data), lambda: source(data))
            for offset in (1, 3 << 20, len(data) - 1):
                async with aclosing(client.read_stream(digest_of(data), offset)) as pieces:
                    assert b"".join([piece async for piece in pieces]) == data[offset:]

    run(test)


@pytest.mark.parametrize("size", [10, 3 << 20])
def test_a_blob_the_server_lacks(server: Server, tmp_path: Path, size: int) -> None:
    digest = digest_of(os.urandom(size))

    async def test() -> None:
        async with store_of(server, tmp_path / "cas") as store:
            assert await store.find_missing([digest, empty_digest(DigestFunction.SHA256)]) == {digest}
            start = time.monotonic()
            with pytest.raises(NotFound, match=digest.hash_hex):
                await store.fetch(digest)
            assert time.monotonic() - start < 15, "it was tried again"

    run(test)


@pytest.mark.parametrize("size", [10, 3 << 20])
def test_wrong_bytes_are_refused_by_the_server(server: Server, size: int) -> None:
    right, wrong = os.urandom(size), os.urandom(size)

    async def test() -> None:
        async with client_of(server, 5) as client:
            with pytest.raises(OutputdError):
                await client.write(digest_of(right), lambda: source(wrong))
            failures = await client.write_batch({digest_of(right): wrong})
            assert [type(error) for error in failures.values()] == [Invalid]
            assert await client.find_missing([digest_of(right)]) == {digest_of(right)}

    run(test)


def test_a_server_that_dies_and_comes_back(directory: Path, tmp_path: Path) -> None:
    large, small = os.urandom(8 << 20), b"small"

    async def test() -> None:
        with buildbox_casd(directory / "mortal") as server:
            async with client_of(server) as client:
                blobs = {digest_of(small): small, digest_of(large): large}
                assert await client.write_batch(blobs) == {}
        async with store_of(server, tmp_path / "cas", 1) as store:
            for digest in (digest_of(small), digest_of(large)):
                start = time.monotonic()
                with pytest.raises(Unavailable, match=server.url):
                    await store.fetch(digest)
                assert time.monotonic() - start < 15
        async with store_of(server, tmp_path / "cas") as store, asyncio.TaskGroup() as group:
            fetch = group.create_task(store.fetch_many([digest_of(small), digest_of(large)]))
            server_again = buildbox_casd(directory / "mortal")
            # In a thread, so that the client tries in vain meanwhile.
            await asyncio.to_thread(server_again.__enter__)
            try:
                assert await fetch == {}
            finally:
                await asyncio.to_thread(server_again.__exit__, None, None, None)
            assert store.local.read(digest_of(large)) == large

    run(test)
