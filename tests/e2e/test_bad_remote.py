"""A remote CAS that serves wrong bytes, stops midway, dies, hangs or refuses: whoever reads gets one clear error in bounded time,
nothing wrong is kept, and everybody else goes on. Real daemon, real mount.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from outputd._proto import bytestream_pb2 as bytestream
from outputd._proto import remote_execution_pb2 as reapi
from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.relay import Relay
from tests.remote_thread import RemoteThread
from tests.rev2_tree import Rev2Tree
from tests.service_client import BuildClient, digest_of
from tests.unit.store.fake_remote import Fault

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

SMALL = 10_000
LARGE = 3 << 20
"""Comes as a stream."""
ALWAYS = 1000
"""A fault as often as anybody asks."""
PATIENCE = 2.0
"""Seconds that the daemons here try again: also on a machine that stands still for a while there is a second try."""
LIVELY = 5.0
"""Seconds within which is done what waits for nobody, on such a machine, too. Who is made to wait here waits for longer."""
BOUND = 20.0
"""Seconds within which everything is over that begins to fail."""


class World:
    """A daemon, the remote behind it with a relay in between, and a build."""

    def __init__(self, daemon: Daemon, relay: Relay, remote: RemoteThread, build: BuildClient) -> None:
        self.daemon = daemon
        self.relay = relay
        self.remote = remote
        self.build = build
        self.top = daemon.outputs / build.base

    def stage(self, path: str, data: bytes) -> Path:
        self.build.stage({path: self.remote.add(data)})
        return self.top / path

    def stage_tree(self, path: str) -> Path:
        """A directory of which nothing is known but its Tree's digest."""
        tree = Rev2Tree({"file": path.encode()})
        for blob in (tree.message, *tree.files):
            self.remote.add(blob)
        self.build.stage({path: rev2.TreeArtifactLocator(tree_digest=tree.digest)})
        return self.top / path

    def stored(self) -> set[str]:
        """Files of the daemon's store, whole or not."""
        places = [self.daemon.cache / "blobs", self.daemon.cache / "tmp", self.daemon.cache / "damaged"]
        return {file.name for place in places for file in place.rglob("*") if file.is_file()}

    def read_offsets(self) -> list[int]:
        """Where each stream began."""
        requests = list(self.remote.fake.requests)
        return [request.read_offset for request in requests if isinstance(request, bytestream.ReadRequest)]

    def check_alive(self) -> None:
        """Names, local files and calls go on."""
        began = time.monotonic()
        with open(self.top / "local", "wb") as file:
            file.write(b"written meanwhile")
        assert (self.top / "local").read_bytes() == b"written meanwhile"
        assert not (self.top / "absent").exists()
        assert self.build.digests("local") == [digest_of(b"written meanwhile")]
        assert time.monotonic() - began < LIVELY

    def check_healthy(self) -> None:
        """Other blobs come, too."""
        self.remote.heal()
        self.check_alive()
        other = os.urandom(SMALL)
        assert self.stage("other", other).read_bytes() == other


@contextlib.contextmanager
def world(**settings: str) -> Iterator[World]:
    """A build on a daemon with these settings, by `section__key`."""
    with (
        daemon_fixture.directories() as daemon,
        RemoteThread(daemon.place / "remote") as remote,
        Relay(daemon.place / "relay", str(daemon.place / "remote")) as relay,
    ):
        relay.mend()
        daemon.options += ["--remote", relay.url]
        daemon.settings["remote.retry_seconds"] = str(PATIENCE)
        daemon.settings.update({name.replace("__", "."): value for name, value in settings.items()})
        daemon.start()
        with daemon_fixture.connected(daemon) as channel:
            build = BuildClient(channel, daemon.outputs)
            build.start()
            yield World(daemon, relay, remote, build)
            daemon.stop()


def read_error(path: Path) -> int | None:
    """The errno that reading ends with, in bounded time."""
    began = time.monotonic()
    with pytest.raises(OSError) as raised:
        path.read_bytes()
    assert time.monotonic() - began < BOUND
    return raised.value.errno


def start_again(build: BuildClient, build_id: str) -> None:
    """As a client does that is told UNAVAILABLE; with the pauses of Bazel: 100 ms, doubling, five times."""
    for retry in range(5):
        try:
            build.start(build_id)
            return
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        time.sleep(0.1 * 2**retry)
    build.start(build_id)


