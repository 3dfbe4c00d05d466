"""URLs, headers and certificates: what is taken, what is refused with which words, and that TLS is really spoken."""

from __future__ import annotations

from pathlib import Path

import grpc
import grpc.aio
import pytest

from outputd._proto import remote_execution_pb2 as reapi
from outputd.errors import Denied, Invalid, Unavailable
from outputd.store.remote import RemoteOptions, RemoteStore, parse_endpoint
from tests.certificates import Certificates
from tests.unit.store.fake_remote import CAPABILITIES
from tests.unit.store.worlds import run


@pytest.mark.parametrize(
    ("url", "target", "secure"),
    [
        ("grpc://cache.example.com:8980", "dns:///cache.example.com:8980", False),
        ("grpcs://cache.example.com:443", "dns:///cache.example.com:443", True),
        ("grpcs://cache.example.com", "dns:///cache.example.com:443", True),
        ("cache.example.com:8980", "dns:///cache.example.com:8980", True),
        ("cache.example.com", "dns:///cache.example.com:443", True),
        ("grpc://127.0.0.1:1/", "dns:///127.0.0.1:1", False),
        ("grpc://[::1]:8980", "dns:///[::1]:8980", False),
        ("unix:/run/cas.sock", "unix:/run/cas.sock", False),
        ("unix:///run/cas.sock", "unix:/run/cas.sock", False),
    ],
)
def test_urls(url: str, target: str, secure: bool) -> None:
    endpoint = parse_endpoint(url)
    assert (endpoint.target, endpoint.secure, str(endpoint)) == (target, secure, url)


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("", "is not HOST:PORT"),
        ("http://cache:80", "scheme 'http' is not known"),
        ("grpc://cache", "is not HOST:PORT"),
        ("grpc://cache:0", "is not HOST:PORT"),
        ("grpc://cache:65536", "is not HOST:PORT"),
        ("grpc://cache:", "is not HOST:PORT"),
        ("grpc://user@cache:80", "is not HOST:PORT"),
        ("grpc://::1:80", "is not HOST:PORT"),
        ("grpc://cache:80/instance", "'instance' does not belong here"),
        ("unix:relative", "path is absolute"),
        ("unix://host/path", "path is absolute"),
        ("/run/cas.sock", "'run/cas.sock' does not belong here"),
    ],
)
def test_other_urls_are_refused_with_what_is_right(url: str, wrong: str) -> None:
    with pytest.raises(Invalid, match=wrong) as caught:
        parse_endpoint(url)
    assert repr(url) in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "wrong"),
    [
        ({"grpc-timeout": "1S"}, "'grpc-timeout'"),
        ({"token-bin": "x"}, "'token-bin'"),
        ({"a b": "x"}, "'a b'"),
        ({"": "x"}, "''"),
        ({"authorization": "secret\nand more"}, "'authorization': its value"),
        ({"authorization": "sécret"}, "'authorization': its value"),
    ],
)
def test_headers_that_cannot_be_sent_are_refused_and_secrets_not_shown(
    headers: dict[str, str], wrong: str
) -> None:
    with pytest.raises(Invalid, match=wrong) as caught:
        RemoteStore("grpc://cache:80", options=RemoteOptions(headers=headers))
    assert "cret" not in str(caught.value)


async def ask(port: int, options: RemoteOptions, url: str = "grpcs://localhost") -> None:
    client = RemoteStore(f"{url}:{port}", options=options)
    try:
        assert (await client.abilities()).api_version == "0.0-0.0"
    finally:
        await client.close()


def test_tls_with_a_certificate_on_either_side(tmp_path: Path) -> None:
    (tmp_path / "strangers").mkdir()
    known, strangers = Certificates(tmp_path), Certificates(tmp_path / "strangers")

    async def answer(request: bytes, context: object) -> bytes:
        return reapi.ServerCapabilities().SerializeToString()

    def options(ca: Path | None = None, client: tuple[Path, Path] | None = None) -> RemoteOptions:
        return RemoteOptions(
            timeout=10,
            retry_seconds=0,
            ca_file=str(ca) if ca else None,
            client_cert=str(client[0]) if client else None,
            client_key=str(client[1]) if client else None,
        )

    async def test() -> None:
        server = grpc.aio.server()
        handlers = {"GetCapabilities": grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(CAPABILITIES, handlers),))
        pair, trusted = known.server_pair, known.ca.read_bytes()
        open_port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        strict = grpc.ssl_server_credentials([pair], root_certificates=trusted, require_client_auth=True)
        strict_port = server.add_secure_port("127.0.0.1:0", strict)
        await server.start()
        await ask(open_port, options(known.ca))
        await ask(strict_port, options(known.ca, known.client))
        for distrusting in (options(strangers.ca), options()):
            with pytest.raises(Denied, match="cannot get capabilities at grpcs://localhost"):
                await ask(open_port, distrusting)
        # TLS 1.3: the server looks at our certificate when the handshake is over for us, and hangs up; its reason may be late.
        for refused in (options(known.ca), options(known.ca, strangers.client)):
            with pytest.raises((Denied, Unavailable), match="cannot get capabilities at grpcs://localhost"):
                await ask(strict_port, refused)
        with pytest.raises(Unavailable):
            await ask(open_port, options(), "grpc://localhost")
        await server.stop(None)

    run(test)


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="remote ca_file /nowhere: cannot be read: No such file"):
        RemoteStore("grpcs://cache", options=RemoteOptions(ca_file="/nowhere"))
    with pytest.raises(Invalid, match="client_cert and client_key: give both or neither"):
        RemoteStore("grpcs://cache", options=RemoteOptions(client_cert=str(tmp_path / "client.pem")))


def test_a_socket_of_nobody_is_unavailable() -> None:
    async def test() -> None:
        client = RemoteStore("unix:/nowhere/nobody", options=RemoteOptions(timeout=1, retry_seconds=0))
        with pytest.raises(Unavailable, match=r"unix:/nowhere/nobody: UNAVAILABLE: .*No such file"):
            await client.abilities()
        await client.close()

    run(test)
