"""Staging, stats and walks of 100,000 artifacts in 1,000 directories, beside a plain directory: `python -m bench.macro.staging`.

The artifacts' blobs exist nowhere: none of this may need them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import statistics
import subprocess
import time

from bench.macro.daemon import Daemon, heading, measured, running_daemon
from outputd._proto import any_pb2
from outputd._proto import bazel_output_service_pb2 as service
from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from outputd._proto import remote_execution_pb2 as reapi

BASE = "0123456789abcdef0123456789abcdef"
BUILD = "b0000000-0000-0000-0000-000000000001"


def paths_of(directories: int, files: int) -> list[str]:
    """Paths as Bazel's are: some levels deep, names of some length."""
    return [
        f"k8-fastbuild/bin/package{d // 100}/target{d}/output_file_{f}.pic.o"
        for d in range(directories)
        for f in range(files)
    ]


def stage_request(paths: list[str]) -> service.StageArtifactsRequest:
    request = service.StageArtifactsRequest(build_id=BUILD)
    for path in paths:
        digest = reapi.Digest(hash=hashlib.sha256(path.encode()).hexdigest(), size_bytes=4096 + len(path))
        locator = any_pb2.Any()
        locator.Pack(rev2.FileArtifactLocator(digest=digest))
        request.artifacts.add(path=path, locator=locator)
    return request


def batch_stat(daemon: Daemon, paths: list[str], size: int) -> int:
    """BatchStat of all, `size` at a time; how many had a locator."""
    located = 0
    for start in range(0, len(paths), size):
        reply = daemon.call(
            "BatchStat",
            service.BatchStatRequest(build_id=BUILD, paths=paths[start : start + size]),
            service.BatchStatResponse,
        )
        located += sum(response.stat.file.HasField("locator") for response in reply.responses)
    return located


def single_stats(daemon: Daemon, paths: list[str]) -> None:
    times = []
    for path in paths:
        began = time.perf_counter()
        batch_stat(daemon, [path], 1)
        times.append(time.perf_counter() - began)
    cuts = statistics.quantiles(times, n=100)
    print(f"{'':6}one path a call: p50 {cuts[49] * 1e3:.2f} ms, p99 {cuts[98] * 1e3:.2f} ms")


def lstat_all(top: str, paths: list[str]) -> None:
    for path in paths:
        os.lstat(f"{top}/{path}")


def walk(top: str) -> None:
    subprocess.run(["find", top, "-printf", ""], check=True)


def drop_caches(daemon: Daemon) -> None:
    """Dentries and inodes, ours and those of the plain directory; until the daemon has been told of all that."""
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("2")
    daemon.settle()


def plain_copy(top: str, paths: list[str]) -> None:
    """The same names as empty plain files."""
    for directory in dict.fromkeys(os.path.dirname(path) for path in paths):
        os.makedirs(f"{top}/{directory}")
    for path in paths:
        os.close(os.open(f"{top}/{path}", os.O_CREAT | os.O_WRONLY, 0o755))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directories", type=int, default=1000)
    parser.add_argument("--files", type=int, default=100, help="in each directory")
    options = parser.parse_args()
    paths = paths_of(options.directories, options.files)
    request = stage_request(paths)
    # The embedded store would know that the blobs are nowhere; a remote that is never reached is not asked.
    with running_daemon("--remote", "grpc://127.0.0.1:9") as daemon:
        top = daemon.start_build(BASE, BUILD)
        plain = daemon.plain
        heading()
        before = daemon.memory()
        reply = measured(
            daemon,
            f"stage {len(paths)} artifacts, one call",
            lambda: daemon.call("StageArtifacts", request, service.StageArtifactsResponse),
            lambda: plain_copy(plain, paths),
        )
        failed = [response.status.message for response in reply.responses if response.status.code]
        assert len(reply.responses) == len(paths) and not failed, failed[:3]
        staged = daemon.memory()
        measured(
            daemon,
            f"BatchStat {len(paths)} paths, one call",
            lambda: batch_stat(daemon, paths, len(paths)),
            lambda: lstat_all(plain, paths),
        )
        located = measured(
            daemon,
            f"BatchStat {len(paths)} paths, 1000 a call",
            lambda: batch_stat(daemon, paths, 1000),
            lambda: lstat_all(plain, paths),
        )
        assert located == len(paths), located
        sample = random.Random(1).sample(paths, min(len(paths) // 2, 50_000))
        singles = sample[:2000]
        measured(
            daemon,
            f"BatchStat {len(singles)} paths, one a call",
            lambda: single_stats(daemon, singles),
            lambda: lstat_all(plain, singles),
        )
        drop_caches(daemon)
        measured(
            daemon,
            f"lstat of {len(sample)} random paths, cold",
            lambda: lstat_all(top, sample),
            lambda: lstat_all(plain, sample),
        )
        drop_caches(daemon)
        measured(daemon, "walk, cold", lambda: walk(top), lambda: walk(plain))
        measured(daemon, "kernel caches dropped", lambda: drop_caches(daemon), None)
        measured(daemon, "walk, cold again", lambda: walk(top), lambda: walk(plain))
        measured(daemon, "walk, warm", lambda: walk(top), lambda: walk(plain))
        print(f"memory per artifact: {(staged - before) / len(paths):.0f} bytes staged,", end=" ")
        print(f"{(daemon.memory() - before) / len(paths):.0f} when everything was looked at")
        measured(
            daemon,
            "clean",
            lambda: daemon.call("Clean", service.CleanRequest(output_base_id=BASE), service.CleanResponse),
            lambda: subprocess.run(["rm", "-rf", plain], check=True),
        )


if __name__ == "__main__":
    main()
