"""Requests that are huge, given up, or no requests at all: a clear answer to each, and a daemon that goes on. Real daemon."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from typing import Final

import grpc
import pytest

from outputd._proto import admin_pb2 as admin
from outputd._proto import any_pb2
from outputd._proto import bazel_output_service_pb2 as service
from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from outputd._proto import bytestream_pb2 as bytestream
from outputd._proto import health_pb2 as health
from outputd._proto import remote_execution_pb2 as reapi
from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.rev2_tree import Rev2Tree
from tests.service_client import BuildClient, Cas, Locator, locator_in, pack

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

MANY: Final = 60_000
MESSAGE_LIMIT: Final = 4 << 20
"""What gRPC's clients take, Bazel among them, unless told otherwise. Ours are not told otherwise."""
PERMANENT: Final = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.ALREADY_EXISTS,
}
"""Codes that no client takes for a hiccup."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with daemon_fixture.running() as running:
        yield running


@pytest.fixture(scope="module")
def channel(daemon: Daemon) -> Iterator[grpc.Channel]:
    with daemon_fixture.connected(daemon) as connected:
        yield connected


@pytest.fixture
def build(daemon: Daemon, channel: grpc.Channel, request: pytest.FixtureRequest) -> Iterator[BuildClient]:
    """A build of an output base of the test's own. Afterwards the daemon is shown to serve as ever."""
    client = BuildClient(channel, daemon.outputs, request.node.name)
    client.start()
    yield client
    client.clean()
    check_alive(daemon, channel)


def check_alive(daemon: Daemon, channel: grpc.Channel) -> None:
    client = BuildClient(channel, daemon.outputs, "alive")
    client.start()
    client.stage({"staged": Cas(channel).put(b"staged")})
    (daemon.outputs / "alive/local").write_bytes(b"local")
    assert (daemon.outputs / "alive/staged").read_bytes() == b"staged"
    assert client.digests("local") == Cas(channel).put_all([b"local"])
    client.finish()
    client.clean()


def test_huge_requests(daemon: Daemon, channel: grpc.Channel, build: BuildClient) -> None:
    digest = Cas(channel).put(b"x")
    prefix = "/".join(["a rather long name of a directory, as generated sources have them"] * 3)
    artifacts = {f"{prefix}/{number // 100}/file{number}": digest for number in range(MANY)}
    request = build.stage_request(artifacts)
    assert request.ByteSize() > 4 * MESSAGE_LIMIT
    reply = build.call("StageArtifacts", request, service.StageArtifactsResponse)
    assert [response.status.code for response in reply.responses] == [0] * MANY

    found = build.stat(artifacts)
    assert all(one.stat.WhichOneof("type") == "file" for one in found)
    told = [locator_in(one) for one in found]
    with_locator = sum(locator is not None for locator in told)
    # The first ones have all that there is to tell, the rest is told to be there (Bazel asks for it, then).
    assert told == [digest] * with_locator + [None] * (MANY - with_locator)
    assert MESSAGE_LIMIT * 0.9 < service.BatchStatResponse(responses=found).ByteSize() <= MESSAGE_LIMIT
    build.finalize_artifacts(artifacts)
    top = daemon.outputs / build.base / prefix
    assert len(os.listdir(top)) == MANY // 100
    assert (top / "599/file59999").read_bytes() == b"x"


def test_huge_refusals(build: BuildClient) -> None:
    lies = build.try_stage(
        {f"d{number}/file": reapi.Digest(hash="no hash", size_bytes=1) for number in range(MANY)}
    )
    assert {status.code for status in lies} == {grpc.StatusCode.INVALID_ARGUMENT.value[0]}
    assert "artifacts[0].locator" in lies[0].message
    assert "no hash" in lies[0].message
    absent = build.stat([f"absent/{number}" for number in range(4 * MANY)])
    assert not any(found.HasField("stat") for found in absent)


