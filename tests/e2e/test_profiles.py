"""What programs read is recorded and replayed, with the real daemon, mount and command line, and a remote that counts."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.remote_thread import RemoteThread
from tests.service_client import BuildClient

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

MIB = 1 << 20
LARGE = random.Random(4).randbytes(24 * MIB)
SMALL = {f"k8/bin/pkg/{n:03}": b"content of %d\n" % n for n in range(40)}


@contextlib.contextmanager
def built(
    tmp_path: Path, *, settings: Mapping[str, str] | None = None, passthrough: bool = True
) -> Iterator[tuple[RemoteThread, Daemon, Callable[[str], BuildClient]]]:
    """A daemon, and what makes a build of an output base with small files and a large one, none of them fetched."""
    with (
        RemoteThread(tmp_path / "remote") as remote,
        daemon_fixture.running(
            "--remote",
            remote.url,
            settings={"mount.passthrough": "true" if passthrough else "false", **(settings or {})},
        ) as daemon,
        daemon_fixture.connected(daemon) as channel,
    ):
        digests = {path: remote.add(data) for path, data in SMALL.items()}
        digests["k8/bin/app"] = remote.add(LARGE)

        def build(base: str) -> BuildClient:
            client = BuildClient(channel, daemon.outputs, base)
            client.start()
            client.stage(digests)
            return client

        yield remote, daemon, build


def outputd(daemon: Daemon, *arguments: str, code: int = 0, given: str = "") -> str:
    done = subprocess.run(
        command(daemon, *arguments),
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


def command(daemon: Daemon, *arguments: str) -> list[str]:
    at = arguments.index("--") if "--" in arguments else len(arguments)
    options = [*arguments[:at], "--listen", daemon.target, *arguments[at:]]
    return [sys.executable, "-m", "outputd.cli.main", *options]


def read(daemon: Daemon, base: str, *paths: str) -> None:
    """By a process of its own."""
    subprocess.run(
        ["cat", *(daemon.outputs / base / path for path in paths)], check=True, stdout=subprocess.DEVNULL
    )


def shown(daemon: Daemon, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(outputd(daemon, "profile", "show", name, "--json"))["files"]
    return found


def paths(daemon: Daemon, name: str) -> list[object]:
    return [file["path"] for file in shown(daemon, name)]


def prefetched(daemon: Daemon, *arguments: str, code: int = 0) -> dict[str, Any]:
    [said] = json.loads(outputd(daemon, "prefetch", *arguments, "--json", code=code))["trees"]
    found: dict[str, Any] = said
    return found


def stored(daemon: Daemon) -> int:
    return sum(file.is_file() for file in (daemon.cache / "blobs").rglob("*"))


@pytest.mark.parametrize("passthrough", [True, False])
@pytest.mark.parametrize("warm", [False, True])
def test_what_is_read_is_recorded_cold_and_warm_and_replayed_elsewhere(
    tmp_path: Path, warm: bool, passthrough: bool
) -> None:
    with built(tmp_path, passthrough=passthrough) as (remote, daemon, build):
        build("base")
        top = daemon.outputs / "base"
        (top / "link").symlink_to("k8/bin")
        if warm:
            read(daemon, "base", *SMALL, "k8/bin/app")
        outputd(daemon, "profile", "record", "p", str(top / "k8"))
        read(daemon, "base", "link/pkg/007")  # as the kernel resolves it
        with open(top / "k8/bin/app", "rb") as file:
            file.seek(-100, os.SEEK_END)
            assert file.read() == LARGE[-100:]
        read(daemon, "base", "k8/bin/pkg/003", "k8/bin/pkg/007")
        os.listdir(top / "k8/bin/pkg")
        os.stat(top / "k8/bin/pkg/011")
        os.close(os.open(top / "k8/bin/pkg/012", os.O_RDONLY))
        (top / "k8/bin/written").write_bytes(b"by an action")
        # Not in this process, where the remote needs the interpreter that a page fault holds.
        mapped = (
            "import mmap, sys; f = open(sys.argv[1], 'rb'); mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[:]"
        )
        subprocess.run([sys.executable, "-c", mapped, top / "k8/bin/pkg/005"], check=True)
        said = outputd(daemon, "profile", "stop", "p")
        assert said == "profile p: 4 files recorded, 1 of them in part\n"
        files = shown(daemon, "p")
        assert [file["path"] for file in files] == [
            f"k8/bin/{n}" for n in ("pkg/007", "app", "pkg/003", "pkg/005")
        ]
        [[offset, length]] = files[1]["runs"]
        assert offset + length == len(LARGE) and length <= 256 << 10
        # Another output base, of which nothing is here.
        (top / "k8/bin/written").unlink()
        outputd(daemon, "forget", "k8", "--output-base", "base")
        assert stored(daemon) <= 1  # what was written here
        build("other")
        remote.forget_calls()
        said_of = prefetched(daemon, "--profile", "p", "--output-base", "other")
        assert said_of["matched"]["files"] == 4
        remote.forget_calls()
        read(daemon, "other", "k8/bin/pkg/007", "k8/bin/pkg/003", "k8/bin/pkg/005")
        with open(daemon.outputs / "other/k8/bin/app", "rb") as file:
            file.seek(-100, os.SEEK_END)
            assert file.read() == LARGE[-100:]
        assert not remote.fake.calls


def test_only_what_was_read_of_a_large_file_moves(tmp_path: Path) -> None:
    with built(tmp_path) as (remote, daemon, build):
        build("base")
        text = f"outputd-profile: 1\n\nk8/bin/app\t{len(LARGE)} 1048576+65536,{len(LARGE) - 65536}+65536\n"
        outputd(daemon, "profile", "import", "tail", given=text)
        assert outputd(daemon, "profile", "show", "tail") == text
        said = prefetched(daemon, "--profile", "tail")
        assert said["fetched"] == {"blobs": 1, "bytes": 2 * 65536}
        came = json.loads(outputd(daemon, "top", "--json"))["total"]["bytes"]
        assert came == 2 * 65536
        # Again: nothing is missing.
        assert prefetched(daemon, "--profile", "tail")["missing"]["blobs"] == 0
        remote.forget_calls()
        with open(daemon.outputs / "base/k8/bin/app", "rb") as file:
            file.seek(MIB)
            assert os.pread(file.fileno(), 4096, MIB) == LARGE[MIB : MIB + 4096]
            assert os.pread(file.fileno(), 4096, len(LARGE) - 4096) == LARGE[-4096:]


def test_a_command_is_recorded_and_ends_with_its_code(tmp_path: Path) -> None:
    with built(tmp_path) as (_, daemon, build):
        build("base")
        script = f"cat {daemon.outputs}/base/k8/bin/pkg/001 && exit 7"
        said = outputd(daemon, "profile", "record", "c", "--", "sh", "-c", script, code=7)
        assert said == "content of 1\n"
        assert paths(daemon, "c") == ["k8/bin/pkg/001"]
        read(daemon, "base", "k8/bin/pkg/002")
        assert paths(daemon, "c") == ["k8/bin/pkg/001"]
        # A command that is not there spoils nothing.
        outputd(daemon, "profile", "record", "c", "--", "no such command", code=127)
        assert paths(daemon, "c") == ["k8/bin/pkg/001"]
        outputd(daemon, "profile", "record", "c", "--", "sh", "-c", "kill -9 $$", code=137)
        assert paths(daemon, "c") == []
        outputd(daemon, "profile", "stop", "c", code=1)


def test_signals_reach_the_command_and_the_profile_is_kept(tmp_path: Path) -> None:
    with built(tmp_path) as (_, daemon, build):
        build("base")
        script = f"trap 'exit 3' TERM; cat {daemon.outputs}/base/k8/bin/pkg/001; echo; while :; do sleep 0.05; done"
        running = subprocess.Popen(
            command(daemon, "profile", "record", "s", "--", "sh", "-c", script),
            env=daemon.environment(),
            cwd=daemon.place,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert running.stdout is not None
        with running.stdout:
            assert running.stdout.readline() == b"content of 1\n"
            running.send_signal(signal.SIGTERM)
            assert running.wait(20) == 3
        assert paths(daemon, "s") == ["k8/bin/pkg/001"]


@pytest.mark.parametrize("how", ["stop", "kill", "restart"])
def test_a_recording_goes_on_after_a_restart(tmp_path: Path, how: str) -> None:
    with built(tmp_path) as (_, daemon, build):
        build("base")
        outputd(daemon, "profile", "record", "r")
        read(daemon, "base", "k8/bin/pkg/030", "k8/bin/pkg/010")
        if how == "restart":
            outputd(daemon, "restart")
        elif how == "stop":
            daemon.restart()
        else:
            time.sleep(1.5)  # what durability.md says may be lost
            daemon.expects("dead daemons")
            daemon.kill()
            daemon.start()
        read(daemon, "base", "k8/bin/pkg/010", "k8/bin/pkg/020")
        [about] = json.loads(outputd(daemon, "profile", "list", "--json"))["profiles"]
        assert (about["name"], about["recording"], about["files"]) == ("r", True, 3)
        outputd(daemon, "profile", "stop", "r")
        daemon.restart()
        assert paths(daemon, "r") == ["k8/bin/pkg/030", "k8/bin/pkg/010", "k8/bin/pkg/020"]


def test_a_file_that_was_passed_through_before_counts_as_a_whole(tmp_path: Path) -> None:
    with built(tmp_path) as (_, daemon, build):
        build("base")
        prefetched(daemon, "k8/bin/app")
        with open(daemon.outputs / "base/k8/bin/app", "rb"):
            outputd(daemon, "profile", "record", "p")
            with open(daemon.outputs / "base/k8/bin/app", "rb") as again:
                again.read(10)
        outputd(daemon, "profile", "stop", "p")
        assert shown(daemon, "p") == [{"path": "k8/bin/app"}]


def test_what_is_gone_is_counted_and_fails_nothing(tmp_path: Path) -> None:
    with built(tmp_path) as (_, daemon, build):
        build("base")
        text = "outputd-profile: 1\n\nk8/bin/pkg/001\nk8/bin/pkg\nnot/there\nk8/bin/pkg/001/deeper\n"
        (daemon.place / "p").write_text(text)
        said = prefetched(daemon, "--profile-file", "p")
        assert (said["matched"]["files"], said["absent"], said["failed"]) == (1, 3, 0)
        (daemon.place / "p").write_text("outputd-profile: 1\n\nnot/there\n")
        prefetched(daemon, "--profile-file", "p", code=1)
        (daemon.place / "p").write_text("outputd-profile: 1\n\na\n../../etc/passwd\n")
        outputd(daemon, "prefetch", "--profile-file", "p", code=1)
        outputd(daemon, "prefetch", "--profile", "none", code=1)
        outputd(daemon, "prefetch", "--profile", "none", "pattern", code=1)


def test_budget(tmp_path: Path) -> None:
    with built(tmp_path) as (_, daemon, build):
        build("base")
        outputd(
            daemon,
            "profile",
            "import",
            "p",
            given="outputd-profile: 1\n\n" + "".join(f"{p}\n" for p in SMALL),
        )
        said = prefetched(daemon, "--profile", "p", "--max-bytes", "100")
        assert 0 < said["fetched"]["bytes"] <= 100
        assert said["fetched"]["blobs"] + said["left_out"]["blobs"] == len(SMALL)


def test_the_settings_have_profiles_replayed_after_builds(tmp_path: Path) -> None:
    settings = {"prefetch.profiles": "p@ba*,none"}
    with built(tmp_path, settings=settings) as (_, daemon, build):
        build("other").finish()
        outputd(
            daemon, "profile", "import", "p", given="outputd-profile: 1\n\nk8/bin/pkg/004\nk8/bin/pkg/009\n"
        )
        client = build("base")
        assert stored(daemon) == 0
        client.finish()
        daemon.logged("profile p replayed in output base base: 2 blobs brought")
        daemon.logged("output base base: profile none: there is none")
        assert len(re.findall("profile p replayed", daemon.words())) == 1
        assert stored(daemon) == 2


def test_long_work_shows_how_far_it_is_on_a_terminal_alone(tmp_path: Path) -> None:
    with built(tmp_path) as (_, daemon, build):
        build("base")
        terminal, other_end = pty.openpty()
        try:
            for arguments in (
                ["prefetch", "k8/bin/pkg"],
                ["pin", "--wait", "k8/bin/app"],
                ["verify"],
                ["gc"],
            ):
                done = subprocess.run(
                    command(daemon, *arguments),
                    env=daemon.environment(),
                    cwd=daemon.place,
                    stdout=subprocess.PIPE,
                    stderr=other_end,
                    timeout=60,
                    check=True,
                )
                shown = os.read(terminal, 1 << 16)
                assert shown.startswith(b"\r\x1b[K") and shown.endswith(b"\r\x1b[K"), arguments
                assert b"\x1b" not in done.stdout
        finally:
            os.close(terminal)
            os.close(other_end)
        assert stored(daemon) == len(SMALL) + 1  # `pin --wait` has waited
        piped = subprocess.run(
            command(daemon, "prefetch", "k8"),
            env=daemon.environment(),
            cwd=daemon.place,
            capture_output=True,
            check=True,
        )
        assert piped.stderr == b""
