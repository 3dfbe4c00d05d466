"""Uploads while a real REv2 server is away: acknowledged, kept over a SIGKILL, answered from here, and brought to it afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from outputd._proto import remote_execution_pb2 as reapi
from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.interop.servers import buildbox_casd, buildgrid
from tests.interop.upstream import Upstream, upstream
from tests.rev2_tree import Program, Rev2Tree
from tests.service_client import Cas, call, digest_of

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

SERVERS: Final = {"buildgrid": buildgrid, "casd": buildbox_casd}
SECONDS: Final = 30.0
"""For anything in the background to happen."""
RESULTS: Final = "/build.bazel.remote.execution.v2.ActionCache/"
LARGE: Final = os.urandom(5 << 20)
TREE: Final = Rev2Tree(
    {"lib": {"a.txt": b"a" * 5000, "deeper": {"c.txt": b"c"}}, "run": Program(b"#!/bin/sh\n")}
)


@pytest.fixture(params=list(SERVERS.values()), ids=list(SERVERS))
def remote(request: pytest.FixtureRequest) -> Iterator[Upstream]:
    with (
        tempfile.TemporaryDirectory(prefix="outputd-test-") as place,
        upstream(request.param, Path(place)) as running,
    ):
        yield running


class Client:
    """One that runs actions and uploads what came of them, as Bazel does."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.cas = Cas(channel)

    def result(self, *files: bytes, tree: Rev2Tree | None = None) -> reapi.ActionResult:
        result = reapi.ActionResult(exit_code=0)
        for number, data in enumerate(files):
            result.output_files.add(path=f"f{number}", digest=digest_of(data))
        if tree is not None:
            result.output_directories.add(path="d", tree_digest=digest_of(tree.message))
        return result

    def upload(self, *files: bytes, tree: Rev2Tree | None = None) -> None:
        """What the server says that it lacks."""
        blobs = {*files, *((tree.message, *tree.files, *tree.directories) if tree is not None else ())}
        missing = self.cas.missing([digest_of(data) for data in blobs if data])
        self.cas.put_all([data for data in blobs if digest_of(data).hash in missing])

    def update(self, action: bytes, result: reapi.ActionResult) -> None:
        request = reapi.UpdateActionResultRequest(action_digest=digest_of(action), action_result=result)
        call(self.channel, f"{RESULTS}UpdateActionResult", request, reapi.ActionResult)

    def get(self, action: bytes) -> reapi.ActionResult | None:
        try:
            return call(self.channel, f"{RESULTS}GetActionResult", self._asked(action), reapi.ActionResult)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return None

    @staticmethod
    def _asked(action: bytes) -> reapi.GetActionResultRequest:
        return reapi.GetActionResultRequest(action_digest=digest_of(action))


@contextmanager
def serving(remote: Upstream, limit: str = "64 MiB", **more: str) -> Iterator[tuple[Daemon, Client]]:
    settings = {"remote.offline_queue": limit, "remote.retry_seconds": "1", **more}
    with (
        daemon_fixture.running("--remote", remote.relay.url, settings=settings) as daemon,
        daemon_fixture.connected(daemon) as channel,
    ):
        yield daemon, Client(channel)


def away(daemon: Daemon, remote: Upstream, client: Client) -> None:
    """Stop the server, and have the daemon notice."""
    remote.stop()
    daemon.expects("was given up, it has not answered")
    end = time.monotonic() + SECONDS
    while "was given up" not in daemon.words():
        assert time.monotonic() < end
        assert client.cas.missing([digest_of(b"nobody has it")])
        time.sleep(0.1)


def queue(daemon: Daemon) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "outputd.cli.main", "status", "--json", "--listen", daemon.target],
        env=daemon.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return dict(json.loads(done.stdout)["remote"]["offline_queue"])


def drained(daemon: Daemon) -> dict[str, Any]:
    """What `status` says when nothing waits any more."""
    end = time.monotonic() + SECONDS
    while (known := queue(daemon))["blobs"] + known["results"]:
        assert time.monotonic() < end, f"uploads are left: {known}"
        time.sleep(0.2)
    return known


