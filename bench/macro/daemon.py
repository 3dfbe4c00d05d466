"""A daemon of its own for a benchmark: started on temporary directories, measured from outside, stopped. Knows no workload."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import grpc

from outputd._proto import any_pb2
from outputd._proto import bazel_output_service_pb2 as service
from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from outputd._proto import remote_execution_pb2 as reapi

R = TypeVar("R")

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Daemon:
    """A running `outputd serve`."""

    pid: int
    mount: str
    plain: str
    """An empty plain directory on the disk that holds the daemon's store, to compare with."""
    channel: grpc.Channel
    address: str
    """Where it listens."""
    watched: str
    """Where a watched daemon writes its longest pause (observed.py)."""

    def cpu(self) -> float:
        """Seconds of processor time, user and system, all threads."""
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def settle(self) -> None:
        """Return when it has worked off what nobody waits for, as the FORGETs of a kernel that has dropped its caches."""
        used = -1.0
        while used != (used := self.cpu()):
            time.sleep(0.1)

    def memory(self) -> int:
        """Resident bytes."""
        with open(f"/proc/{self.pid}/statm") as file:
            return int(file.read().split()[1]) * _PAGE

    def longest_pause(self) -> float:
        """Seconds of the longest garbage collection of a watched daemon."""
        with open(self.watched) as file:
            return float(file.read())

    def call(self, method: str, request: object, reply: type[R]) -> R:
        """One RPC of BazelOutputService."""
        invoke = self.channel.unary_unary(
            f"/bazel_output_service.BazelOutputService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,  # type: ignore[attr-defined]  # every message class has it
        )
        answer: R = invoke(request)
        return answer

    def start_build(self, base: str, build: str) -> str:
        """Start a build; the output path as the kernel shows it."""
        arguments = any_pb2.Any()
        arguments.Pack(rev2.StartBuildArgs(digest_function=reapi.DigestFunction.SHA256))
        self.call(
            "StartBuild",
            service.StartBuildRequest(
                version=1,
                output_base_id=base,
                build_id=build,
                args=arguments,
                output_path_prefix=f"{self.mount}/outputs",
            ),
            service.StartBuildResponse,
        )
        return f"{self.mount}/outputs/{base}"


@contextlib.contextmanager
def running_daemon(*options: str, place: str | None = None, watched: bool = False) -> Iterator[Daemon]:
    """Start `outputd serve` with these further options. Everything is gone afterwards, but in a `place` that is given."""
    with contextlib.ExitStack() as places:
        top = place or places.enter_context(tempfile.TemporaryDirectory(prefix="outputd-bench-"))
        paths = {name: f"{top}/{name}" for name in ("mount", "state", "cache", "plain")}
        os.makedirs(paths["plain"], exist_ok=True)
        address = f"unix:{top}/socket"
        process = subprocess.Popen(
            [
                *(sys.executable, "-m"),
                *(("bench.macro.observed", f"{top}/pause") if watched else ("outputd.cli.main",)),
                "serve",
                *("--mount", paths["mount"], "--state-dir", paths["state"], "--cache-dir", paths["cache"]),
                *("--listen", address, "--log-level", "warning", *options),
            ]
        )
        try:
            _wait_for(f"{top}/socket", process)
            with grpc.insecure_channel(
                address,
                options=[
                    ("grpc.max_receive_message_length", -1),
                    ("grpc.max_send_message_length", -1),
                ],
            ) as channel:
                yield Daemon(process.pid, paths["mount"], paths["plain"], channel, address, f"{top}/pause")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def measured(daemon: Daemon, what: str, work: Callable[[], R], plain: Callable[[], object] | None) -> R:
    """Run `work` and, beside it, the same on a plain directory; print both."""
    cpu = daemon.cpu()
    began = time.perf_counter()
    result = work()
    wall = time.perf_counter() - began
    cpu = daemon.cpu() - cpu
    beside = ""
    if plain is not None:
        began = time.perf_counter()
        plain()
        beside = f"{time.perf_counter() - began:8.2f}"
    print(f"{what:44} {wall:8.2f} {cpu:8.2f} {beside:>8}", flush=True)
    return result


def heading(beside: str = "plain") -> None:
    """`beside`: what `measured` compares with."""
    print(f"{'':44} {'wall s':>8} {'daemon':>8} {beside:>8}")
    print(f"{'':44} {'':>8} {'cpu s':>8} {'wall s':>8}")


def _wait_for(path: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the daemon ended with exit code {process.returncode}")
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(path)
            return
        time.sleep(0.05)
    raise SystemExit("the daemon does not listen after 30 s")
