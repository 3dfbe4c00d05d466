"""`outputd serve` as a process: what it refuses, what it replaces, how it ends, who may run it, what it says of itself."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.service_client import BuildClient, Cas

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

NOBODY = 65534


@contextlib.contextmanager
def building(daemon: Daemon, target: str = "") -> Iterator[tuple[BuildClient, Cas]]:
    with grpc.insecure_channel(target or daemon.target, options=daemon_fixture.CHANNEL_OPTIONS) as channel:
        yield BuildClient(channel, daemon.outputs), Cas(channel)


def build_something(daemon: Daemon, target: str = "") -> Path:
    """A build with one staged and one local file; returns its output path."""
    top = daemon.outputs / "base"
    with building(daemon, target) as (build, cas):
        build.start()
        build.stage({"staged": cas.put(b"staged content")})
        (top / "local").write_bytes(b"local content")
        build.finish()
    return top


def check_something(top: Path) -> None:
    assert (top / "staged").read_bytes() == b"staged content"
    assert (top / "local").read_bytes() == b"local content"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def outputd(*arguments: str, daemon: Daemon) -> subprocess.CompletedProcess[str]:
    """Another command, with the settings of `daemon`."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "outputd.cli.main", *arguments),
            *("--mount", str(daemon.mount), "--listen", daemon.target),
            *("--state-dir", str(daemon.state), "--cache-dir", str(daemon.cache)),
        ],
        env=daemon.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- what it refuses, without harm to whoever has it


def test_a_second_daemon_on_the_same_directories() -> None:
    with daemon_fixture.running() as first, daemon_fixture.directories() as second:
        top = build_something(first)

        second.state = first.state
        said = second.refuses()
        assert f"state directory {first.state}: in use by the outputd with process id {first.pid};" in said
        assert not second.mount.exists()
        second.state = second.place / "state"

        second.mount = first.mount
        assert re.search(
            rf"{first.mount}: an outputd is mounted here already \(.*\) and is alive", second.refuses()
        )
        assert not second.socket.exists()
        second.mount = second.place / "mount"

        second.socket = first.socket
        assert f"cannot listen on {first.target}: another process listens there" in second.refuses()
        assert not os.path.ismount(second.mount)
        second.socket = second.place / "socket"

        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            second.options = ["--listen", f"127.0.0.1:{port}"]
            assert f"cannot listen on 127.0.0.1:{port}: it is in use" in second.refuses()
        assert not os.path.ismount(second.mount)
        assert not second.socket.exists()

        check_something(top)
        build_something(first)
        # Nothing of all that is in the way of a start that is right.
        second.options = []
        second.start()
        check_something(build_something(second))


def test_two_that_start_at_once_on_one_mount_point() -> None:
    with daemon_fixture.directories() as one, daemon_fixture.directories() as other:
        other.mount = one.mount
        for _ in range(3):
            one.begin()
            other.begin()
            deadline = time.monotonic() + 30
            winners: list[Daemon] = []
            while not winners:
                assert time.monotonic() < deadline
                winners = [a for a, b in ((one, other), (other, one)) if b._running().poll() is not None]
                time.sleep(0.02)
            (winner,) = winners
            loser = other if winner is one else one
            assert loser.wait() == 1
            loser.expects(
                "an outputd is mounted here already|another outputd was mounted here at the same moment"
            )
            while not winner._listening():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            check_something(build_something(winner))
            winner.stop()
            assert not os.path.ismount(one.mount)


def test_what_others_have_mounted_is_refused() -> None:
    """Even when nobody answers there."""
    with daemon_fixture.directories() as daemon:
        daemon.mount.mkdir()
        device = os.open("/dev/fuse", os.O_RDWR)
        try:
            options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
            command = ["mount", "-i", "-t", "fuse.foreign", "-o", options, "foreign", str(daemon.mount)]
            subprocess.run(command, check=True, timeout=60, pass_fds=(device,))
            assert "a file system of type fuse.foreign from foreign is mounted here" in daemon.refuses()
        finally:
            os.close(device)


