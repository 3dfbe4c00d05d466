"""A million artifacts in one output path: memory of the whole daemon and its longest pauses, as `python -m bench.macro.million`.

They are staged in calls of 20,000, looked at once by `find`, dropped by the kernel, and cleaned; the blobs exist nowhere. Meanwhile
a process asks for a name that is never cached, to see how long the daemon lets it wait.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from bench.macro.daemon import Daemon, heading, measured, running_daemon
from bench.macro.staging import BASE, BUILD, drop_caches, paths_of, stage_request, walk
from outputd._proto import bazel_output_service_pb2 as service

CALL = 20_000
"""Artifacts in one call."""


def ask(mount: str, orders: Connection) -> None:
    """lstat again and again; on every order, tell the longest one since the last order."""
    longest = 0.0
    number = 0
    while True:
        number += 1
        began = time.perf_counter()
        try:
            os.lstat(f"{mount}/outputs/absent-{number}")
        except FileNotFoundError:
            longest = max(longest, time.perf_counter() - began)
        time.sleep(0.0005)
        if orders.poll():
            orders.recv()
            orders.send(longest)
            longest = 0.0


def stage(daemon: Daemon, paths: list[str]) -> None:
    for start in range(0, len(paths), CALL):
        request = stage_request(paths[start : start + CALL])
        daemon.call("StageArtifacts", request, service.StageArtifactsResponse)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directories", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=100, help="in each directory")
    options = parser.parse_args()
    paths = paths_of(options.directories, options.files)
    with running_daemon("--remote", "grpc://127.0.0.1:9", watched=True) as daemon:
        top = daemon.start_build(BASE, BUILD)
        ours, theirs = multiprocessing.Pipe()
        asker = multiprocessing.Process(target=ask, args=(daemon.mount, theirs), daemon=True)
        asker.start()

        def step(what: str, work: Callable[[], object]) -> None:
            measured(daemon, what, work, None)
            daemon.settle()
            ours.send(None)
            print(
                f"{'':6}{daemon.memory() / 1e6:.0f} MB; longest so far of a collection {daemon.longest_pause() * 1e3:.1f} ms,"
                f" of an lstat meanwhile {ours.recv() * 1e3:.1f} ms"
            )

        try:
            heading()
            step("nothing", lambda: None)
            step(f"stage {len(paths)} artifacts", lambda: stage(daemon, paths))
            step("walk, cold", lambda: walk(top))
            step("kernel caches dropped", lambda: drop_caches(daemon))
            clean = service.CleanRequest(output_base_id=BASE)
            step("clean", lambda: daemon.call("Clean", clean, service.CleanResponse))
        finally:
            asker.kill()
            asker.join()


if __name__ == "__main__":
    main()
