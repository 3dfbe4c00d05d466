"""REv2 servers of other projects that lose blobs: what the next build is shown, what goes back to them, what `verify` tells."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from outputd._proto import remote_execution_pb2 as reapi
from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.interop.losing import Losing
from tests.interop.servers import buildbox_casd, buildgrid
from tests.service_client import BuildClient, digest_of

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

SERVERS = {"buildgrid": buildgrid, "casd": buildbox_casd}
FILES = {f"bin/file{number}": b"content %d" % number * 100 for number in range(50)}


@pytest.fixture(params=list(SERVERS.values()), ids=list(SERVERS))
def remote(request: pytest.FixtureRequest) -> Iterator[Losing]:
    with tempfile.TemporaryDirectory(prefix="outputd-test-") as place, request.param(Path(place)) as server:
        target = server.url.removeprefix("grpc://")
        with grpc.insecure_channel(target) as channel:
            yield Losing(Path(place), server.url, channel)


@contextmanager
def building(remote: Losing) -> Iterator[tuple[Daemon, BuildClient, Path]]:
    with (
        daemon_fixture.running("--remote", remote.url) as daemon,
        daemon_fixture.connected(daemon) as channel,
    ):
        remote.cas.put_all(list(FILES.values()))
        build = BuildClient(channel, daemon.outputs)
        build.start()
        build.stage({path: digest_of(data) for path, data in FILES.items()})
        yield daemon, build, daemon.outputs / build.base


def verify(daemon: Daemon) -> tuple[int, dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-m", "outputd.cli.main", "verify", "--json", "--listen", daemon.target],
        env=daemon.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    (tree,) = json.loads(done.stdout)["trees"]
    return done.returncode, tree


def gone_for_good(remote: Losing, daemon: Daemon, build: BuildClient, top: Path) -> None:
    lost = "bin/file7"
    remote.lose(FILES[lost])
    code, tree = verify(daemon)
    assert (code, tree["gone"]) == (1, {"files": 1, "bytes": len(FILES[lost])})
    daemon.expects(f"{lost} for process .* failed with ENODATA", "1 files and the contents")
    with pytest.raises(OSError) as failed:
        (top / lost).read_bytes()
    assert failed.value.errno == errno.ENODATA
    build.finish()
    build.start()
    assert {f"bin/{name}" for name in os.listdir(top / "bin")} == FILES.keys() - {lost}
    assert verify(daemon)[0] == 0


def test_a_blob_that_nobody_has(remote: Losing) -> None:
    with building(remote) as (daemon, build, top):
        build.finish()
        build.start()
        gone_for_good(remote, daemon, build, top)


def test_a_blob_that_nobody_has_after_a_restart(remote: Losing) -> None:
    with building(remote) as (daemon, build, top):
        build.finish()
        build.start()
        build.finish()
        daemon.restart()
        build.start()
        gone_for_good(remote, daemon, build, top)


def test_a_blob_that_we_hold_goes_back(remote: Losing) -> None:
    with building(remote) as (daemon, build, top):
        held = "bin/file3"
        assert (top / held).read_bytes() == FILES[held]
        build.finish()
        remote.lose(FILES[held])
        build.start()
        assert (top / held).read_bytes() == FILES[held]
        digest: reapi.Digest = digest_of(FILES[held])
        end = time.monotonic() + 60
        while remote.cas.missing([digest]):
            assert time.monotonic() < end, "it was not uploaded"
            time.sleep(0.1)
        assert verify(daemon)[1]["local_and_remote"] == {"files": 1, "bytes": digest.size_bytes}