def test_what_is_no_socket_is_never_removed() -> None:
    with daemon_fixture.directories() as daemon:
        daemon.socket.write_text("somebody's work")
        assert f"unix:{daemon.socket}: " in daemon.refuses()
        assert daemon.socket.read_text() == "somebody's work"


def test_places_that_cannot_be_used() -> None:
    with daemon_fixture.directories() as daemon:
        plain = daemon.place / "plain"
        plain.write_text("a file")
        daemon.state = plain / "state"
        assert f"{plain}" in daemon.refuses()
        daemon.state = daemon.place / "state"
        daemon.cache = plain
        assert f"{plain}" in daemon.refuses()
        daemon.cache = daemon.place / "cache"
        daemon.mount = plain
        assert f"{plain}: is no directory" in daemon.refuses()
        daemon.mount = daemon.place / "full"
        daemon.mount.mkdir()
        (daemon.mount / "file").write_text("would be hidden")
        assert f"{daemon.mount}: is not empty" in daemon.refuses()
        daemon.mount = daemon.place / "mount"
        daemon.socket = daemon.place / "absent" / "socket"
        assert "its directory does not exist" in daemon.refuses()
        assert not os.path.ismount(daemon.mount)


# --- what it replaces


def test_what_a_killed_daemon_left_behind() -> None:
    with daemon_fixture.running() as daemon:
        top = build_something(daemon)
        assert (
            daemon.mount.stat().st_ino == 1
        )  # which the kernel remembers now, and beyond the daemon's death
        daemon.kill()
        with pytest.raises(OSError, match="not connected") as raised:
            os.listdir(top)
        assert raised.value.errno == errno.ENOTCONN
        assert daemon.socket.is_socket()

        daemon.expects("took off 1 mounts of dead daemons")
        daemon.start()
        check_something(top)
        with building(daemon) as (build, cas):
            build.start()
            assert build.digests("staged", "local") == cas.put_all([b"staged content", b"local content"])


# --- how it ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_in_order(number: signal.Signals) -> None:
    with daemon_fixture.directories() as daemon:
        daemon.start()
        top = build_something(daemon)
        daemon.send(number)
        assert daemon.wait() == 0
        assert not os.path.ismount(daemon.mount)
        assert not daemon.socket.exists()
        daemon.start()
        check_something(top)


def test_it_stops_while_it_is_in_use() -> None:
    """Open files, a mapped one, a working directory inside: it ends all the same, and what was written is kept."""
    with daemon_fixture.running() as daemon:
        top = build_something(daemon)
        with building(daemon) as (build, _):
            build.start("never finished")
            resident = subprocess.Popen(["cat"], cwd=top, stdin=subprocess.PIPE)
            with open(top / "staged", "rb"), open(top / "open", "wb") as writer:
                writer.write(b"written, not closed")
                writer.flush()
                daemon.expects("was in use; unmounted all the same")
                daemon.stop()
            resident.communicate(timeout=60)
        assert not os.path.ismount(daemon.mount)
        daemon.start()
        check_something(top)
        assert (top / "open").read_bytes() == b"written, not closed"


def test_it_stops_in_the_middle_of_calls() -> None:
    """What it has said yes to is there after the restart; what came too late was told so."""
    with daemon_fixture.running() as daemon, building(daemon) as (build, cas):
        build.start()
        digest = cas.put(b"x")
        staged: list[str] = []
        under_way = threading.Event()

        def stage() -> grpc.StatusCode:
            while True:
                names = [f"d{len(staged)}/f{number}" for number in range(500)]
                try:
                    build.stage(dict.fromkeys(names, digest))
                except grpc.RpcError as error:
                    return error.code()
                staged.extend(names)
                under_way.set()

        with ThreadPoolExecutor(1) as threads:
            last = threads.submit(stage)
            assert under_way.wait(30)
            daemon.stop()
            assert last.result(30) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        daemon.start()
        assert all((daemon.outputs / "base" / name).exists() for name in staged)


