"""Certificates that are renewed while calls are made: new calls go by the new ones, those under way end where they began."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import grpc
import pytest

from outputd._proto import bytestream_pb2 as bytestream
from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction
from outputd.errors import Invalid, Unavailable
from outputd.store.remote import RemoteOptions, RemoteStore, watched
from outputd.store.remote.tls import Tls
from tests.certificates import Certificates
from tests.unit.store.fake_remote import BYTE_STREAM, CAPABILITIES
from tests.unit.store.worlds import run

DATA = bytes(range(256)) * 4096
DIGEST = Digest.of(DigestFunction.SHA256, DATA)


@pytest.fixture(autouse=True)
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.0)


class Server:
    """A server that wants the client's certificate; its Read waits half way for the gate."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.peers: list[str] = []
        self.port = 0

    async def capabilities(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        self.peers.append(context.peer())
        return reapi.ServerCapabilities().SerializeToString()

    async def read(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        start = bytestream.ReadRequest.FromString(request).read_offset
        half = max(start, len(DATA) // 2)
        yield bytestream.ReadResponse(data=DATA[start:half]).SerializeToString()
        await self.gate.wait()
        yield bytestream.ReadResponse(data=DATA[half:]).SerializeToString()


@asynccontextmanager
async def serving(certificates: Certificates, port: int = 0) -> AsyncIterator[Server]:
    served = Server()
    server = grpc.aio.server()
    methods = {
        CAPABILITIES: {"GetCapabilities": grpc.unary_unary_rpc_method_handler(served.capabilities)},
        BYTE_STREAM: {"Read": grpc.unary_stream_rpc_method_handler(served.read)},
    }
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, handlers) for name, handlers in methods.items())
    )
    strict = grpc.ssl_server_credentials([certificates.server_pair], certificates.ca.read_bytes(), True)
    served.port = server.add_secure_port(f"127.0.0.1:{port}", strict)
    await server.start()
    try:
        yield served
    finally:
        await server.stop(None)


def options(certificates: Certificates) -> RemoteOptions:
    certificate, key = certificates.client
    return RemoteOptions(
        timeout=5,
        retry_seconds=0,
        ca_file=str(certificates.ca),
        client_cert=str(certificate),
        client_key=str(key),
    )


async def ask(client: RemoteStore) -> None:
    await client.of_instance(str(asyncio.get_running_loop().time())).abilities()


def test_new_ones_without_losing_what_is_under_way(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)

    async def test() -> None:
        async with serving(certificates) as old:
            client = RemoteStore(f"grpcs://localhost:{old.port}", options=options(certificates))
            async with aclosing(client.read_stream(DIGEST)) as pieces:
                came = bytes(await anext(pieces))
                await ask(client)
                certificates.renew()
                await ask(client)
                assert len(set(old.peers)) == 2
                old.gate.set()
                came += b"".join([piece async for piece in pieces])
            assert came == DATA
        certificates.renew(authority=True)
        async with serving(certificates, old.port) as new:
            await ask(client)
            assert len(new.peers) == 1
        await client.close()

    run(test)


def test_equal_files_make_no_new_connection(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)

    async def test() -> None:
        async with serving(certificates) as server:
            client = RemoteStore(f"grpcs://localhost:{server.port}", options=options(certificates))
            for _ in range(3):
                await ask(client)
                certificates.ca.touch()
            assert len(set(server.peers)) == 1
            certificates.renew()
            await ask(client)
            assert len(set(server.peers)) == 2
            await client.close()
            with pytest.raises(Unavailable, match="closed"):
                await ask(client)

    run(test)


def test_what_does_not_fit_together_is_left_until_it_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = Certificates(tmp_path)
    tls = Tls(options(certificates))
    before = tls.credentials
    _, key = certificates.client
    old_key = key.read_bytes()
    certificates.renew()
    new_key = key.read_bytes()
    key.write_bytes(old_key)
    assert tls.generation() == 0 and tls.credentials is before
    assert "no certificate with its key" in caplog.text
    key.write_bytes(new_key)
    assert tls.generation() == 1 and tls.credentials is not before
    certificates.ca.unlink()
    assert tls.generation() == 1


@pytest.mark.parametrize("broken", ["ca", "key", "certificate"])
def test_files_that_cannot_be_used_are_named(tmp_path: Path, broken: str) -> None:
    certificates = Certificates(tmp_path)
    path = {"ca": certificates.ca, "certificate": certificates.client[0], "key": certificates.client[1]}[
        broken
    ]
    path.write_text("no PEM")
    with pytest.raises(Invalid, match=path.name):
        RemoteStore("grpcs://h", options=options(certificates))
