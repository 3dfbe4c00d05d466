"""Of a large blob only what is read is fetched, from servers of other projects and from our own; bytes are counted on the wire.

Each server has its own bounds, the tightest that its protocol allows: see `Served`.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from outputd._proto import remote_execution_pb2 as reapi
from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.interop.servers import Server, buildbox_casd, buildgrid
from tests.interop.upstream import Starter, Upstream, upstream
from tests.service_client import BuildClient, call

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

MIB: Final = 1 << 20
GIB: Final = 1 << 30
SIZE: Final = 96 * MIB + 12_345
_SPLIT: Final = "/build.bazel.remote.execution.v2.ContentAddressableStorage/SplitBlob"


@contextmanager
def outputd(directory: Path) -> Iterator[Server]:
    """Our own daemon as a server, without a remote."""
    directory.mkdir(parents=True, exist_ok=True)
    daemon = Daemon(directory)
    try:
        daemon.start()
        yield Server("outputd", daemon.target, daemon.pid)
        daemon.stop()
    finally:
        daemon.end()
    daemon.check_complaints()


@dataclass(frozen=True)
class Served:
    """A server, and what it takes for a read."""

    start: Starter
    objects: str
    """Where below its directory it keeps blobs, by two digits and the others."""
    range: int
    """Most bytes that a small read brings: what is read ahead (a quarter of a mebibyte and a granule at each end), and how the
    server rounds that."""
    whole: int
    """Most bytes that all of SIZE brings beyond SIZE."""


SERVED: Final = {
    # It rounds each limit up to whole mebibytes (buildgrid: ByteStreamInstance.read_cas_blob); all of SIZE takes twenty calls.
    "buildgrid": Served(buildgrid, "cas/0/cas/objects", 2 * MIB, 12 * MIB),
    "casd": Served(buildbox_casd, "cas/cas/objects", MIB, MIB // 4),
    "outputd": Served(outputd, "cache/blobs/sha256", MIB, MIB // 4),
}


@pytest.fixture(scope="module", params=SERVED)
def server(request: pytest.FixtureRequest) -> Iterator[tuple[Served, Upstream]]:
    served = SERVED[request.param]
    with (
        tempfile.TemporaryDirectory(prefix="outputd-test-") as place,
        upstream(served.start, Path(place)) as running,
    ):
        yield served, running


@contextmanager
def daemon_of(running: Upstream, **settings: str) -> Iterator[tuple[Daemon, BuildClient]]:
    """A daemon in front of it, with a build."""
    named = {name.replace("__", "."): text for name, text in settings.items()}
    with (
        daemon_fixture.running("--remote", running.relay.url, settings=named) as daemon,
        daemon_fixture.connected(daemon) as channel,
    ):
        build = BuildClient(channel, daemon.outputs)
        build.start()
        yield daemon, build


class Count:
    """What has come over the wire since this was made, or since the last `restart`."""

    def __init__(self, running: Upstream) -> None:
        self._relay = running.relay
        self.restart()

    def restart(self) -> None:
        self._before = self._relay.received

    @property
    def moved(self) -> int:
        return self._relay.received - self._before


# What a call costs that brings no blob: headers, and the connection's own frames.
NOTHING: Final = 32 << 10


def in_another_process(path: Path, expression: str) -> str:
    """What that prints; `file` is the path, open."""
    script = f"import mmap, os, sys; file = open(sys.argv[1], 'rb', 0); print({expression})"
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def plant_gibibyte(served: Served, running: Upstream, mark: bytes) -> tuple[reapi.Digest, bytes]:
    """A blob of 1 GiB in the server's own store, most of it a hole, and its last 100 bytes."""
    tail = random.Random(mark).randbytes(100)
    hash_ = hashlib.sha256()
    zeros = bytes(4 * MIB)
    for _ in range(GIB // len(zeros) - 1):
        hash_.update(zeros)
    hash_.update(zeros[:-100] + tail)
    digits = hash_.hexdigest()
    directory = running.directory / served.objects / digits[:2]
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / digits[2:], "wb") as file:
        file.truncate(GIB - 100)
        file.seek(GIB - 100)
        file.write(tail)
    (directory / digits[2:]).chmod(0o444)
    return reapi.Digest(hash=digits, size_bytes=GIB), tail


def test_the_end_of_a_gibibyte(server: tuple[Served, Upstream]) -> None:
    """Nothing that was read moves again: for another process, in another output base, after a restart."""
    served, running = server
    digest, tail = plant_gibibyte(served, running, b"gibibyte")
    with daemon_of(running) as (daemon, build):
        build.stage({"large": digest})
        file = daemon.outputs / build.base / "large"
        count = Count(running)
        with file.open("rb") as reader:
            reader.seek(-100, os.SEEK_END)
            assert reader.read() == tail
        assert count.moved < min(served.range, 4 * MIB)

        count.restart()
        read_end = "(file.seek(-100, 2), file.read().hex())[1]"
        assert in_another_process(file, read_end) == tail.hex()
        assert count.moved < NOTHING
        with daemon_fixture.connected(daemon) as channel:
            other = BuildClient(channel, daemon.outputs, "other")
            other.start()
            other.stage({"moved/there": digest})
        count.restart()
        there = daemon.outputs / "other" / "moved" / "there"
        assert in_another_process(there, read_end) == tail.hex()
        assert count.moved < NOTHING
        daemon.restart()
        count.restart()
        assert in_another_process(file, read_end) == tail.hex()
        assert in_another_process(there, read_end) == tail.hex()
        assert count.moved < NOTHING