def test_the_second_signal_means_now() -> None:
    with daemon_fixture.running() as daemon:
        top = build_something(daemon)
        took = []
        for signals in (1, 2):
            with subprocess.Popen(["cat"], cwd=top, stdin=subprocess.PIPE) as resident:
                assert resident.stdin is not None
                stopping = daemon.words().count("stopping in order")
                began = time.monotonic()
                daemon.send(signal.SIGTERM)
                while daemon.words().count("stopping in order") == stopping:
                    assert time.monotonic() - began < 30
                    time.sleep(0.01)
                if signals == 2:
                    daemon.expects("stopping at once: what was not saved yet is as after a crash")
                    daemon.send(signal.SIGTERM)
                assert daemon.wait() == signals - 1
                took.append(time.monotonic() - began)
                resident.stdin.close()
            if signals == 1:
                daemon.expects("was in use; unmounted all the same")
                daemon.start()
        in_order, at_once = took
        # In order it waits two seconds for `resident` to leave.
        assert at_once < in_order - 1
        daemon.expects("took off 1 mounts of dead daemons")
        daemon.start()
        check_something(top)


def test_the_mount_is_taken_away() -> None:
    with daemon_fixture.running() as daemon:
        build_something(daemon)
        subprocess.run(["umount", str(daemon.mount)], check=True, timeout=60)
        daemon.expects(
            "outputd: the mount was taken away from outside: nothing is left to serve; start outputd again"
        )
        assert daemon.wait() == 1
        assert not daemon.socket.exists()
        daemon.start()
        check_something(daemon.outputs / "base")


def test_the_connection_is_aborted() -> None:
    """As an administrator does with a mount that hangs."""
    with daemon_fixture.running() as daemon, fuse_control() as connections:
        build_something(daemon)
        (connections / str(os.stat(daemon.mount).st_dev) / "abort").write_text("1")
        daemon.expects("outputd: the mount was taken away from outside")
        assert daemon.wait() == 1
        assert not os.path.ismount(daemon.mount)
        daemon.start()
        check_something(daemon.outputs / "base")


@contextlib.contextmanager
def fuse_control() -> Iterator[Path]:
    """The control file system of FUSE, which containers have not mounted."""
    connections = Path("/sys/fs/fuse/connections")
    if any(connections.iterdir()):
        yield connections
        return
    subprocess.run(["mount", "-t", "fusectl", "fusectl", str(connections)], check=True, timeout=60)
    try:
        yield connections
    finally:
        subprocess.run(["umount", str(connections)], check=True, timeout=60)


# --- where it listens, what it says


def test_it_listens_on_tcp_too() -> None:
    port = free_port()
    with daemon_fixture.running("--listen", f"127.0.0.1:{port}") as daemon:
        daemon.logged("listening on .*, ")  # on the socket first, which is all that the start waited for
        check_something(build_something(daemon, f"127.0.0.1:{port}"))
        check_something(build_something(daemon))
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600


def test_status_and_doctor() -> None:
    with daemon_fixture.running() as daemon:
        with building(daemon) as (build, cas):
            build.start("one")
            build.stage({f"f{number}": cas.put(b"x") for number in range(10)})
        told = json.loads(outputd("status", "--json", daemon=daemon).stdout)
        assert (told["pid"], told["mount"]["path"]) == (daemon.pid, str(daemon.mount))
        (base,) = told["output_bases"]
        assert (base["id"], base["running_build_id"], base["entries"]) == ("base", "one", 10)
        assert "running one" in outputd("status", daemon=daemon).stdout

        examined = outputd("doctor", "--json", daemon=daemon)
        findings = {finding["check"]: finding for finding in json.loads(examined.stdout)["findings"]}
        assert findings["daemon"]["verdict"] == "pass"
        assert findings["mount"]["verdict"] == "pass"
        assert str(daemon.pid) in findings["daemon"]["reason"]
        assert examined.returncode == 0, examined.stdout

        daemon.kill()
        assert outputd("status", daemon=daemon).returncode == 4
        examined = outputd("doctor", "--json", daemon=daemon)
        findings = {finding["check"]: finding for finding in json.loads(examined.stdout)["findings"]}
        assert findings["socket"]["verdict"] == "pass"
        assert findings["mount"]["verdict"] != "pass"
        assert findings["mount"]["fix"]


