"""StartBuild on large trees, beside the raw question about all their blobs: `python -m bench.macro.starting`.

The remote has everything and answers at once, so what is measured is ours: 300,000 files in one output base, built again and again;
and the same in ten output bases, after a restart of the daemon.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import grpc

from bench.macro.daemon import Daemon, heading, measured, running_daemon
from bench.macro.staging import paths_of
from outputd._proto import any_pb2
from outputd._proto import bazel_output_service_pb2 as service
from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from outputd._proto import remote_execution_pb2 as reapi

_CAS = "build.bazel.remote.execution.v2.ContentAddressableStorage"
_CAPABILITIES = "build.bazel.remote.execution.v2.Capabilities"
_A_CALL = 10_000
_SETTLING = 4.0
"""Seconds between two builds, as of a person: the daemon makes a checkpoint and asks for what was staged."""


class Remote:
    """A REv2 server that has every blob."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.questions = 0
        """Calls of FindMissingBlobs."""

    def find_missing(self, _request: bytes, _context: grpc.ServicerContext) -> bytes:
        self.questions += 1
        return b""

    def capabilities(self, _request: bytes, _context: grpc.ServicerContext) -> bytes:
        reply = reapi.ServerCapabilities()
        reply.low_api_version.major = reply.high_api_version.major = 2
        reply.cache_capabilities.digest_functions.append(reapi.DigestFunction.SHA256)
        return reply.SerializeToString()


@contextmanager
def remote() -> Iterator[Remote]:
    server = grpc.server(ThreadPoolExecutor(4))
    port = server.add_insecure_port("127.0.0.1:0")
    made = Remote(f"grpc://127.0.0.1:{port}")
    for name, methods in (
        (_CAS, {"FindMissingBlobs": made.find_missing}),
        (_CAPABILITIES, {"GetCapabilities": made.capabilities}),
    ):
        handlers = {method: grpc.unary_unary_rpc_method_handler(call) for method, call in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    server.start()
    try:
        yield made
    finally:
        server.stop(None).wait()


def stage(daemon: Daemon, base: str, build: str, paths: list[str]) -> None:
    for start in range(0, len(paths), 20_000):
        request = service.StageArtifactsRequest(build_id=build)
        for path in paths[start : start + 20_000]:
            hash_ = hashlib.sha256(f"{base}/{path}".encode()).hexdigest()
            locator = any_pb2.Any()
            locator.Pack(rev2.FileArtifactLocator(digest=reapi.Digest(hash=hash_, size_bytes=4096)))
            request.artifacts.add(path=path, locator=locator)
        daemon.call("StageArtifacts", request, service.StageArtifactsResponse)


def finish(daemon: Daemon, build: str) -> None:
    daemon.call(
        "FinalizeBuild",
        service.FinalizeBuildRequest(build_id=build, build_successful=True),
        service.FinalizeBuildResponse,
    )


def ask_raw(url: str, count: int) -> None:
    """What any client has to do to ask for so many blobs: the requests alone, made and sent one after the other."""
    with grpc.insecure_channel(url.removeprefix("grpc://")) as channel:
        call = channel.unary_unary(f"/{_CAS}/FindMissingBlobs", None, None)
        for start in range(0, count, _A_CALL):
            request = reapi.FindMissingBlobsRequest()
            for number in range(start, min(count, start + _A_CALL)):
                request.blob_digests.add(hash=f"{number:064x}", size_bytes=4096)
            call(request.SerializeToString())


def one_base(directories: int, files: int) -> None:
    paths = paths_of(directories, files)
    with remote() as server, running_daemon("--remote", server.url) as daemon:
        daemon.start_build("base", "b0")
        stage(daemon, "base", "b0", paths)
        measured(daemon, "FinalizeBuild", lambda: finish(daemon, "b0"), None)
        time.sleep(_SETTLING)
        measured(
            daemon,
            f"StartBuild, {len(paths)} files staged before",
            lambda: daemon.start_build("base", "b1"),
            lambda: ask_raw(server.url, len(paths)),
        )
        for number in range(1, 4):
            finish(daemon, f"b{number}")
            time.sleep(_SETTLING)
            measured(
                daemon,
                "StartBuild, nothing changed",
                partial(daemon.start_build, "base", f"b{number + 1}"),
                None,
            )
        changed = paths[:: len(paths) // 50][:50]
        stage(daemon, "another", "b4", changed)
        measured(daemon, "FinalizeBuild, 50 files changed", lambda: finish(daemon, "b4"), None)
        time.sleep(_SETTLING)
        measured(daemon, "StartBuild, 50 files changed", lambda: daemon.start_build("base", "b5"), None)


def ten_bases(directories: int, files: int) -> None:
    paths = paths_of(directories // 10, files)
    with remote() as server, tempfile.TemporaryDirectory(prefix="outputd-bench-") as place:
        with running_daemon("--remote", server.url, place=place) as daemon:
            for number in range(10):
                daemon.start_build(f"base{number}", f"b{number}")
                stage(daemon, f"base{number}", f"b{number}", paths)
                finish(daemon, f"b{number}")
                daemon.start_build(f"base{number}", f"c{number}")
                finish(daemon, f"c{number}")
        began = time.perf_counter()
        with running_daemon("--remote", server.url, place=place) as daemon:
            print(f"{'restart':44} {time.perf_counter() - began:8.2f}")
            measured(
                daemon,
                f"first StartBuild, {len(paths)} files in each of 10",
                lambda: daemon.start_build("base0", "d0"),
                None,
            )
            measured(
                daemon,
                "StartBuild of the other nine",
                lambda: [daemon.start_build(f"base{number}", f"d{number}") for number in range(1, 10)],
                None,
            )
            print(f"{'memory of the daemon, MiB':44} {daemon.memory() / 2**20:8.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directories", type=int, default=3000)
    parser.add_argument("--files", type=int, default=100, help="in each directory")
    options = parser.parse_args()
    heading("raw question")
    one_base(options.directories, options.files)
    ten_bases(options.directories, options.files)


if __name__ == "__main__":
    main()
