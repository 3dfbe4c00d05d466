"""A remote that forgets: what StartBuild shows, what is asked between builds and after restarts, what goes back to the remote, and
what `outputd verify` and `outputd status` say. Real daemon, real mount, a small REv2 server.
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
from typing import Any

import grpc
import pytest

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction
from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.remote_thread import RemoteThread
from tests.service_client import BuildClient, digest_of

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

SECONDS = 60.0
"""For anything in the background to happen."""


class World:
    def __init__(self, daemon: Daemon, remote: RemoteThread, build: BuildClient) -> None:
        self.daemon = daemon
        self.remote = remote
        self.build = build
        self.top = daemon.outputs / build.base

    def stage(self, files: dict[str, bytes]) -> None:
        self.build.stage({path: self.remote.add(data) for path, data in files.items()})

    def finish(self) -> None:
        self.build.finish()

    def forget(self, *contents: bytes) -> None:
        """The remote has never heard of these."""
        for data in contents:
            del self.remote.fake.blobs[Digest.of(DigestFunction.SHA256, data)]

    def asked(self) -> int:
        """How many blobs the remote was asked for since this was called last."""
        requests = [r for r in self.remote.fake.requests if isinstance(r, reapi.FindMissingBlobsRequest)]
        self.remote.forget_calls()
        return sum(len(request.blob_digests) for request in requests)

    def outputd(self, *arguments: str) -> tuple[int, str]:
        """A command of ours: its exit code and what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "outputd.cli.main", *arguments, "--listen", self.daemon.target],
            env=self.daemon.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stderr == ""
        return done.returncode, done.stdout

    def base(self) -> dict[str, Any]:
        code, printed = self.outputd("status", "--json")
        assert code == 0
        (base,) = json.loads(printed)["output_bases"]
        return dict(base["obtainable"])

    def status(self) -> Any:
        return json.loads(self.outputd("status", "--json")[1])

    def files(self) -> set[str]:
        return {
            str(Path(directory, name).relative_to(self.top))
            for directory, _, names in os.walk(self.top)
            for name in names
        }


@contextlib.contextmanager
def world(**settings: str) -> Iterator[World]:
    with (
        daemon_fixture.directories() as daemon,
        RemoteThread(daemon.place / "remote") as remote,
    ):
        daemon.options += ["--remote", remote.url]
        daemon.settings.update({f"outputs.{name}": value for name, value in settings.items()})
        daemon.start()
        with daemon_fixture.connected(daemon) as channel:
            build = BuildClient(channel, daemon.outputs)
            build.start()
            yield World(daemon, remote, build)


def eventually(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)


FILES = {f"d{d}/f{f}": b"%d and %d" % (d, f) for d in range(5) for f in range(4)}


def test_what_was_forgotten_a_moment_ago_is_not_shown() -> None:
    with world() as w:
        w.stage(FILES)
        w.finish()
        w.build.start()
        w.finish()
        w.forget(FILES["d1/f2"])
        w.daemon.expects("1 files and the contents of 0 directories were removed")
        w.build.start()
        assert w.files() == FILES.keys() - {"d1/f2"}
        assert w.build.digests("d1/f2") == [None]
        known = w.base()
        assert (known["dropped_files"], known["dropped_directories"]) == (1, 0)
        assert known["dropped_time"] is not None


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_leases_outlive_a_restart(end: str) -> None:
    with world(always_asked="0") as w:
        w.stage(FILES)
        w.finish()
        eventually(lambda: w.base()["blobs"] == 20)
        assert w.asked() == 20
        getattr(w.daemon, end)()
        if end == "kill":
            w.daemon.expects("dead|mount")
        w.daemon.start()
        w.build.start()
        assert w.files() == FILES.keys()
        w.finish()
        eventually(lambda: w.base()["blobs"] == 20)
        assert w.asked() == 0
        eventually(lambda: w.base()["refresh"])


def test_a_tree_of_which_the_remote_is_never_believed() -> None:
    with world(lease_seconds="0") as w:
        w.stage(FILES)
        for _ in range(3):
            w.finish()
            w.build.start()
            assert w.asked() == 20
        assert w.base()["refresh"] is None


def test_leases_are_renewed_between_builds() -> None:
    with world(always_asked="0", lease_seconds="4") as w:
        w.stage(FILES)
        w.finish()
        count = 0

        def renewed() -> bool:
            nonlocal count
            count += w.asked()
            return count >= 60

        eventually(renewed)
        w.forget(FILES["d0/f0"])
        w.daemon.expects("has lost 1 blobs", "1 files and the contents")
        eventually(lambda: w.base()["missing"] == 1)
        assert w.files() == FILES.keys()
        assert "nobody has 1 of its blobs" in w.outputd("status")[1]
        w.build.start()
        assert w.files() == FILES.keys() - {"d0/f0"}