@pytest.mark.parametrize(("size", "method"), [(SMALL, "BatchReadBlobs"), (LARGE, "Read")])
def test_wrong_bytes(size: int, method: str) -> None:
    with world() as here:
        data = os.urandom(size)
        file = here.stage("out/file", data)
        here.remote.fail(method, *[Fault(wrong=True)] * ALWAYS)
        here.daemon.expects(
            rf"READ of /outputs/base/out/file for process \d+ failed with EIO.*: blob {digest_of(data).hash}/{size}"
        )
        assert read_error(file) == errno.EIO
        assert here.remote.fake.calls.count(method) == 2, "asked once more, in vain"
        assert here.stored() == set()
        here.check_healthy()
        # An error is not remembered.
        assert file.read_bytes() == data


def test_lies_about_the_size() -> None:
    with world() as here:
        data = b"x" * 100
        digest = here.remote.add(data)
        lies = {f"lie{size}": reapi.Digest(hash=digest.hash, size_bytes=size) for size in (99, 101, LARGE)}
        here.build.stage({**lies, "truth": digest})
        assert (here.top / "truth").read_bytes() == data
        here.daemon.expects(
            *(f"/outputs/base/{name} .* failed with ENODATA.*: .*{digest.hash}" for name in lies)
        )
        for name in lies:
            assert read_error(here.top / name) == errno.ENODATA
        assert (here.top / "truth").read_bytes() == data
        here.check_healthy()


def test_a_stream_that_ends_early_is_resumed() -> None:
    with world() as here:
        data = os.urandom(LARGE)
        file = here.stage("file", data)
        broken = Fault(after=1 << 20, code=grpc.StatusCode.UNAVAILABLE)
        here.remote.fail("Read", Fault(after=1 << 20), Fault(after=100), broken)
        assert file.read_bytes() == data
        assert here.read_offsets() == [0, 1 << 20, (1 << 20) + 100, (2 << 20) + 100]


def test_a_stream_that_never_begins() -> None:
    with world() as here:
        file = here.stage("file", os.urandom(LARGE))
        here.remote.fail("Read", *[Fault(after=0)] * ALWAYS)
        here.daemon.expects(
            r"READ of /outputs/base/file .* failed with EIO.*: .*the stream ended after 0 of 3145728 bytes"
        )
        assert read_error(file) == errno.EIO
        assert here.stored() == set()
        here.check_healthy()


def test_a_remote_that_dies_midway_and_comes_back() -> None:
    with world(remote__retry_seconds="20") as here, ThreadPoolExecutor(1) as threads:
        data = os.urandom(50 << 20)
        file = here.stage("file", data)
        here.relay.cut_after(20 << 20)
        reading = threads.submit(file.read_bytes)
        assert here.relay.cut_off.wait(BOUND)
        here.remote.stop()
        here.check_alive()
        assert not reading.done()
        here.remote.start()
        here.relay.mend()
        assert reading.result(30) == data
        # It went on where it was, for all but what was on the wire.
        assert here.read_offsets()[-1] > 10 << 20


