"""Local files in an output path beside a plain directory on the same disk: `python -m bench.macro.files`.

Small files, one large file, symlinks, removal, and how long an lstat waits while a client stages artifacts.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import statistics
import subprocess
import threading
import time
from collections.abc import Callable

from bench.macro.daemon import Daemon, heading, measured, running_daemon
from bench.macro.staging import BASE, BUILD, paths_of, stage_request
from outputd._proto import bazel_output_service_pb2 as service

MIB = 1 << 20
PIECE = bytes(range(256)) * (MIB // 256)


def create_small(top: str, count: int) -> None:
    os.mkdir(f"{top}/small")
    for number in range(count):
        with open(f"{top}/small/{number}", "wb", buffering=0) as file:
            file.write(PIECE[:4096])


def read_small(top: str, count: int) -> None:
    for number in range(count):
        with open(f"{top}/small/{number}", "rb", buffering=0) as file:
            assert len(file.read(8192)) == 4096


def write_large(top: str, mebibytes: int) -> None:
    with open(f"{top}/large", "wb", buffering=0) as file:
        for _ in range(mebibytes):
            file.write(PIECE)


def read_large(top: str) -> None:
    buffer = bytearray(MIB)
    with open(f"{top}/large", "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def read_random(top: str, count: int) -> None:
    chosen = random.Random(1)
    size = os.path.getsize(f"{top}/large")
    fd = os.open(f"{top}/large", os.O_RDONLY)
    for _ in range(count):
        os.pread(fd, 4096, chosen.randrange(size - 4096))
    os.close(fd)


def map_large(top: str) -> None:
    with open(f"{top}/large", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        sum(mapped[offset] for offset in range(0, len(mapped), 65536))


def make_links(top: str, count: int) -> None:
    os.mkdir(f"{top}/links")
    for number in range(count):
        os.symlink(f"/somewhere/execroot/bazel-out/bin/{number}", f"{top}/links/{number}")


def walk_links(top: str) -> None:
    for entry in os.scandir(f"{top}/links"):
        os.readlink(entry.path)


def remove(path: str) -> Callable[[], object]:
    return lambda: subprocess.run(["rm", "-rf", path], check=True)


def drop_caches() -> None:
    subprocess.run(["sync"], check=True)
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def both(daemon: Daemon, top: str, what: str, work: Callable[[str], object]) -> None:
    measured(daemon, what, lambda: work(top), lambda: work(daemon.plain))


def lstat_storm(daemon: Daemon, top: str, directories: int, files: int) -> None:
    """lstats by one process while another client stages artifacts; the daemon serves both on one loop."""
    paths = paths_of(directories, files)
    requests = [stage_request(paths[start : start + 5000]) for start in range(0, len(paths), 5000)]
    known = [f"{top}/small/{number}" for number in range(200)]
    done = threading.Event()

    def stage() -> None:
        try:
            for request in requests:
                daemon.call("StageArtifacts", request, service.StageArtifactsResponse)
        finally:
            done.set()

    waits: list[float] = []
    client = threading.Thread(target=stage)
    client.start()
    while not done.is_set():
        for path in known:
            began = time.perf_counter()
            try:
                os.lstat(f"{path}-absent-{len(waits)}")  # never cached: each one is a request
            except FileNotFoundError:
                waits.append(time.perf_counter() - began)
    client.join()
    cuts = statistics.quantiles(waits, n=100)
    print(
        f"lstat while {len(paths)} artifacts are staged: p50 {cuts[49] * 1e3:.2f} ms,"
        f" p99 {cuts[98] * 1e3:.2f} ms, worst {max(waits) * 1e3:.1f} ms ({len(waits)} calls)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=10_000, help="files of 4 KiB")
    parser.add_argument("--large", type=int, default=1024, help="MiB of the large file")
    parser.add_argument("--links", type=int, default=50_000)
    options = parser.parse_args()
    with running_daemon("--remote", "grpc://127.0.0.1:9") as daemon:
        top = daemon.start_build(BASE, BUILD)
        heading()
        small = options.small
        both(daemon, top, f"create {small} x 4 KiB", lambda t: create_small(t, small))
        drop_caches()
        both(daemon, top, f"read {small} x 4 KiB, cold", lambda t: read_small(t, small))
        both(daemon, top, f"read {small} x 4 KiB, warm", lambda t: read_small(t, small))
        both(daemon, top, f"read {small} x 4 KiB, hot", lambda t: read_small(t, small))
        both(daemon, top, f"write {options.large} MiB", lambda t: write_large(t, options.large))
        both(daemon, top, f"read {options.large} MiB, hot", read_large)
        both(daemon, top, "pread 40000 x 4 KiB at random, hot", lambda t: read_random(t, 40_000))
        both(daemon, top, f"map {options.large} MiB, hot", map_large)
        drop_caches()
        both(daemon, top, f"read {options.large} MiB, cold", read_large)
        both(daemon, top, f"create {options.links} symlinks", lambda t: make_links(t, options.links))
        drop_caches()
        both(daemon, top, f"walk and read {options.links} symlinks, cold", walk_links)
        both(daemon, top, f"remove {options.links} symlinks", lambda t: remove(f"{t}/links")())
        lstat_storm(daemon, top, 1000, 100)
        measured(daemon, "rm -rf of 100000 staged files", remove(f"{top}/k8-fastbuild"), None)
        both(daemon, top, f"rm -rf of {small} x 4 KiB", lambda t: remove(f"{t}/small")())


if __name__ == "__main__":
    main()