def test_one_odd_artifact_fails_alone(daemon: Daemon, channel: grpc.Channel, build: BuildClient) -> None:
    digest = Cas(channel).put(b"x")
    odd: dict[str, Locator] = {
        "../escapes": digest,
        "/absolute": digest,
        "a/../../b": digest,
        "": digest,
        "dir/..": digest,
        "nul\0": digest,
        "long" * 100: digest,
        "no hash": reapi.Digest(),
        "negative": reapi.Digest(hash=digest.hash, size_bytes=-1),
        "capitals": reapi.Digest(hash=digest.hash.upper(), size_bytes=1),
        "tree": rev2.TreeArtifactLocator(tree_digest=reapi.Digest(hash="f" * 63, size_bytes=1)),
        "empty tree": rev2.TreeArtifactLocator(),
        "another type": any_pb2.Any(type_url="type.googleapis.com/google.protobuf.Empty"),
        "garbage": any_pb2.Any(type_url=pack(digest).type_url, value=b"\xff\xff"),
    }
    absent = reapi.Digest(hash="0" * 64, size_bytes=1)
    statuses = build.try_stage({"good": digest, **odd, "absent": absent, "also/good": digest})
    assert [status.code for status in statuses] == [
        0,
        *[grpc.StatusCode.INVALID_ARGUMENT.value[0]] * len(odd),
        grpc.StatusCode.NOT_FOUND.value[0],
        0,
    ]
    assert all(status.message for status in statuses[1:-1])
    top = daemon.outputs / build.base
    assert sorted(os.listdir(top)) == ["also", "good"]
    assert (top / "also/good").read_bytes() == b"x"


def test_a_request_that_is_given_up(daemon: Daemon, channel: grpc.Channel, build: BuildClient) -> None:
    """What stays of it is in nobody's way: an action may truncate, replace and remove it."""
    digest = Cas(channel).put(b"staged")
    artifacts = {f"d{number // 100}/file{number}": digest for number in range(MANY)}
    invoke = channel.unary_unary("/bazel_output_service.BazelOutputService/StageArtifacts", None, None)
    call = invoke.future(build.stage_request(artifacts).SerializeToString(), timeout=60)
    # Not before it is under way, which a second call tells: they are begun in order.
    build.stat(["d0/file0"])
    call.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs
    top = daemon.outputs / build.base
    staged = [path for path in artifacts if (top / path).exists()]
    for path in (*staged[:50], "d0/file0", "d599/file59999"):
        (top / path).parent.mkdir(exist_ok=True)
        with open(top / path, "wb") as output:
            output.write(b"local")
        assert (top / path).read_bytes() == b"local"
    for path in staged[50:100]:
        (top / path).unlink()
    build.stage(artifacts)
    assert (top / "d0/file0").read_bytes() == b"staged"


# --- what is no request


SERVICES: Final = [
    service.DESCRIPTOR.services_by_name["BazelOutputService"],
    reapi.DESCRIPTOR.services_by_name["ContentAddressableStorage"],
    reapi.DESCRIPTOR.services_by_name["ActionCache"],
    reapi.DESCRIPTOR.services_by_name["Capabilities"],
    bytestream.DESCRIPTOR.services_by_name["ByteStream"],
    health.DESCRIPTOR.services_by_name["Health"],
    admin.DESCRIPTOR.services_by_name["Admin"],
]
METHODS: Final = [
    f"/{each.full_name}/{method.name}"
    for each in SERVICES
    for method in each.methods
    if not method.client_streaming and not method.server_streaming
]


def code_of(channel: grpc.Channel, method: str, request: bytes) -> grpc.StatusCode:
    try:
        channel.unary_unary(method, None, None)(request, timeout=30)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.rpartition("/")[2])
def test_garbage(daemon: Daemon, channel: grpc.Channel, method: str) -> None:
    """Refused for good, and not logged as a fault: that, the daemon's end would show."""
    generator = random.Random(method)
    for size in (1, 2, 7, 30, 300):
        for _ in range(4):
            code = code_of(channel, method, generator.randbytes(size))
            assert code in PERMANENT | {grpc.StatusCode.OK}
    assert code_of(channel, method, b"\xff" * 50) is grpc.StatusCode.INVALID_ARGUMENT


