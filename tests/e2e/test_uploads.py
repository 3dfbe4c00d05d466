"""What a build has made is uploaded after it: by root digest, over a SIGKILL, without a remote for a while. Real daemon,
real mount, a small REv2 server.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction
from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.remote_thread import RemoteThread
from tests.rev2_tree import Entry, Program, Rev2Tree
from tests.service_client import BuildClient
from tests.unit.store.fake_remote import Fault

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

SECONDS: Final = 60.0
"""For anything in the background to happen."""
SHA256: Final = DigestFunction.SHA256
LARGE: Final = b"large" * 200_000
MADE: Final[Mapping[str, Entry]] = {"staged": Program(b"staged"), "bin": {"tool": b"a tool", "large": LARGE}}
TREE: Final = Rev2Tree(MADE)


class World:
    def __init__(self, daemon: Daemon, remote: RemoteThread, build: BuildClient) -> None:
        self.daemon = daemon
        self.remote = remote
        self.build = build
        self.top = daemon.outputs / build.base

    def make(self) -> None:
        """A build of MADE, half of it by local actions."""
        self.build.start()
        self.build.stage({"staged": self.remote.add(b"staged")})
        (self.top / "bin").mkdir()
        (self.top / "bin/tool").write_bytes(b"a tool")
        (self.top / "bin/large").write_bytes(LARGE)
        self.build.finish()

    def status(self, *options: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "outputd.cli.main", "status", *options, "--listen", self.daemon.target],
            env=self.daemon.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout

    def upload(self) -> dict[str, Any]:
        (base,) = json.loads(self.status("--json"))["output_bases"]
        return dict(base["upload"] or {})

    def uploaded(self) -> dict[str, Any]:
        """What `status` says when it is over."""
        end = time.monotonic() + SECONDS
        while not (upload := self.upload()).get("root"):
            assert time.monotonic() < end, f"it did not come about: {upload}"
            time.sleep(0.1)
        return upload

    def check(self) -> None:
        """The remote has all of it."""
        blobs = self.remote.fake.blobs
        for data in [*TREE.files, *TREE.directories]:
            assert blobs[Digest.of(SHA256, data)] == data


@contextlib.contextmanager
def world(**settings: str) -> Iterator[World]:
    with daemon_fixture.directories() as daemon, RemoteThread(daemon.place / "remote") as remote:
        daemon.options += ["--remote", remote.url]
        daemon.settings["remote.upload_outputs"] = "true"
        daemon.settings.update({f"remote.{name}": value for name, value in settings.items()})
        daemon.start()
        with daemon_fixture.connected(daemon) as channel:
            yield World(daemon, remote, BuildClient(channel, daemon.outputs))


def sent(remote: RemoteThread) -> list[str]:
    """Hashes of the blobs that came in batches."""
    requests = [one for one in remote.fake.requests if isinstance(one, reapi.BatchUpdateBlobsRequest)]
    return [blob.digest.hash for request in requests for blob in request.requests]


def test_an_output_path_can_be_had_by_its_root_digest() -> None:
    with world() as w:
        w.make()
        upload = w.uploaded()
        assert upload["root"] == f"{TREE.root_digest.hash}/{TREE.root_digest.size_bytes}"
        assert upload["blobs"] == 4, "two files and two messages; the staged file is there"
        assert (upload["error"], upload["waiting"], upload["running"]) == (None, 0, False)
        assert f"the remote has all of it as Directory {upload['root']}" in w.status()
        w.check()
        store = json.loads(w.status("--json"))["store"]
        assert store["local_only_bytes"] in (0, None)
        # The next build asks for nothing that is known, and sends nothing again.
        w.remote.forget_calls()
        w.build.start()
        Path(w.top / "bin/tool").unlink()
        w.build.finish()
        end = time.monotonic() + SECONDS
        while w.upload()["root"] == upload["root"]:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert len(sent(w.remote)) == 2, "two messages"


def test_a_daemon_that_was_killed_goes_on() -> None:
    with world() as w:
        w.remote.fail("Write", Fault(hang=True))
        w.make()
        w.remote.called("Write")
        before = sent(w.remote)
        assert len(before) == 1
        w.daemon.kill()
        w.daemon.expects("took off 1 mounts of dead daemons")
        w.daemon.start()
        w.uploaded()
        w.check()
        assert sorted(set(sent(w.remote))) == sorted(sent(w.remote)), "what came was not sent again"


def test_nobody_waits_for_a_remote_that_is_away() -> None:
    with world(retry_seconds="3") as w:
        w.build.start()
        (w.top / "tool").write_bytes(b"a tool")
        w.remote.stop()
        w.daemon.expects("is not uploaded, tried again")
        w.daemon.allows("was given up, it has not answered since")
        w.build.finish()
        assert "is not uploaded" not in w.daemon.words(), "the client was kept waiting"
        w.daemon.logged("is not uploaded, tried again", SECONDS)
        assert w.upload()["error"]
        w.remote.start()
        w.daemon.restart()
        w.uploaded()


def test_it_is_slow_if_it_is_to_be() -> None:
    with world(upload_rate="500 KiB") as w:
        began = time.monotonic()
        w.make()
        w.uploaded()
        assert time.monotonic() - began > 1
        w.check()
