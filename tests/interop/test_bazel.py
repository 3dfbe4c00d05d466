"""A real Bazel with outputd as its remote cache, and with its output base in the mount. Skipped where there is no `bazel`.

Debian 12 has one, bazel-bootstrap 4.2.3: too old for the remote output service, which tests/e2e/test_bazel_driver.py plays.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests import daemon_fixture
from tests.interop.servers import buildgrid
from tests.interop.upstream import upstream

BAZEL: Final = shutil.which("bazel")
pytestmark = pytest.mark.skipif(
    BAZEL is None, reason="no bazel here (Debian: apt-get install bazel-bootstrap)"
)

LINES: Final = 100_000
OTHERS: Final = 20
BUILD: Final = f"""
genrule(name = "numbers", outs = ["numbers.txt"], cmd = "seq 1 {LINES} > $@")
genrule(name = "count", srcs = ["numbers.txt"], outs = ["count.txt"], cmd = "wc -l < $< > $@")
[genrule(name = "g%d" % i, outs = ["g%d.txt" % i], cmd = "echo %d > $@" % i) for i in range({OTHERS})]
filegroup(name = "everything", srcs = ["count"] + ["g%d" % i for i in range({OTHERS})])
"""
ACTIONS: Final = OTHERS + 2


class Workspace:
    """A workspace and the Bazel server of one output base; ends that."""

    def __init__(self, place: Path, output_user_root: Path) -> None:
        self.place = place
        self.root = output_user_root

    def bazel(self, *arguments: str) -> str:
        """What it says."""
        assert BAZEL is not None
        command = [BAZEL, "--batch", f"--output_user_root={self.root}", *arguments]
        done = subprocess.run(
            command, cwd=self.place, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stderr

    def build(self, *options: str) -> str:
        """The line that says where the results of the actions came from."""
        said = self.bazel("build", "//:everything", *options)
        found = re.search(r"INFO: \d+ process(es)?: (.*)", said)
        assert found is not None, said
        assert "WARNING: Remote Cache" not in said
        return found[2]

    def output(self, name: str) -> str:
        return (self.place / "bazel-bin" / name).read_text()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "WORKSPACE").touch()
    (tmp_path / "BUILD").write_text(BUILD)
    yield tmp_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_remote_cache(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Filled by one output base, used by another, also after a SIGKILL of the daemon."""
    address = f"127.0.0.1:{free_port()}"
    cache = f"--remote_cache=grpc://{address}"
    with daemon_fixture.running("--listen", address) as daemon:
        first = Workspace(place, tmp_path_factory.mktemp("first"))
        assert "remote cache hit" not in first.build(cache)
        first.bazel("clean")
        assert f"{ACTIONS} remote cache hit" in first.build(cache)
        daemon.kill()
        daemon.expects("took off 1 mounts of dead daemons")
        daemon.start()
        second = Workspace(place, tmp_path_factory.mktemp("second"))
        assert f"{ACTIONS} remote cache hit" in second.build(cache, "--remote_download_toplevel")
        assert second.output("count.txt").split() == [str(LINES)]
        second.bazel("clean")
        assert f"{ACTIONS} remote cache hit" in second.build(cache, "--remote_download_minimal")


def test_an_output_base_in_the_mount(place: Path) -> None:
    """Bazel's own files, sandboxes and symlink trees, not only what actions make."""
    with daemon_fixture.running() as daemon:
        here = Workspace(place, daemon.mount / "scratch" / "bazel")
        here.build()
        assert here.output("count.txt").split() == [str(LINES)]
        here.bazel("clean")
        here.build()
        assert here.output("g7.txt") == "7\n"
        here.bazel("clean", "--expunge")


def test_offline(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Filled while the server is away, used here meanwhile, and by another machine afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="outputd-test-") as server,
        upstream(buildgrid, Path(server)) as remote,
    ):
        remote.stop()
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        settings = {"remote.offline_queue": "64 MiB", "remote.retry_seconds": "1"}
        with (
            daemon_fixture.running(
                "--remote", remote.relay.url, "--listen", addresses[0], settings=settings
            ) as daemon,
            daemon_fixture.running("--remote", remote.relay.url, "--listen", addresses[1]) as other,
        ):
            daemon.expects("was given up, it has not answered")
            first = Workspace(place, tmp_path_factory.mktemp("first"))
            assert "remote cache hit" not in first.build(f"--remote_cache=grpc://{addresses[0]}")
            first.bazel("clean")
            assert f"{ACTIONS} remote cache hit" in first.build(f"--remote_cache=grpc://{addresses[0]}")
            remote.start()
            daemon.logged("uploads that had waited for .* were brought to it, .*; 0 are left", 60)
            second = Workspace(place, tmp_path_factory.mktemp("second"))
            assert f"{ACTIONS} remote cache hit" in second.build(f"--remote_cache=grpc://{addresses[1]}")
            assert second.output("count.txt").split() == [str(LINES)]
            assert "were brought" not in other.words()
