"""Every digest function that outputd offers, from upload to locator, over one daemon with its own store for a CAS."""

from __future__ import annotations

import os
from collections.abc import Iterator

import grpc
import pytest

from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import DigestFunction
from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.rev2_tree import Program, Rev2Tree
from tests.service_client import BuildClient, Cas, call, digest_of

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

OFFERED = [function for function in DigestFunction if function.supported]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with daemon_fixture.running() as running:
        yield running


@pytest.fixture
def channel(daemon: Daemon) -> Iterator[grpc.Channel]:
    with daemon_fixture.connected(daemon) as connected:
        yield connected


@pytest.mark.parametrize("function", OFFERED, ids=lambda function: function.name)
def test_a_build(daemon: Daemon, channel: grpc.Channel, function: DigestFunction) -> None:
    # Sizes around what SHA256TREE and BLAKE3 cut their input into, and one that is uploaded as a stream.
    contents = [os.urandom(size) for size in (1, 1023, 1024, 1025, 5000, 3 << 20)]
    tree = Rev2Tree({"a": contents[0], "below": {"b": Program(contents[4])}, "empty": b""}, function)
    cas = Cas(channel, function=function)
    digests = cas.put_all(contents)
    cas.put(tree.message)
    assert cas.missing([*digests, digest_of(b"never put", function)]) == {
        digest_of(b"never put", function).hash
    }

    build = BuildClient(channel, daemon.outputs, function.name, function=function)
    top = daemon.outputs / build.base
    build.start()
    staged = {f"staged{number}": digest for number, digest in enumerate(digests)}
    build.stage(
        {
            **staged,
            "tree": rev2.TreeArtifactLocator(tree_digest=tree.digest),
            "empty": digest_of(b"", function),
        }
    )
    for path, data in zip(staged, contents, strict=True):
        assert (top / path).read_bytes() == data
        (top / f"local {path}").write_bytes(data)
    with open(top / "staged4", "ab") as file:
        file.write(b"more")
    assert (top / "tree/below/b").read_bytes() == contents[4]
    assert (top / "empty").read_bytes() == (top / "tree/empty").read_bytes() == b""

    (top / "local empty").touch()
    assert build.digests("staged0", "staged3", "staged5", "tree/below/b", "tree/empty", "empty") == [
        *(digests[number] for number in (0, 3, 5, 4)),
        *[digest_of(b"", function)] * 2,
    ]
    assert build.digests(*(f"local {path}" for path in staged)) == digests
    assert build.digests("staged4", "local empty") == [
        digest_of(contents[4] + b"more", function),
        digest_of(b"", function),
    ]
    build.finish()
    build.start()
    assert build.digests(*(f"local {path}" for path in staged)) == digests
    assert (top / "tree/below/b").read_bytes() == contents[4]
    build.finish()


def test_a_build_with_another_function_begins_with_nothing(daemon: Daemon, channel: grpc.Channel) -> None:
    """Its locators could not speak of what is there."""
    first = BuildClient(channel, daemon.outputs, "changing")
    first.start()
    (daemon.outputs / "changing/local").write_bytes(b"local")
    assert (daemon.outputs / "changing/local").exists()
    first.finish()
    second = BuildClient(channel, daemon.outputs, "changing", function=DigestFunction.BLAKE3)
    daemon.expects("output base changing: its contents are dropped, .* SHA256, .* BLAKE3")
    second.start()
    assert os.listdir(daemon.outputs / "changing") == []
    second.finish()


def test_what_is_announced(channel: grpc.Channel) -> None:
    capabilities = call(
        channel,
        "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities",
        reapi.GetCapabilitiesRequest(),
        reapi.ServerCapabilities,
    ).cache_capabilities
    assert set(map(int, capabilities.digest_functions)) == set(map(int, OFFERED))


@pytest.mark.parametrize("function", [f for f in DigestFunction if not f.supported], ids=lambda f: f.name)
def test_what_is_not_offered_is_refused(
    daemon: Daemon, channel: grpc.Channel, function: DigestFunction
) -> None:
    build = BuildClient(channel, daemon.outputs, "refused", function=function)
    with pytest.raises(grpc.RpcError) as refused:
        build.start()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert function.name in str(refused.value.details())
    assert not (daemon.outputs / "refused").exists()
