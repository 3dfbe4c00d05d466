"""Readers that wait: who is to stop is let go, who only gets a signal is not, nobody else notices. Real daemon, real mount."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from outputd._proto import remote_execution_pb2 as reapi
from tests.daemon_fixture import Daemon
from tests.e2e.test_bad_remote import ALWAYS, BOUND, World, world
from tests.service_client import digest_of
from tests.unit.store.fake_remote import Fault

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

SIZE = 10_000


@pytest.fixture(scope="module")
def patient() -> Iterator[World]:
    """A daemon that would wait for ever."""
    with world(outputs__read_timeout="600", remote__timeout="600") as here:
        yield here


def stuck(daemon: Daemon, *arguments: str) -> Any:
    """What `outputd stuck --json` tells."""
    command = [sys.executable, "-m", "outputd.cli.main", "stuck", "--json", "--listen", daemon.target]
    told = subprocess.run(
        [*command, *arguments], env=daemon.environment(), capture_output=True, check=True, timeout=60
    )
    return json.loads(told.stdout)


@contextlib.contextmanager
def process_that(does: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that does something with `path`, and has handlers for two signals; gone at the end."""
    script = f"""
import mmap, os, signal, sys
path = sys.argv[1]
def stop(*_): os.write(2, b"told to stop"); os._exit(7)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGURG, lambda *_: None)
{does}
"""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", script, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


READ = "sys.stdout.buffer.write(open(path, 'rb').read())"
MAP = "sys.stdout.buffer.write(mmap.mmap(os.open(path, os.O_RDONLY), 0, prot=mmap.PROT_READ)[:])"
RANDOM_MAP = """
mapping = mmap.mmap(os.open(path, os.O_RDONLY), 0, prot=mmap.PROT_READ)
mapping.madvise(mmap.MADV_RANDOM)
os.write(1, mapping)
"""
APPEND = (
    "os.close(os.open(path, os.O_WRONLY | os.O_APPEND)); sys.stdout.buffer.write(open(path, 'rb').read())"
)


@pytest.mark.parametrize("does", [READ, MAP, RANDOM_MAP, APPEND], ids=["read", "map", "random", "append"])
def test_a_signal_that_asks_nobody_to_stop_harms_no_reader(
    patient: World, does: str, request: pytest.FixtureRequest
) -> None:
    """Above all not one that hands a mapping to the kernel: the kernel's own page fault would end with EFAULT."""
    here = patient
    data = request.node.name.encode() * 100
    path = here.stage(request.node.name, data)
    here.remote.forget_calls()
    here.remote.fail("BatchReadBlobs", Fault(delay=2.0))
    with process_that(does, path) as process:
        here.remote.called("BatchReadBlobs")
        while process.poll() is None:
            process.send_signal(signal.SIGURG)
            time.sleep(0.1)
        out, said = process.communicate(timeout=BOUND)
        assert (process.returncode, out, said) == (0, data, b"")
    here.check_healthy()


@pytest.mark.parametrize("does", [READ, APPEND], ids=["read", "append"])
def test_a_handler_runs_while_its_process_waits(
    patient: World, does: str, request: pytest.FixtureRequest
) -> None:
    here = patient
    path = here.stage(request.node.name, request.node.name.encode() * 100)
    here.remote.forget_calls()
    here.remote.fail("BatchReadBlobs", Fault(hang=True))
    with process_that(does, path) as process:
        here.remote.called("BatchReadBlobs")
        # The kernel tells of the first signal alone.
        process.send_signal(signal.SIGURG)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=BOUND)[1]
        assert (process.returncode, said) == (7, b"told to stop")
    here.remote.ended("BatchReadBlobs")
    here.check_healthy()


def test_who_else_waits_gets_the_bytes(patient: World) -> None:
    here = patient
    data = b"both want it" * 100
    path = here.stage("both", data)
    here.remote.forget_calls()
    gate = asyncio.Event()
    here.remote.fail("BatchReadBlobs", Fault(gate=gate))
    with process_that(READ, path) as killed, process_that(READ, path) as other:
        here.remote.called("BatchReadBlobs")
        wait_until(lambda: has_open(killed, path) and has_open(other, path))
        time.sleep(0.2)  # to read is the next thing they do; of who waits for a page of another nothing tells
        killed.kill()
        assert killed.wait(BOUND) == -signal.SIGKILL
        here.remote.open(gate)
        assert other.communicate(timeout=BOUND)[0] == data
    here.check_healthy()


