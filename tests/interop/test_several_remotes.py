"""Two real REv2 servers under one daemon, by instance name: what is read, lost, healed, verified and uploaded stays apart."""

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

import grpc
import pytest

from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.interop.losing import Losing
from tests.interop.servers import buildbox_casd, buildgrid
from tests.rev2_tree import Rev2Tree
from tests.service_client import BuildClient, digest_of

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

SECONDS: Final = 30.0
"""For anything in the background to happen."""
_SETTINGS: Final = """\
[remote]
url = "{one.url}"
upload_outputs = {uploading}
[remotes.team]
url = "{two.url}"
upload_outputs = {uploading}
"""


class World:
    """BuildGrid has all instance names but `team`, which is buildbox-casd's; each has the output base of a build."""

    def __init__(self, rooms: ExitStack, *, uploading: bool) -> None:
        place = Path(rooms.enter_context(tempfile.TemporaryDirectory(prefix="outputd-test-")))
        servers = []
        for name, start in (("one", buildgrid), ("two", buildbox_casd)):
            server = rooms.enter_context(start(place / name))
            channel = rooms.enter_context(grpc.insecure_channel(server.url.removeprefix("grpc://")))
            servers.append(Losing(place / name, server.url, channel))
        self.one, self.two = servers
        self.daemon: Daemon = rooms.enter_context(daemon_fixture.directories())
        settings = self.daemon.place / "outputd" / "config.toml"
        settings.parent.mkdir()
        settings.write_text(_SETTINGS.format(one=self.one, two=self.two, uploading=str(uploading).lower()))
        self.daemon.start()
        self._channel = rooms.enter_context(daemon_fixture.connected(self.daemon))
        self.first = BuildClient(self._channel, self.daemon.outputs, "first")
        self.second = BuildClient(self._channel, self.daemon.outputs, "second", instance="team")

    def top(self, build: BuildClient) -> Path:
        return self.daemon.outputs / build.base

    def verify(self, build: BuildClient) -> dict[str, Any]:
        done = self._outputd("verify", "--json", build.base)
        (tree,) = json.loads(done)["trees"]
        return dict(tree)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self._outputd("status", "--json")))

    def uploaded(self) -> list[str | None]:
        """The roots that the remotes have as a whole, by output base."""
        return [(base["upload"] or {}).get("root") for base in self.status()["output_bases"]]

    def _outputd(self, *arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "outputd.cli.main", *arguments, "--listen", self.daemon.target],
            env=self.daemon.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        ).stdout


@pytest.fixture
def w() -> Iterator[World]:
    with ExitStack() as rooms:
        yield World(rooms, uploading=False)


@pytest.fixture
def uploading() -> Iterator[World]:
    with ExitStack() as rooms:
        yield World(rooms, uploading=True)


def test_cas_reads_from_the_one_that_has_the_name(w: World) -> None:
    data = b"of casd" * 100
    w.two.cas.put(data)
    name = f"blobs/sha256/file/{digest_of(data).hash}-{len(data)}"
    w.daemon.expects("READ of .* failed")
    with pytest.raises(OSError):
        (w.daemon.mount / "cas" / name).read_bytes()
    assert (w.daemon.mount / "cas/team" / name).read_bytes() == data


def test_each_output_base_reads_from_its_own(w: World) -> None:
    ours, theirs = b"of BuildGrid" * 100, b"of casd" * 100
    w.one.cas.put(ours)
    w.two.cas.put(theirs)
    w.first.start()
    w.second.start()
    w.first.stage({"a": digest_of(ours)})
    w.second.stage({"a": digest_of(theirs)})
    assert (w.top(w.first) / "a").read_bytes() == ours
    assert (w.top(w.second) / "a").read_bytes() == theirs
    assert w.two.cas.missing([digest_of(ours)])
    assert w.one.cas.missing([digest_of(theirs)])
    assert (
        w.verify(w.first)["local_and_remote"]["files"] == w.verify(w.second)["local_and_remote"]["files"] == 1
    )


@pytest.mark.parametrize("restart", [False, True], ids=["", "after a restart"])
def test_what_one_has_says_nothing_of_the_other(w: World, restart: bool) -> None:
    files = {f"d/{number}": b"of both %d" % number for number in range(20)}
    for server in (w.one, w.two):
        server.cas.put_all(list(files.values()))
    for build in (w.first, w.second):
        build.start()
        build.stage({path: digest_of(data) for path, data in files.items()})
        build.finish()
        build.start()
        build.finish()  # now there are leases of the whole
    if restart:
        w.daemon.restart()
    w.two.lose(files["d/7"])
    w.daemon.expects("output base second: .*1 files and the contents")
    for build in (w.first, w.second):
        build.start()
    assert len(os.listdir(w.top(w.first) / "d")) == 20
    assert sorted(os.listdir(w.top(w.second) / "d")) == sorted(str(n) for n in range(20) if n != 7)
    assert w.verify(w.first)["gone"]["files"] == 0
    assert (w.top(w.first) / "d/7").read_bytes() == files["d/7"]


def test_a_lost_blob_goes_back_to_where_it_was(w: World) -> None:
    data = b"held by the second" * 100
    w.two.cas.put(data)
    w.second.start()
    w.second.stage({"a": digest_of(data)})
    assert (w.top(w.second) / "a").read_bytes() == data
    w.second.finish()
    w.two.lose(data)
    w.second.start()
    end = time.monotonic() + SECONDS
    while w.two.cas.missing([digest_of(data)]):
        assert time.monotonic() < end, "it was not uploaded"
        time.sleep(0.1)
    assert w.one.cas.missing([digest_of(data)])
    status = w.status()
    (team,) = status["remotes"]
    assert (team["healed_blobs"], status["remote"]["healed_blobs"]) == (1, 0)


def test_what_is_made_goes_to_its_own(uploading: World) -> None:
    w = uploading
    trees: dict[str, Rev2Tree] = {}
    for build in (w.first, w.second):
        tool = f"made in {build.base}".encode()
        trees[build.base] = Rev2Tree({"bin": {"tool": tool}, "same": b"made in both"})
        build.start()
        (w.top(build) / "bin").mkdir()
        (w.top(build) / "bin/tool").write_bytes(tool)
        (w.top(build) / "same").write_bytes(b"made in both")
        build.finish()
    end = time.monotonic() + SECONDS
    while not all(roots := w.uploaded()):
        assert time.monotonic() < end, "they were not uploaded"
        time.sleep(0.1)
    expected = [tree.root_digest for tree in trees.values()]
    assert roots == [f"{root.hash}/{root.size_bytes}" for root in expected]
    for build, has, lacks in ((w.first, w.one, w.two), (w.second, w.two, w.one)):
        tree = trees[build.base]
        assert not has.cas.missing([digest_of(blob) for blob in (*tree.files, *tree.directories)])
        assert lacks.cas.missing([tree.root_digest]) == {tree.root_digest.hash}