def test_what_we_hold_is_not_lost_and_goes_back() -> None:
    with world() as w:
        w.stage(FILES)
        large = os.urandom(1 << 20)
        w.stage({"large": large})
        for path in ("d0/f0", "large"):
            (w.top / path).read_bytes()
        (w.top / "made").write_bytes(b"made here")
        w.finish()
        w.forget(FILES["d0/f0"], large)
        w.build.start()
        assert w.files() == FILES.keys() | {"large", "made"}
        held = {Digest.of(DigestFunction.SHA256, data) for data in (FILES["d0/f0"], large)}
        eventually(lambda: held <= w.remote.fake.blobs.keys())
        assert Digest.of(DigestFunction.SHA256, b"made here") not in w.remote.fake.blobs
        eventually(lambda: w.status()["remote"]["healed_blobs"] == 2)


def test_a_read_of_what_is_nowhere_fails_at_once_and_the_next_build_knows() -> None:
    with world(always_asked="0") as w:
        w.stage(FILES)
        w.finish()
        eventually(lambda: w.base()["blobs"] == 20)
        w.build.start()
        w.forget(FILES["d1/f2"])
        w.daemon.expects("base/d1/f2 for process .* failed", "1 files and the contents")
        began = time.monotonic()
        with pytest.raises(OSError):
            (w.top / "d1/f2").read_bytes()
        assert time.monotonic() - began < 15, "it was tried again"
        w.finish()
        w.build.start()
        assert w.files() == FILES.keys() - {"d1/f2"}


def test_verify() -> None:
    with world() as w:
        w.stage(FILES)
        (w.top / "d0/f0").read_bytes()
        (w.top / "made").write_bytes(b"made here")
        w.finish()
        eventually(lambda: w.base()["blobs"] == 21)  # later than this it would be told in the log
        code, printed = w.outputd("verify")
        assert code == 0
        assert printed.splitlines()[0] == "base: all can be had"
        w.forget(FILES["d1/f2"])
        code, printed = w.outputd("verify", str(w.top), "--json")
        assert code == 1
        data = json.loads(printed)
        (tree,) = data["trees"]
        assert data["whole"] is False
        assert tree["local_and_remote"] == {"files": 1, "bytes": len(FILES["d0/f0"])}
        assert tree["remote_only"]["files"] == 18
        assert tree["local_only"] == {"files": 1, "bytes": 9}
        assert tree["losses"] == [
            {
                "path": "d1/f2",
                "digest": f"{digest_of(FILES['d1/f2']).hash}/{len(FILES['d1/f2'])}",
                "reason": "nobody has it",
            }
        ]
        assert w.outputd("verify", str(w.top / "d1/f2"))[0] == 1
        assert w.outputd("verify", str(w.top / "d2"))[0] == 0
        (blob,) = [path for path in (w.daemon.cache / "blobs").rglob("*") if path.stat().st_size == 9]
        blob.chmod(0o644)
        blob.write_bytes(b"made wron")
        assert w.outputd("verify", "base", "--max-losses", "0")[1].count("lost:") == 0
        code, printed = w.outputd("verify", "base", "--content")
        assert code == 1
        assert "the local copy is damaged" in printed


def test_verify_of_what_is_not_there() -> None:
    with world() as w:
        for argument in ("/etc/passwd", "no such base", str(w.daemon.outputs)):
            done = subprocess.run(
                [sys.executable, "-m", "outputd.cli.main", "verify", argument, "--listen", w.daemon.target],
                env=w.daemon.environment(),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 1
            assert "is no output base" in done.stderr


def test_many_restarted_output_bases() -> None:
    with (
        world() as w,
        grpc.insecure_channel(w.daemon.target, options=daemon_fixture.CHANNEL_OPTIONS) as channel,
    ):
        w.finish()
        builds = [BuildClient(channel, w.daemon.outputs, f"base{number}") for number in range(4)]
        for build in builds:
            build.start()
            build.stage({path: w.remote.add(data) for path, data in FILES.items()})
            build.finish()
        w.daemon.restart()
        w.forget(FILES["d3/f3"])
        w.daemon.expects("1 files and the contents")
        for build in builds:
            build.start()
            assert build.digests("d3/f3", "d3/f2") == [None, digest_of(FILES["d3/f2"])]
