"""TLS and mTLS with a real BuildGrid: blobs go up and come back, strangers are refused, certificates are renewed midway."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.errors import Denied, Unavailable
from outputd.store.remote import RemoteOptions, RemoteStore, watched
from tests.certificates import Certificates
from tests.interop.servers import Server, buildgrid

DATA = os.urandom(20 << 20)
DIGEST = Digest.of(DigestFunction.SHA256, DATA)


@pytest.fixture(scope="module", params=[False, True], ids=["tls", "mtls"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Certificates, bool]]:
    directory = tmp_path_factory.mktemp("certificates")
    certificates = Certificates(directory)
    with buildgrid(directory / "server", tls=certificates, mutual=request.param) as server:
        yield server, certificates, request.param


def client_of(server: Server, certificates: Certificates, *, certificate: bool) -> RemoteStore:
    options = RemoteOptions(
        timeout=60,
        retry_seconds=1,
        ca_file=str(certificates.ca),
        client_cert=str(certificates.client[0]) if certificate else None,
        client_key=str(certificates.client[1]) if certificate else None,
    )
    return RemoteStore(server.url, options=options)


async def pieces_of(data: bytes) -> AsyncGenerator[bytes]:
    yield data


def test_up_and_down_while_certificates_are_renewed(
    served: tuple[Server, Certificates, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.0)
    server, certificates, mutual = served

    async def test() -> None:
        client = client_of(server, certificates, certificate=mutual)
        await client.write(DIGEST, partial(pieces_of, DATA))
        came = b""
        async with aclosing(client.read_stream(DIGEST)) as pieces:
            async for piece in pieces:
                if not came:
                    certificates.renew()
                    assert await client.find_missing([DIGEST]) == set()
                came += piece
        assert came == DATA
        await client.close()

    asyncio.run(asyncio.wait_for(test(), 100))


def test_strangers(served: tuple[Server, Certificates, bool], tmp_path: Path) -> None:
    server, certificates, mutual = served

    async def test() -> None:
        distrusting = client_of(server, Certificates(tmp_path), certificate=False)
        with pytest.raises(Denied, match="CERTIFICATE_VERIFY_FAILED"):
            await distrusting.find_missing([DIGEST])
        await distrusting.close()
        nobody = client_of(server, certificates, certificate=False)
        if mutual:
            with pytest.raises((Denied, Unavailable)):
                await nobody.find_missing([DIGEST])
        else:
            await nobody.find_missing([DIGEST])
        await nobody.close()

    asyncio.run(asyncio.wait_for(test(), 100))
