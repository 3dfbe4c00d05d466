"""Blobs travel as Zstandard to and from servers that offer it, and as they are where not: bytes are counted on the wire."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.rpc.trees_client import PrefetchRequest, prefetch
from outputd.store.remote import RemoteOptions, RemoteStore
from tests import daemon_fixture
from tests.interop.servers import Server, buildbox_casd, buildgrid
from tests.interop.upstream import Upstream, upstream
from tests.service_client import BuildClient

MIB = 1 << 20
TEXT = b"".join(b"%d lines that are much alike, said the %dth\n" % (n, n * n) for n in range(300_000))
NOISE = os.urandom(3 * MIB)


@contextmanager
def outputd(directory: Path) -> Iterator[Server]:
    """A daemon of our own as the server."""
    with daemon_fixture.running() as daemon:
        yield Server("outputd", daemon.target, daemon.pid)


@pytest.fixture(params=[buildgrid, buildbox_casd, outputd], ids=["buildgrid", "casd", "outputd"])
def server(request: pytest.FixtureRequest) -> Iterator[Upstream]:
    if request.param is outputd and (os.geteuid() != 0 or not os.path.exists("/dev/fuse")):
        pytest.skip("needs root and /dev/fuse")
    with (
        tempfile.TemporaryDirectory(prefix="outputd-test-") as place,
        upstream(request.param, Path(place)) as running,
    ):
        yield running


@asynccontextmanager
async def client_of(server: Upstream, compression: str) -> AsyncIterator[RemoteStore]:
    options = RemoteOptions(timeout=20, retry_seconds=20, compression=compression)
    client = RemoteStore(server.relay.url, options=options)
    try:
        yield client
    finally:
        await client.close()


async def source(data: bytes) -> AsyncGenerator[bytes]:
    for start in range(0, len(data), 200_000):
        yield data[start : start + 200_000]


async def read(client: RemoteStore, digest: Digest, offset: int = 0, limit: int = 0) -> bytes:
    async with aclosing(client.read_stream(digest, offset, limit)) as pieces:
        return b"".join([piece async for piece in pieces])


def test_both_ways(server: Upstream) -> None:
    def digest_of(data: bytes) -> Digest:
        return Digest.of(DigestFunction.SHA256, data)

    async def test() -> None:
        relay = server.relay
        async with client_of(server, "zstd") as client:
            offered = await client.abilities()
            packs = "zstd" in offered.compressors
            before = relay.sent
            await client.write(digest_of(TEXT), partial(source, TEXT))
            await client.write(digest_of(NOISE), partial(source, NOISE))
            small = {digest_of(data): data for data in (TEXT[:100_000], TEXT[7:100_007])}
            assert await client.write_batch(small) == {}
            most = (len(TEXT) / 3 if packs else len(TEXT)) + len(NOISE) * 1.1 + MIB
            assert relay.sent - before < most
            before = relay.received
            assert await read(client, digest_of(TEXT)) == TEXT
            assert relay.received - before < len(TEXT) / (3 if packs else 0.9)
            assert await read(client, digest_of(TEXT), 5 * MIB + 1) == TEXT[5 * MIB + 1 :]
            assert await read(client, digest_of(TEXT), 3, 8 * MIB) == TEXT[3 : 3 + 8 * MIB]
            assert await read(client, digest_of(TEXT), 3, 1000) == TEXT[3:1003]
            assert await read(client, digest_of(NOISE)) == NOISE
            assert await client.read_batch(small) == small
        async with client_of(server, "off") as client:
            assert await read(client, digest_of(TEXT)) == TEXT
            assert await client.find_missing([digest_of(TEXT), digest_of(NOISE), *small]) == set()

    asyncio.run(asyncio.wait_for(test(), 110))


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse")
def test_through_the_mount() -> None:
    large = b"".join(TEXT[n:] + TEXT[:n] for n in range(3))
    with (
        tempfile.TemporaryDirectory(prefix="outputd-test-") as place,
        upstream(outputd, Path(place)) as remote,
        daemon_fixture.running(
            "--remote", remote.relay.url, settings={"remote.compression": "zstd"}
        ) as daemon,
        daemon_fixture.connected(daemon) as channel,
    ):
        digest = remote.cas().put(large)
        build = BuildClient(channel, daemon.outputs)
        build.start()
        build.stage({"large": digest})
        file = daemon.outputs / build.base / "large"
        before = remote.relay.received
        with file.open("rb") as reader:
            reader.seek(-1000, os.SEEK_END)
            assert reader.read() == large[-1000:]
        assert remote.relay.received - before < MIB
        # Who reads on gets windows as large as what it has read, and only those of 8 MiB and more travel packed.
        request = PrefetchRequest(output_base_id=build.base, patterns=[b"large"])
        assert prefetch(daemon.target, request, lambda _: None).fetched.files == 1
        assert remote.relay.received - before < len(large) / 2
        before = remote.relay.received
        assert file.read_bytes() == large
        assert remote.relay.received - before < MIB