def test_requests_that_are_almost_right(daemon: Daemon, channel: grpc.Channel, build: BuildClient) -> None:
    digest = Cas(channel).put(b"x")
    tree = Rev2Tree({"d": b"x"})
    Cas(channel).put(tree.message)
    directory = rev2.TreeArtifactLocator(tree_digest=tree.digest, root_directory_digest=tree.root_digest)
    requests = {
        "StageArtifacts": build.stage_request(
            {"a/b": digest, "c": directory, "d/e/../f": digest}
        ).SerializeToString(),
        "BatchStat": service.BatchStatRequest(
            build_id=build.build_id, paths=["a/b", "c/d", "/execroot/workspace/bazel-out/a"]
        ).SerializeToString(),
        "FinalizeArtifacts": build.stage_request({"a/b": digest, "c": digest}).SerializeToString(),
    }
    generator = random.Random(7)
    for method, request in requests.items():
        for _ in range(300):
            changed = bytearray(request)
            at = generator.randrange(len(changed))
            match generator.randrange(4):
                case 0:
                    del changed[at:]
                case 1:
                    changed[at] ^= 1 << generator.randrange(8)
                case 2:
                    changed[at:at] = generator.randbytes(generator.randrange(1, 6))
                case 3:
                    del changed[at : at + generator.randrange(1, 6)]
            code = code_of(channel, f"/bazel_output_service.BazelOutputService/{method}", bytes(changed))
            assert code in PERMANENT | {grpc.StatusCode.OK}, bytes(changed)


def test_streams_that_are_no_uploads(channel: grpc.Channel, daemon: Daemon) -> None:
    write = channel.stream_unary("/google.bytestream.ByteStream/Write", None, None)
    read = channel.unary_stream("/google.bytestream.ByteStream/Read", None, None)
    name = f"uploads/8f4e4a0e-5d3b-4a6e-9d6e-0a8b6f0b7c11/blobs/{'0' * 64}/5"
    streams: list[list[bytes]] = [
        [],
        [b"\xff\xff"],
        [bytestream.WriteRequest(resource_name="nonsense", data=b"x").SerializeToString()],
        [bytestream.WriteRequest(resource_name=name, data=b"wrong", finish_write=True).SerializeToString()],
        [
            bytestream.WriteRequest(
                resource_name=name, data=b"too long", finish_write=True
            ).SerializeToString()
        ],
        [bytestream.WriteRequest(resource_name=name, data=b"x").SerializeToString()],
        [bytestream.WriteRequest(resource_name=name, write_offset=3, data=b"x").SerializeToString()],
    ]
    for stream in streams:
        with pytest.raises(grpc.RpcError) as refused:
            write(iter(stream), timeout=30)
        assert refused.value.code() in PERMANENT | {grpc.StatusCode.DATA_LOSS}
    for request in (
        b"\xff\xff",
        bytestream.ReadRequest(resource_name="nonsense").SerializeToString(),
        bytestream.ReadRequest(resource_name=f"blobs/{'0' * 64}/5").SerializeToString(),
        bytestream.ReadRequest(resource_name=f"blobs/{'0' * 64}/-5").SerializeToString(),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            list(read(request, timeout=30))
        assert refused.value.code() in PERMANENT
    check_alive(daemon, channel)
    assert Cas(channel).missing([reapi.Digest(hash="0" * 64, size_bytes=5)]) == {"0" * 64}


def test_calls_of_a_build_that_does_not_run(daemon: Daemon, channel: grpc.Channel) -> None:
    client = BuildClient(channel, daemon.outputs, "none")
    client.build_id = "unknown"
    for call in (lambda: client.stage({}), lambda: client.stat(["x"]), lambda: client.finalize_artifacts({})):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "'unknown'" in str(refused.value.details())
    client.finish()
    client.clean()


def test_many_connections_at_once(daemon: Daemon, channel: grpc.Channel) -> None:
    """Clients that come and go without a word, some with half a call."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for words in (
        b"",
        b"\0",
        preface,
        preface + b"\0\0\0\4\0\0\0\0\0",
        preface + os.urandom(500),
        b"GET / HTTP/1.1\r\n\r\n",
    ):
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(daemon.socket))
                client.sendall(words)
    check_alive(daemon, channel)
