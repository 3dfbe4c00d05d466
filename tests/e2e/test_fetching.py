"""Files brought, kept and dropped by name; who had what fetched; and who reads everything, with the real daemon and a remote that
counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.remote_thread import RemoteThread
from tests.service_client import BuildClient

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)


@contextlib.contextmanager
def built(
    tmp_path: Path, files: int, *, settings: dict[str, str] | None = None
) -> Iterator[tuple[RemoteThread, Daemon, BuildClient]]:
    """A daemon with one output base in which so many files were staged, none of them fetched; its build runs."""
    with (
        RemoteThread(tmp_path / "remote") as remote,
        daemon_fixture.running("--remote", remote.url, settings=settings) as daemon,
        daemon_fixture.connected(daemon) as channel,
    ):
        build = BuildClient(channel, daemon.outputs)
        build.start()
        build.stage({f"k8/bin/pkg/{n:03}": remote.add(b"content of %d\n" % n) for n in range(files)})
        build.stage({f"k8/bin/other/{n}": remote.add(b"other %d\n" % n) for n in range(5)})
        yield remote, daemon, build


def outputd(daemon: Daemon, *arguments: str, code: int = 0, given: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "outputd.cli.main", *arguments, "--listen", daemon.target],
        env=daemon.environment(),
        cwd=daemon.place,
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def stored(daemon: Daemon) -> int:
    return sum(file.is_file() for file in (daemon.cache / "blobs").rglob("*"))


def test_prefetch_and_forget(tmp_path: Path) -> None:
    with built(tmp_path, 50) as (remote, daemon, _):
        said = json.loads(outputd(daemon, "prefetch", "k8/bin/*/0*", "--json"))["trees"][0]
        assert (said["matched"]["files"], said["fetched"]["blobs"], said["failed"]) == (51, 51, 0)
        remote.forget_calls()
        assert (daemon.outputs / "base/k8/bin/pkg/007").read_bytes() == b"content of 7\n"
        assert not remote.fake.calls
        said = json.loads(outputd(daemon, "prefetch", "-", "--json", given="k8/bin/other\n"))["trees"][0]
        assert (said["matched"]["files"], said["fetched"]["blobs"]) == (5, 4)
        assert "nothing" not in outputd(daemon, "prefetch", "--label", "//pkg/...")
        outputd(daemon, "prefetch", "nothing/there", code=1)
        before = stored(daemon)
        said = json.loads(outputd(daemon, "forget", f"{daemon.outputs}/base/k8/bin/pkg", "--json"))["trees"][
            0
        ]
        assert (said["matched"]["files"], said["dropped"]["files"], said["only_here"]["files"]) == (50, 50, 0)
        assert stored(daemon) == before - 50
        assert (daemon.outputs / "base/k8/bin/pkg/008").read_bytes() == b"content of 8\n"
        written = daemon.outputs / "base/k8/bin/pkg/000"
        written.unlink()
        written.write_bytes(b"only here")
        said = json.loads(outputd(daemon, "forget", "k8/bin/pkg", "--json"))["trees"][0]
        assert said["only_here"]["files"] == 1
        assert written.read_bytes() == b"only here"


def test_budget(tmp_path: Path) -> None:
    with built(tmp_path, 50) as (_, daemon, _):
        said = json.loads(outputd(daemon, "prefetch", "k8/bin/pkg", "--max-bytes", "100", "--json"))["trees"][
            0
        ]
        assert 0 < said["fetched"]["bytes"] <= 100
        assert said["fetched"]["blobs"] + said["left_out"]["blobs"] == 50


def test_pins(tmp_path: Path) -> None:
    with built(tmp_path, 10) as (remote, daemon, build):
        assert outputd(daemon, "pin") == "nothing is pinned\n"
        outputd(daemon, "pin", "k8/bin/pkg")
        until(lambda: stored(daemon) == 10)
        said = json.loads(outputd(daemon, "forget", "k8/bin", "--json"))["trees"][0]
        assert (said["held"]["files"], said["dropped"]["files"]) == (10, 0)
        outputd(daemon, "gc", "--max-size", "0B")
        assert stored(daemon) == 10
        build.stage({"k8/bin/pkg/new": remote.add(b"new")})
        build.finish()
        until(lambda: stored(daemon) == 11)
        daemon.restart()
        outputd(daemon, "gc", "--max-size", "0B")
        assert stored(daemon) == 11
        until(lambda: json.loads(outputd(daemon, "pin", "--json"))["pins"][0]["matched"]["files"] == 11)
        assert outputd(daemon, "pin", "--remove", "k8/bin/pkg") == "1 pins removed\n"
        outputd(daemon, "pin", "--remove", code=1)
        outputd(daemon, "gc", "--max-size", "0B")
        assert stored(daemon) == 0


def test_top(tmp_path: Path) -> None:
    with built(tmp_path, 10) as (_, daemon, _):
        subprocess.run(["cat", daemon.outputs / "base/k8/bin/pkg/003"], check=True, capture_output=True)
        subprocess.run(["cat", daemon.outputs / "base/k8/bin/pkg/003"], check=True, capture_output=True)
        said = json.loads(outputd(daemon, "top", "--json"))
        [process] = said["processes"]
        assert (process["name"], process["bytes"], process["pieces"]) == ("cat", 13, 1)
        assert [(row["name"], row["bytes"]) for row in said["output_bases"]] == [("base", 13)]
        assert [row["name"] for row in said["targets"]] == ["//pkg"]
        assert "//pkg" in outputd(daemon, "top", "--once")


def test_grep_is_limited(tmp_path: Path) -> None:
    # Nobody is let off: this test may run below a build tool.
    settings = {"crawl.mode": "limit", "crawl.files": "20", "crawl.window": "60", "crawl.allow": "nobody"}
    with built(tmp_path, 100, settings=settings) as (_, daemon, _):
        daemon.expects(r"grep \(process \d+\) reads everything .*add 'grep' to crawl.allow")
        top = daemon.outputs / "base"
        found = subprocess.run(
            ["grep", "-r", "[a-z]", top], capture_output=True, text=True, check=False, process_group=0
        )
        assert found.returncode == 2
        # What was read ahead counts too, once.
        assert len(found.stdout.splitlines()) == 20
        complaints = found.stderr.splitlines()
        assert len(complaints) == 85
        assert all("Operation not permitted" in line for line in complaints)
        assert stored(daemon) == 20
        # What is here can be read all the same, and another job may have its own share fetched.
        again = subprocess.run(
            ["grep", "-rs", "[a-z]", top], capture_output=True, text=True, check=False, process_group=0
        )
        assert len(again.stdout.splitlines()) == 40
        daemon.expects(r"grep \(process \d+\) reads everything")
        [first, second] = json.loads(outputd(daemon, "top", "--json"))["crawlers"]
        assert first["refused"] and second["refused"]


def test_watch(tmp_path: Path) -> None:
    with built(tmp_path, 3) as (_, daemon, build):
        watching = subprocess.Popen(
            [sys.executable, "-m", "outputd.cli.main", "watch", "--listen", daemon.target],
            env=daemon.environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert watching.stdout is not None
        try:
            events: list[dict[str, object]] = []
            number = 0
            while not events:  # it may not listen yet
                (daemon.outputs / f"base/written{number}").write_bytes(b"12345")
                number += 1
                os.set_blocking(watching.stdout.fileno(), False)
                line = watching.stdout.readline()
                events += [json.loads(line)] if line else []
                time.sleep(0.05)
            os.set_blocking(watching.stdout.fileno(), True)
            (daemon.outputs / "base/k8/bin/pkg/001").read_bytes()
            build.stage({"staged": build.digests("k8/bin/pkg/001")[0]})  # type: ignore[dict-item]
            build.finish()
            while events[-1]["event"] != "build finalized":
                events.append(json.loads(watching.stdout.readline()))
        finally:
            watching.kill()
            watching.wait()
            watching.stdout.close()
        assert (events[0]["event"], events[0]["size"]) == ("written", 5)
        names = [(event["event"], event.get("path")) for event in events]
        assert ("fetched", "k8/bin/pkg/001") in names
        assert ("staged", "staged") in names


def test_the_kind_of_file_system_can_be_told(tmp_path: Path) -> None:
    with built(tmp_path, 1) as (_, daemon, _):
        found = subprocess.run(
            ["find", daemon.mount, "-fstype", "fuse.outputd", "-prune", "-o", "-print"],
            capture_output=True,
            check=True,
        )
        assert found.stdout == b""