# --- who may run it


@pytest.fixture
def unprivileged() -> Iterator[Daemon]:
    """Directories for a daemon of a user without privileges, in a mount namespace where everybody may open /dev/fuse.

    On some machines that device is root's alone, and what this test changes must not be seen by the machine.
    """
    with tempfile.TemporaryDirectory(prefix="outputd-test-") as directory:
        device = os.path.join(directory, "fuse")
        os.mknod(device, 0o600 | stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
        os.chmod(device, 0o666)
        namespace = subprocess.Popen(
            [
                "unshare",
                "-m",
                "--propagation",
                "private",
                "sh",
                "-c",
                f"mount --bind {device} /dev/fuse && echo && exec cat",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert namespace.stdin is not None
        assert namespace.stdout is not None
        assert namespace.stdout.readline() == b"\n"
        try:
            with daemon_fixture.directories(within=as_nobody(namespace.pid)) as daemon:
                os.chown(daemon.place, NOBODY, NOBODY)
                yield daemon
        finally:
            namespace.communicate(timeout=60)


def as_nobody(namespace: int) -> tuple[str, ...]:
    """Run the rest of a command in a mount namespace as a user without any privilege but one: to reach the Python that runs the
    tests, which may lie in root's home."""
    identity = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    reach = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    return ("nsenter", f"--mount=/proc/{namespace}/ns/mnt", "setpriv", *identity, *reach)


@pytest.mark.skipif(not shutil.which("fusermount3"), reason="fusermount3 is not installed")
def test_a_user_without_privileges(unprivileged: Daemon) -> None:
    daemon = unprivileged
    top = daemon.outputs / "base"

    def sh(script: str) -> str:
        command = [*daemon.within, "sh", "-c", script]
        return subprocess.run(command, check=True, timeout=60, capture_output=True, text=True, cwd="/").stdout

    daemon.start()
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    assert f"Uid:\t{NOBODY}" in status
    # Not seen from here, and closed even to root: allow_other was not asked for.
    assert not os.path.ismount(daemon.mount)
    with pytest.raises(PermissionError):
        os.listdir(f"/proc/{daemon.pid}/root{daemon.mount}")

    with building(daemon) as (build, cas):
        build.start()
        program = b"#!/bin/sh\necho run by $(id -u)\n"
        build.stage({"bin/program": cas.put(program), "data": cas.put(b"staged content")})
        assert sh(f"{top}/bin/program") == f"run by {NOBODY}\n"
        assert sh(f"cat {top}/data; stat -c %u:%g {top}/data {top}/bin") == (
            f"staged content{NOBODY}:{NOBODY}\n{NOBODY}:{NOBODY}\n"
        )
        sh(
            f"cd {top} && echo local > local && mkdir d && mv local d/moved && ln -s d/moved link && chmod 0555 d/moved"
        )
        assert build.digests("d/moved") == [cas.put(b"local\n")]
        build.finish()

    daemon.kill()
    daemon.expects("took off 1 mounts of dead daemons")
    daemon.start()
    assert sh(f"cat {top}/data {top}/link") == "staged contentlocal\n"
    daemon.stop()
    assert sh(f"grep -c {daemon.mount} /proc/self/mountinfo || true") == "0\n"
