"""outputd.cli.verify: what people and programs are shown, which argument means which tree, exit codes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from outputd._proto.admin_pb2 import GetStatusRequest, GetStatusResponse, VerifyRequest, VerifyResponse
from tests.unit.cli.conftest import Commands

Answer = Callable[[VerifyRequest], list[VerifyResponse]]


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    (tmp_path / "mnt/outputs/b1/bin").mkdir(parents=True)
    (tmp_path / "mnt/outputs/b1/link").symlink_to("gone")
    return tmp_path / "mnt"


@pytest.fixture
def serve(tmp_path: Path, mount: Path) -> Iterator[Callable[[Answer], list[VerifyRequest]]]:
    """A daemon with output bases b1 and b2 and these answers; gives the requests it gets."""
    server = grpc.server(ThreadPoolExecutor(2))
    requests: list[VerifyRequest] = []

    def begin(answer: Answer) -> list[VerifyRequest]:
        status = GetStatusResponse()
        status.mount.path = str(mount)
        for name in ("b1", "b2"):
            status.output_bases.add(id=name)

        def verify(request: VerifyRequest, context: grpc.ServicerContext) -> Iterator[VerifyResponse]:
            requests.append(request)
            yield from answer(request)

        methods = {
            "GetStatus": grpc.unary_unary_rpc_method_handler(
                lambda request, context: status,
                GetStatusRequest.FromString,
                GetStatusResponse.SerializeToString,
            ),
            "Verify": grpc.unary_stream_rpc_method_handler(
                verify, VerifyRequest.FromString, VerifyResponse.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("outputd.v1.Admin", methods),))
        server.add_insecure_port(f"unix:{tmp_path}/outputd.sock")
        server.start()
        return requests

    yield begin
    server.stop(None).wait()


def whole(request: VerifyRequest) -> list[VerifyResponse]:
    first, last = VerifyResponse(), VerifyResponse(done=True, directories=3)
    first.both.files = 1
    last.both.files, last.both.bytes, last.remote.files, last.remote.bytes = 2, 3 << 20, 1000, 1 << 30
    return [first, last]


def broken(request: VerifyRequest) -> list[VerifyResponse]:
    first, last = VerifyResponse(), VerifyResponse(done=True, directories=3, unloadable=1)
    first.losses.add(path=b"bin/\xff", digest="ab/1", reason="nobody has it")
    first.losses.add(path=b"lib", reason="its message is gone")
    last.gone.files, last.gone.bytes = 5, 50
    return [first, last]


def test_people(outputd: Commands, serve: Callable[[Answer], list[VerifyRequest]]) -> None:
    requests = serve(whole)
    spoken = outputd("verify", "b1")
    assert (spoken.code, spoken.err) == (0, "")
    assert spoken.out.splitlines() == [
        "b1: all can be had",
        "  local and remote  2 files      3 MiB",
        "  remote only       1 000 files  1 GiB",
        "  local only        0 files      0 B",
        "  gone              0 files      0 B",
        "  directories       3            0 cannot be loaded",
    ]
    assert [(r.output_base_id, r.path, r.content, r.max_losses) for r in requests] == [
        ("b1", b"", False, 100)
    ]


def test_losses(outputd: Commands, serve: Callable[[Answer], list[VerifyRequest]]) -> None:
    serve(broken)
    spoken = outputd("verify", "b2", "--content", "--max-losses", "2")
    assert spoken.code == 1
    assert spoken.out.splitlines()[-3:] == [
        "  lost: bin/\udcff (ab/1): nobody has it",
        "  lost: lib (digest not known): its message is gone",
        "  and 4 more; --max-losses lists more of them",
    ]
    assert "damaged" in spoken.out


def test_programs(outputd: Commands, serve: Callable[[Answer], list[VerifyRequest]]) -> None:
    serve(broken)
    spoken = outputd("verify", "--json")
    data = json.loads(spoken.out)
    assert (spoken.code, data["whole"]) == (1, False)
    assert [tree["output_base_id"] for tree in data["trees"]] == ["b1", "b2"]
    assert data["trees"][0]["gone"] == {"files": 5, "bytes": 50}
    assert data["trees"][0]["losses"][1] == {"path": "lib", "digest": None, "reason": "its message is gone"}


def test_paths(
    outputd: Commands,
    serve: Callable[[Answer], list[VerifyRequest]],
    mount: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    requests = serve(whole)
    (tmp_path / "bazel-bin").symlink_to(mount / "outputs/b1/bin")
    monkeypatch.chdir(tmp_path)
    paths = [
        "bazel-bin",
        "bazel-bin/app",
        "mnt/outputs/b1/link",
        f"{mount}/outputs/b2/a/../b",
        "mnt/outputs/b1",
    ]
    assert outputd("verify", *paths).code == 0
    assert [(r.output_base_id, r.path) for r in requests] == [
        ("b1", b"bin"),
        ("b1", b"bin/app"),
        ("b1", b"link"),
        ("b2", b"b"),
        ("b1", b""),
    ]


@pytest.mark.parametrize("name", ["/etc/passwd", "b3", "mnt/outputs/b3/x", "mnt/outputs"])
def test_no_tree(
    name: str,
    outputd: Commands,
    serve: Callable[[Answer], list[VerifyRequest]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    serve(whole)
    monkeypatch.chdir(tmp_path)
    spoken = outputd("verify", name)
    assert spoken.code == 1
    assert "is no output base" in spoken.err


def test_no_daemon(outputd: Commands) -> None:
    assert outputd("verify").code == 4


def test_an_answer_that_ends_too_soon(
    outputd: Commands, serve: Callable[[Answer], list[VerifyRequest]]
) -> None:
    serve(lambda request: [VerifyResponse()])
    spoken = outputd("verify", "b1")
    assert spoken.code == 1
    assert "ended before it was whole" in spoken.err
    assert os.linesep in spoken.err