def test_stuck_tells_who_waits_for_what(patient: World) -> None:
    here = patient
    data = b"never comes" * 100
    path = here.stage("stuck file", data)
    here.remote.forget_calls()
    here.remote.fail("BatchReadBlobs", Fault(hang=True))
    assert stuck(here.daemon, "--older-than", "0") == {"kernel_requests": [], "calls": [], "fetches": []}
    with process_that(READ, path) as process:
        here.remote.called("BatchReadBlobs")
        time.sleep(0.3)
        found = stuck(here.daemon, "--older-than", "0.2")
        assert stuck(here.daemon, "--older-than", "600") == {
            "kernel_requests": [],
            "calls": [],
            "fetches": [],
        }
        process.kill()
    [request] = found["kernel_requests"]
    assert request.pop("age_seconds") >= 0.2
    digest = f"{digest_of(data).hash}/{len(data)}"
    assert request == {
        "opcode": "READ",
        "path": str(path),
        "pid": process.pid,
        "process": os.path.basename(sys.executable)[:15],
        "waits_for": f"blob {digest}",
    }
    [fetch] = found["fetches"]
    assert fetch.pop("age_seconds") >= 0.2
    assert fetch == {
        "digest": f"sha256:{digest}",
        "received_bytes": 0,
        "size_bytes": len(data),
        "waiters": 1,
        "remote": here.relay.url,
        "instance_name": "",
    }
    here.remote.ended("BatchReadBlobs")
    here.check_healthy()
    assert stuck(here.daemon, "--older-than", "0") == {"kernel_requests": [], "calls": [], "fetches": []}


def has_open(process: subprocess.Popen[bytes], path: Path) -> bool:
    place = Path(f"/proc/{process.pid}/fd")
    return str(path) in [os.readlink(place / number) for number in os.listdir(place)]


def read_all(paths: list[Path]) -> None:
    for path in paths:
        assert path.read_bytes()


def cold(paths: list[Path]) -> float:
    """How long it takes to read them all from the daemon, in seconds."""
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("1")
    began = time.monotonic()
    read_all(paths)
    return time.monotonic() - began


def test_a_thousand_readers_that_wait_delay_no_local_one() -> None:
    """Neither small files nor large ones that are read ahead of; without passthrough each read is ours to answer."""
    settings = {
        "outputs__read_timeout": "600",
        "remote__timeout": "600",
        "mount__passthrough": "false",
        "mount__attr_timeout": "0",
    }
    with world(**settings) as here:
        contents = {f"here/{number}": b"%06d" % number * 500 for number in range(1000)}
        contents["here/large"] = os.urandom(8 << 20)
        here.build.stage({name: here.remote.add(data) for name, data in contents.items()})
        absent = {
            f"absent/{number}": reapi.Digest(
                hash=f"{number:064x}", size_bytes=4 << 20 if number % 2 else SIZE
            )
            for number in range(1000)
        }
        here.build.stage(absent)
        local = [here.top / name for name in contents]
        read_all(local)  # now they are
        alone = min(cold(local) for _ in range(3))
        for method in ("BatchReadBlobs", "Read"):
            here.remote.fail(method, *[Fault(hang=True)] * ALWAYS)
        with ThreadPoolExecutor(1000) as threads, contextlib.ExitStack() as stack:
            stack.callback(here.relay.cut)  # ends the readers
            readers = [threads.submit(error_of, here.top / name) for name in absent]
            wait_until(lambda: len(stuck(here.daemon, "--older-than", "0")["kernel_requests"]) >= 1000)
            beside = min(cold(local) for _ in range(3))
            assert not any(reader.done() for reader in readers)
            here.daemon.expects("READ of /outputs/base/absent/.* failed with EREMOTEIO")
            here.daemon.allows("was given up")  # unless it is stopped before the probe has ended
        errors = {reader.result(BOUND) for reader in readers}
        assert errors == {errno.EREMOTEIO}
        print(f"1001 local files: {alone:.2f} s alone, {beside:.2f} s beside 1000 readers that wait")
        assert beside < 5 * alone + 1


def error_of(path: Path) -> int | None:
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno
    return None


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
