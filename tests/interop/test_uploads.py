"""What a build has made here is uploaded to a real REv2 server, and another daemon has it from there: as a tree, and below cas/."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction
from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.interop.servers import Server, buildbox_casd, buildgrid
from tests.rev2_tree import Entry, Program, Rev2Tree
from tests.service_client import BuildClient, Cas, digest_of

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

SECONDS: Final = 60.0
"""For anything in the background to happen."""
LARGE: Final = os.urandom(5 << 20)
SCRIPT: Final = b'#!/bin/sh\necho "run: $1"\n'
MADE: Final[dict[str, Entry]] = {
    "bin": {"tool": Program(SCRIPT), "large": LARGE, "empty": b"", "link": "tool"},
    "nothing": {},
    "text": b"text" * 1000,
}
TREE: Final = Rev2Tree(MADE)


class World:
    """A server, a daemon that builds, and another one."""

    def __init__(self, rooms: ExitStack, server: Server, instance: str) -> None:
        self.server = server
        self.instance = instance
        settings = {"remote.instance_name": instance, "remote.upload_rate": "0"}
        self.making: Daemon = rooms.enter_context(
            daemon_fixture.running(
                "--remote", server.url, settings=settings | {"remote.upload_outputs": "true"}
            )
        )
        self.other: Daemon = rooms.enter_context(
            daemon_fixture.running("--remote", server.url, settings=settings)
        )
        channels = [rooms.enter_context(daemon_fixture.connected(one)) for one in (self.making, self.other)]
        self.build, self.reading = (
            BuildClient(channel, daemon.outputs, instance=instance)
            for channel, daemon in zip(channels, (self.making, self.other), strict=True)
        )
        self.cas = Cas(channels[0], instance)

    def make(self) -> reapi.Digest:
        """A build of MADE by local actions, and its upload; the root digest."""
        self.build.start()
        top = self.making.outputs / self.build.base
        (top / "bin").mkdir()
        (top / "nothing").mkdir()
        (top / "bin/tool").write_bytes(SCRIPT)
        (top / "bin/tool").chmod(0o755)
        (top / "bin/large").write_bytes(LARGE)
        (top / "bin/empty").write_bytes(b"")
        (top / "bin/link").symlink_to("tool")
        (top / "text").write_bytes(b"text" * 1000)
        self.build.finish()
        end = time.monotonic() + SECONDS
        while not (upload := self.upload()).get("root"):
            assert time.monotonic() < end, f"not uploaded: {upload}"
            time.sleep(0.1)
        assert upload["root"] == f"{TREE.root_digest.hash}/{TREE.root_digest.size_bytes}"
        return TREE.root_digest

    def upload(self) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "outputd.cli.main", "status", "--json", "--listen", self.making.target],
            env=self.making.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        bases = {base["id"]: base for base in json.loads(done.stdout)["output_bases"]}
        return dict(bases[self.build.base]["upload"] or {})

    def at(self, kind: str, digest: reapi.Digest) -> Path:
        """Where the other daemon has a blob."""
        name = f"blobs/sha256/{kind}/{digest.hash}-{digest.size_bytes}"
        return self.other.mount / "cas" / self.instance / name


@pytest.fixture(params=["buildgrid", "buildgrid with a name", "casd"])
def w(request: pytest.FixtureRequest) -> Iterator[World]:
    with ExitStack() as rooms:
        place = Path(rooms.enter_context(tempfile.TemporaryDirectory(prefix="outputd-test-")))
        instance = "some/name" if request.param == "buildgrid with a name" else ""
        starting = buildbox_casd(place) if request.param == "casd" else buildgrid(place, instance)
        yield World(rooms, rooms.enter_context(starting), instance)


def check(top: Path) -> None:
    assert sorted(os.listdir(top)) == ["bin", "nothing", "text"]
    assert sorted(os.listdir(top / "bin")) == ["empty", "large", "link", "tool"]
    assert (top / "bin/large").read_bytes() == LARGE
    assert (top / "bin/empty").read_bytes() == b""
    assert (top / "text").read_bytes() == b"text" * 1000
    assert os.readlink(top / "bin/link") == "tool"
    assert os.listdir(top / "nothing") == []
    done = subprocess.run([top / "bin/link", "it"], check=True, capture_output=True, text=True, timeout=30)
    assert done.stdout == "run: it\n"


def test_another_daemon_has_what_was_made(w: World, tmp_path: Path) -> None:
    root = w.make()
    w.reading.start()
    w.reading.stage({"shared": rev2.TreeArtifactLocator(root_directory_digest=root)})
    check(w.other.outputs / w.reading.base / "shared")
    check(w.at("directory", root))
    if not w.instance:  # BuildGrid's client takes no name from us
        large = Digest.of(DigestFunction.SHA256, LARGE)
        w.server.download(large, tmp_path / "large")
        assert (tmp_path / "large").read_bytes() == LARGE


def test_cas_reads_through_the_server(w: World) -> None:
    command = reapi.Command(arguments=["echo", "it"]).SerializeToString(deterministic=True)
    w.cas.put_all([LARGE, SCRIPT, command, TREE.message, *(blob for blob in TREE.files if blob)])
    assert w.at("file", digest_of(LARGE)).read_bytes() == LARGE
    script = w.at("executable", digest_of(SCRIPT))
    assert subprocess.run([script, "x"], check=True, capture_output=True, timeout=30).stdout == b"run: x\n"
    assert os.listdir(w.other.mount / "cas" / w.instance / "blobs/sha256/file") == []
    check(w.at("tree", TREE.digest))
    done = subprocess.run([w.at("command", digest_of(command))], check=True, capture_output=True, timeout=30)
    assert done.stdout == b"it\n"
    w.other.expects("READ of .* failed")
    with pytest.raises(OSError):
        w.at("file", digest_of(b"nobody has it")).read_bytes()