def test_what_is_read_moves_and_nothing_moves_twice(server: tuple[Served, Upstream]) -> None:
    served, running = server
    data = random.Random(1).randbytes(SIZE)
    digest = running.cas().put(data)
    with daemon_of(running) as (daemon, build):
        build.stage({"large": digest, "again": digest})
        file = daemon.outputs / build.base / "large"
        count = Count(running)
        with file.open("rb") as reader:
            reader.seek(-100, os.SEEK_END)
            assert reader.read() == data[-100:]
        assert count.moved < served.range
        with file.open("rb") as reader:
            assert reader.read(64) == data[:64]
        fd = os.open(file, os.O_RDONLY)
        try:
            for offset in (50 * MIB + 1, 30 * MIB, 70 * MIB - 7):
                assert os.pread(fd, 1000, offset) == data[offset : offset + 1000]
        finally:
            os.close(fd)
        # In another process: the relay's threads run in this one, which a page fault would stop.
        mapped = f"mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)[{40 * MIB}:{40 * MIB + 10}].hex()"
        assert in_another_process(file, mapped) == data[40 * MIB :][:10].hex()
        assert count.moved < 6 * served.range
        assert not [blob for blob in daemon.cache.glob("blobs/*/*/*") if blob.stat().st_size == SIZE]

        daemon.restart()  # what is here of it stays
        few = count.moved
        with file.open("rb") as reader:
            assert reader.read(64) == data[:64]
        assert count.moved - few < served.range
        assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(data).digest()
        assert count.moved < SIZE + served.whole
        count.restart()
        assert hashlib.sha256((file.parent / "again").read_bytes()).digest() == hashlib.sha256(data).digest()
        assert count.moved < NOTHING
        assert SIZE in [path.stat().st_size for path in daemon.cache.glob("blobs/*/*/*")]
        assert list(daemon.cache.glob("partial/*")) == []


def test_a_rebuild_moves_only_what_is_read(server: tuple[Served, Upstream]) -> None:
    served, running = server
    choose = random.Random(4)
    small = [choose.randbytes(5000) for _ in range(200)]
    large = [choose.randbytes(8 * MIB) for _ in range(2)]
    digests = running.cas().put_all([*small, *large])
    with daemon_of(running) as (daemon, build):
        artifacts = {f"out/{number}": digest for number, digest in enumerate(digests)}
        build.stage(artifacts)
        build.finish()
        count = Count(running)
        top = daemon.outputs / build.base / "out"
        assert (top / "7").read_bytes() == small[7]
        with (top / "200").open("rb") as reader:
            assert reader.read(10) == large[0][:10]
        assert count.moved < served.range + 250_000  # of the small ones some are read ahead

        # Each output of the second build is a hit; what names them costs some bytes for each, and no blob moves.
        count.restart()
        build.start()
        build.stage(artifacts)
        assert all(build.digests(*artifacts))
        build.finish()
        assert sum(entry.stat().st_size for entry in top.iterdir()) == 200 * 5000 + 16 * MIB
        assert count.moved < NOTHING
        assert (top / "7").read_bytes() == small[7]
        assert count.moved < NOTHING
        with (top / "201").open("rb") as reader:
            assert reader.read(10) == large[1][:10]
        assert count.moved < served.range + NOTHING


def test_with_whole_blobs_nobody_sees_a_byte_that_was_not_verified(server: tuple[Served, Upstream]) -> None:
    _, running = server
    data = random.Random(2).randbytes(8 * MIB)
    digest = running.cas().put(data)
    with daemon_of(running, outputs__verify="whole-blob") as (daemon, build):
        build.stage({"large": digest})
        count = Count(running)
        with (daemon.outputs / build.base / "large").open("rb") as reader:
            assert reader.read(10) == data[:10]
        assert count.moved > len(data)
        assert [path.stat().st_size for path in daemon.cache.glob("blobs/*/*/*")] == [len(data)]


def test_chunks_of_our_own_daemon(tmp_path: Path) -> None:
    """What is read comes in chunks, and of the next build's blob only the chunks that are new."""
    data = random.Random(5).randbytes(12 * MIB)
    changed = data[: 5 * MIB] + b"something that was inserted" + data[5 * MIB :]
    with (
        tempfile.TemporaryDirectory(prefix="outputd-test-") as place,
        upstream(outputd, Path(place)) as running,
        daemon_of(running) as (daemon, build),
    ):
        first, second = running.cas().put_all([data, changed])
        for digest in (first, second):  # it cuts them now, and knows the chunks from here on
            request = reapi.SplitBlobRequest(blob_digest=digest)
            assert len(call(running.channel, _SPLIT, request, reapi.SplitBlobResponse).chunk_digests) > 10
        build.stage({"first": first, "second": second})
        top = daemon.outputs / build.base
        count = Count(running)
        with (top / "first").open("rb") as reader:
            reader.seek(-100, os.SEEK_END)
            assert reader.read() == data[-100:]
        assert count.moved < 3 * MIB  # a chunk has at most two
        assert (top / "first").read_bytes() == data
        assert count.moved < len(data) + MIB // 4
        count.restart()
        assert (top / "second").read_bytes() == changed
        assert count.moved < 4 * MIB