def test_what_is_uploaded_offline_comes_to_the_server(remote: Upstream) -> None:
    with serving(remote) as (daemon, client):
        before = b"was there before"
        client.upload(before)
        away(daemon, remote, client)
        assert client.get(b"action") is None
        small, result = b"made offline", client.result(b"made offline", LARGE, before, tree=TREE)
        client.upload(small, LARGE, before, tree=TREE)
        client.update(b"action", result)
        assert client.get(b"action") == result
        assert not client.cas.missing([digest_of(data) for data in (small, LARGE, before)])
        known = queue(daemon)
        assert (known["results"], known["blobs"]) == (
            1,
            3 + len({TREE.message, *TREE.files, *TREE.directories}),
        )
        assert known["oldest"] is not None
        assert "given up" in known["last_error"] or "UNAVAILABLE" in known["last_error"]
        daemon.kill()
        daemon.expects("took off 1 mounts of dead daemons")
        daemon.start()
        assert client.get(b"action") == result, "a SIGKILL has taken it"
        assert (queue(daemon)["results"], queue(daemon)["blobs"]) == (1, known["blobs"])

        remote.start()
        assert drained(daemon)["refused"] == []
        with grpc.insecure_channel(remote.address) as channel:
            other = Client(channel)
            assert other.get(b"action") == result
            blobs = [small, LARGE, before, TREE.message, *TREE.files]
            assert not other.cas.missing([digest_of(data) for data in blobs if data])
        assert client.get(b"action") == result


def test_a_daemon_that_is_killed_again_and_again_brings_all(remote: Upstream) -> None:
    blobs = [b"%d" % number + os.urandom(100_000 if number % 30 == 0 else 500) for number in range(300)]
    results = {b"action %d" % number: blobs[number * 5 : number * 5 + 5] for number in range(len(blobs) // 5)}
    with serving(remote, **{"remote.upload_rate": "1 MiB"}) as (daemon, client):
        away(daemon, remote, client)
        client.upload(*blobs)
        for action, named in results.items():
            client.update(action, client.result(*named))
        remote.start()
        daemon.expects("took off 1 mounts of dead daemons")
        for seconds in (0.1, 0.2, 0.3, 0.4):
            time.sleep(seconds)
            daemon.kill()
            daemon.start()
        assert drained(daemon)["refused"] == []
        with grpc.insecure_channel(remote.address) as channel:
            other = Client(channel)
            assert not other.cas.missing(map(digest_of, blobs))
            assert all(other.get(action) == other.result(*named) for action, named in results.items())


def test_no_more_than_the_limit(remote: Upstream) -> None:
    with serving(remote, limit="1 MiB") as (daemon, client):
        away(daemon, remote, client)
        client.upload(b"small")
        daemon.expects("the offline queue for .* is full")
        full = "the offline queue is full: 5 of 1048576 bytes"
        with pytest.raises(grpc.RpcError, match=full) as failed:
            client.upload(LARGE)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(AssertionError, match=full):  # one of a batch, the others may have found room
            client.upload(b"x" * (1 << 20))
        for data in (LARGE, b"x" * (1 << 20)):
            assert client.cas.missing([digest_of(data)]), "it is here, but nobody would bring it"
        client.update(b"action", client.result(b"small"))
        remote.start()
        drained(daemon)
        assert not remote.cas().missing([digest_of(b"small")])


def test_off_by_default(remote: Upstream) -> None:
    with serving(remote, limit="0") as (daemon, client):
        client.upload(b"before")
        remote.stop()
        daemon.expects("was given up, it has not answered")
        end = time.monotonic() + SECONDS
        while "was given up" not in daemon.words():
            assert time.monotonic() < end
            with pytest.raises(grpc.RpcError) as failed:
                client.upload(b"small")
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError) as failed:
            client.update(b"action", client.result(b"before"))
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "offline_queue" not in daemon.words()
