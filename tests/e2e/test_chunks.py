"""Large blobs that the remote tells the chunks of: what is wrong is never read, a remote that lies is read without them, and what
is here in part is shown, forgotten and bounded. Real daemon, real mount.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from outputd._proto import bytestream_pb2 as bytestream
from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction
from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.remote_thread import RemoteThread
from tests.service_client import BuildClient
from tests.unit.store.fake_remote import Fault

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

MIB = 1 << 20
SIZE = 24 * MIB + 777
CHUNK = 500_000
PLAIN = "it is read in plain ranges"


class World:
    """A daemon with a build, and the remote behind it."""

    def __init__(self, daemon: Daemon, remote: RemoteThread, build: BuildClient) -> None:
        self.daemon = daemon
        self.remote = remote
        self.build = build

    def stage(self, name: str, data: bytes, chunk: int = CHUNK) -> Path:
        """A file that the remote tells the chunks of, or with 0 one that it does not."""
        digest = self.remote.add_in_chunks(data, chunk) if chunk else self.remote.add(data)
        self.build.stage({name: digest})
        return self.daemon.outputs / self.build.base / name

    def partial(self) -> set[str]:
        """The blobs that are here in part."""
        return {path.name for path in (self.daemon.cache / "partial").iterdir() if path.suffix != ".map"}

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "outputd.cli.main", *arguments, "--listen", self.daemon.target],
            env=self.daemon.environment(),
            cwd=self.daemon.place,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    def calls(self, kind: type[object]) -> int:
        return sum(isinstance(request, kind) for request in list(self.remote.fake.requests))


@contextlib.contextmanager
def world(tmp_path: Path, **settings: str) -> Iterator[World]:
    named = {name.replace("__", "."): text for name, text in settings.items()}
    with (
        RemoteThread(tmp_path / "remote") as remote,
        daemon_fixture.running("--remote", remote.url, settings=named) as daemon,
        daemon_fixture.connected(daemon) as channel,
    ):
        remote.fake.capabilities.cache_capabilities.split_blob_support = True
        build = BuildClient(channel, daemon.outputs)
        build.start()
        yield World(daemon, remote, build)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def content(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


def digest_of(data: bytes) -> Digest:
    return Digest.of(DigestFunction.SHA256, data)


def read(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), size, offset)


def test_what_is_read_comes_in_chunks(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        data = content(1)
        file = w.stage("large", data)
        assert read(file, SIZE - 10, 10) == data[-10:]
        assert read(file, 10 * MIB, 10) == data[10 * MIB :][:10]
        assert (w.calls(bytestream.ReadRequest), w.calls(reapi.SplitBlobRequest)) == (0, 1)
        said = json.loads(w.run("top", "--once", "--json"))
        blobs = {blob["name"]: blob["bytes"] for blob in said["blobs"]}
        [(name, moved)] = blobs.items()  # the chunks count as what they are part of
        assert digest_of(data).hash_hex in name
        assert 0 < moved < 4 * MIB
        assert file.read_bytes() == data
        assert (w.calls(bytestream.ReadRequest), w.calls(reapi.SplitBlobRequest)) == (0, 1)
        until(lambda: w.partial() == set())


def test_a_wrong_chunk_is_eio_and_never_read(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        data = content(2)
        file = w.stage("large", data)
        assert read(file, 10 * MIB, 10) == data[10 * MIB :][:10]
        w.remote.fake.plan = lambda method: Fault(wrong=method == "BatchReadBlobs")
        with pytest.raises(OSError) as raised:
            read(file, 0, 10)
        assert raised.value.errno == errno.EIO
        assert read(file, 10 * MIB, 10) == data[10 * MIB :][:10]  # what is here
        w.remote.fake.plan = None
        w.remote.fail("BatchReadBlobs", Fault(wrong=True))
        assert read(file, 20 * MIB, 10) == data[20 * MIB :][:10]  # asked for once more
        assert file.read_bytes() == data
        w.daemon.expects("large.*EIO")


def test_without_chunks_wrong_bytes_are_found_when_all_are_here(tmp_path: Path) -> None:
    """What chunks are good for: the same fault, seen by whoever reads until the whole has come."""
    with world(tmp_path) as w:
        data = content(3)
        file = w.stage("large", data, chunk=0)
        w.remote.fail("Read", Fault(wrong=True))
        assert read(file, SIZE - 10, 10) != data[-10:]
        w.daemon.expects("have the digest")
        with file.open("rb", buffering=0) as reader:
            for offset in range(0, SIZE, MIB):
                os.pread(reader.fileno(), MIB, offset)
            w.daemon.logged("have the digest")
        assert file.read_bytes() == data


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (Fault(grpc.StatusCode.UNIMPLEMENTED), "UNIMPLEMENTED"),
        (Fault(garbage=True), "no SplitBlobResponse"),
        ("sum", "the chunks have"),
        ("absent", "a chunk that it has not"),
        ("swapped", "its chunks do not make it up"),
    ],
    ids=["unimplemented", "garbage", "sum", "absent", "swapped"],
)
def test_a_remote_that_lies(tmp_path: Path, fault: Fault | str, complaint: str) -> None:
    with world(tmp_path) as w:
        data = content(4)
        file = w.stage("large", data)
        chunks = list(w.remote.fake.chunks[digest_of(data)])
        if isinstance(fault, Fault):
            w.remote.fail("SplitBlob", fault)
        elif fault == "sum":
            w.remote.fake.chunks[digest_of(data)] = chunks[1:]
        elif fault == "absent":
            del w.remote.fake.blobs[chunks[-1]]
        else:
            w.remote.fake.chunks[digest_of(data)] = [chunks[1], chunks[0], *chunks[2:]]
            w.daemon.expects("have the digest")
        w.daemon.expects(
            f"{complaint}.*{PLAIN}" if fault in ("absent", "swapped") else f"{PLAIN}: .*{complaint}"
        )
        if fault != "swapped":
            assert read(file, SIZE - 10, 10) == data[-10:]
        else:
            with file.open("rb", buffering=0) as reader:
                for offset in range(0, SIZE, MIB):
                    os.pread(reader.fileno(), MIB, offset)
                w.daemon.logged("have the digest")
        assert file.read_bytes() == data
        assert w.daemon.words().count(PLAIN) == 1
        until(lambda: w.partial() == set())


def test_the_next_build_brings_what_is_new(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        first = content(5)
        second = first[: 20 * CHUNK] + content(6, CHUNK) + first[21 * CHUNK :]
        assert w.stage("first", first).read_bytes() == first
        file = w.stage("second", second)
        w.remote.forget_calls()
        assert file.read_bytes() == second
        asked = [
            digest.size_bytes
            for request in list(w.remote.fake.requests)
            if isinstance(request, reapi.BatchReadBlobsRequest)
            for digest in request.digests
        ]
        assert asked == [CHUNK]
        assert w.calls(bytestream.ReadRequest) == 0


def test_status_and_forget_know_what_is_here_in_part(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        data = content(7)
        file = w.stage("dir/large", data)
        other = w.stage("other", content(8), chunk=0)
        assert read(file, 0, 10) == data[:10]
        assert read(other, 0, 10) == content(8)[:10]
        store = json.loads(w.run("status", "--json"))["store"]
        assert store["partial_blobs"] == 2
        assert 2 * 256 * 1024 <= store["partial_bytes"] < 6 * MIB
        assert "of 2 more that are here in part" in w.run("status")
        with file.open("rb"):
            said = json.loads(w.run("forget", "dir", "--json"))["trees"][0]
            assert (said["dropped"]["files"], said["held"]["files"]) == (0, 1)
        said = json.loads(w.run("forget", "dir", "--json"))["trees"][0]
        assert (said["dropped"]["files"], said["held"]["files"]) == (1, 0)
        assert 0 < said["dropped"]["bytes"] < 3 * MIB
        assert len(w.partial()) == 1
        assert json.loads(w.run("status", "--json"))["store"]["partial_blobs"] == 1
        w.run("gc", "--max-size", "0B")
        assert w.partial() == set()
        assert (file.read_bytes(), other.read_bytes()) == (data, content(8))


def test_parts_count_for_the_high_mark(tmp_path: Path) -> None:
    with world(tmp_path, cache__high_mark="24 MiB", cache__low_mark="12 MiB") as w:
        files = [w.stage(f"{number}", content(number, 20 * MIB), chunk=0) for number in range(10, 30)]
        with files[0].open("rb", buffering=0) as held:
            for number, file in enumerate(files, 10):
                assert read(file, 10 * MIB, MIB) == content(number, 20 * MIB)[10 * MIB :][:MIB]
            w.daemon.logged("the store was over its marks", seconds=60)
            assert len(w.partial()) < 12
            assert f"sha256-{digest_of(content(10, 20 * MIB)).hash_hex}-{20 * MIB}" in w.partial()
            assert os.pread(held.fileno(), 10, 10 * MIB) == content(10, 20 * MIB)[10 * MIB :][:10]