def test_a_remote_that_stays_dead() -> None:
    with world() as here:
        read, unread = here.stage("read", b"r" * SMALL), here.stage("unread", b"u" * SMALL)
        large = here.stage("large", b"l" * LARGE)
        assert read.read_bytes() == b"r" * SMALL
        here.relay.cut_after(LARGE // 2)
        here.daemon.expects(
            *(
                f"READ of /outputs/base/{name} .* failed with EREMOTEIO.*: .*{here.relay.url}"
                for name in ("unread", "large")
            )
        )
        here.daemon.expects("was given up, it has not answered since")
        for file in (large, unread):
            assert read_error(file) == errno.EREMOTEIO
        assert here.relay.cut_off.is_set()
        # Copy-out before the first write needs the bytes, too; to truncate does not.
        here.daemon.expects("OPEN of /outputs/base/unread .* failed with EREMOTEIO.*: .*")
        with pytest.raises(OSError, match="Remote I/O error"), open(unread, "ab"):
            pass
        assert read.read_bytes() == b"r" * SMALL
        with open(large, "wb") as file_made:
            file_made.write(b"made here")
        assert here.build.digests("large") == [digest_of(b"made here")]
        here.build.finish()

        # Nobody can say what the CAS holds: the client is told so, and may ask again.
        with pytest.raises(grpc.RpcError) as raised:
            here.build.start("next")
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert here.relay.url in str(raised.value.details())

        here.relay.mend()
        start_again(here.build, "next")
        assert unread.read_bytes() == b"u" * SMALL
        assert large.read_bytes() == b"made here"
        here.check_healthy()


def test_a_remote_that_refuses_us() -> None:
    with world() as here:
        file = here.stage("file", b"x" * SMALL)
        here.remote.fail("BatchReadBlobs", *[Fault(code=grpc.StatusCode.UNAUTHENTICATED)] * ALWAYS)
        here.daemon.expects(r"READ of /outputs/base/file .* failed with EKEYREJECTED.*: .*UNAUTHENTICATED")
        assert read_error(file) == errno.EKEYREJECTED
        assert here.remote.fake.calls.count("BatchReadBlobs") == 1, "it was tried again"
        here.build.finish()

        here.remote.fail("FindMissingBlobs", Fault(code=grpc.StatusCode.PERMISSION_DENIED))
        with pytest.raises(grpc.RpcError) as raised:
            here.build.start("next")
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
        here.remote.heal()
        here.build.start("next")
        assert file.read_bytes() == b"x" * SMALL
        here.check_healthy()


def test_a_remote_that_hangs() -> None:
    with world(outputs__read_timeout="6") as here, ThreadPoolExecutor(2) as threads:
        small, large = here.stage("small", b"s" * SMALL), here.stage("large", b"l" * LARGE)
        for method in ("BatchReadBlobs", "Read"):
            here.remote.fail(method, *[Fault(hang=True)] * ALWAYS)
        here.daemon.expects(
            *(
                f"READ of /outputs/base/{name} .* failed with ETIMEDOUT.*: blob .* 6 s"
                for name in ("small", "large")
            )
        )
        began = time.monotonic()
        errors = [threads.submit(read_error, file) for file in (small, large)]
        for method in ("BatchReadBlobs", "Read"):
            here.remote.called(method)
        here.check_alive()
        assert [error.result(BOUND) for error in errors] == [errno.ETIMEDOUT] * 2
        assert time.monotonic() - began < 2 * 6, "a reader waited for more than one timeout"
        for method in ("BatchReadBlobs", "Read"):
            here.remote.ended(method)
        here.check_healthy()
        assert small.read_bytes() == b"s" * SMALL
        assert large.read_bytes() == b"l" * LARGE


def test_a_network_that_swallows_everything() -> None:
    with world(outputs__read_timeout="1.5", remote__timeout="1") as here:
        file = here.stage("file", b"x" * SMALL)
        here.relay.freeze()
        here.daemon.expects("READ of /outputs/base/file .* failed with ETIMEDOUT")
        assert read_error(file) == errno.ETIMEDOUT
        here.check_alive()
        here.relay.cut()
        here.relay.mend()
        here.check_healthy()
        assert file.read_bytes() == b"x" * SMALL


# --- who waits may leave


@contextlib.contextmanager
def process_that(does: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that does something with `path`; gone at the end."""
    # A test run in the background of a shell has SIGINT ignored, and what it starts too.
    default = "signal.signal(signal.SIGINT, signal.SIG_DFL)"
    script = f"import os, signal, sys\n{default}\npath = sys.argv[1]\n{does}"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", script, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


READ = "signal.signal(signal.SIGINT, signal.SIG_DFL); open(path, 'rb').read()"
APPEND = "open(path, 'ab')"
SHORTEN = "os.truncate(path, 10)"
LIST = "os.listdir(path)"
STAT = "os.stat(path + '/file')"


@pytest.fixture(scope="module")
def patient() -> Iterator[World]:
    """A daemon that would wait for ever."""
    with world(outputs__read_timeout="600", remote__timeout="600") as here:
        yield here


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize(
    "does", [READ, APPEND, SHORTEN, LIST, STAT], ids=["read", "append", "truncate", "list", "stat"]
)
def test_who_waits_can_be_ended(
    patient: World, does: str, number: signal.Signals, request: pytest.FixtureRequest
) -> None:
    """The kernel sends INTERRUPT for who waits for an answer of ours; of who waits for a page we find out."""
    here = patient
    name = request.node.name
    path = here.stage_tree(name) if does in (LIST, STAT) else here.stage(name, name.encode() * 1000)
    here.remote.forget_calls()
    here.remote.fail("BatchReadBlobs", Fault(hang=True))
    with process_that(does, path) as process:
        here.remote.called("BatchReadBlobs")
        process.send_signal(number)
        assert process.wait(LIVELY) == -number
    here.remote.ended("BatchReadBlobs")
    here.check_healthy()


def test_the_daemon_can_be_stopped_while_somebody_waits() -> None:
    with world(outputs__read_timeout="600", remote__timeout="600") as here, ThreadPoolExecutor(1) as threads:
        file = here.stage("file", b"x" * SMALL)
        tree = here.stage_tree("tree")
        here.remote.fail("BatchReadBlobs", *[Fault(hang=True)] * ALWAYS)
        reading = threads.submit(read_error, file)
        here.remote.called("BatchReadBlobs")
        here.remote.forget_calls()
        with process_that(LIST, tree):
            here.remote.called("BatchReadBlobs")
            here.daemon.expects("was in use; unmounted all the same")
            here.daemon.stop()
        assert reading.result(BOUND) is not None
        here.daemon.start()
        here.remote.heal()
        assert file.read_bytes() == b"x" * SMALL
        assert os.listdir(tree) == ["file"]
