"""Of a large blob only what is read is fetched, from REv2 servers of other projects; bytes are counted on the wire."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests import daemon_fixture
from tests.interop.servers import buildbox_casd, buildgrid
from tests.interop.upstream import Upstream, upstream
from tests.service_client import BuildClient

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

MIB: Final = 1 << 20
SIZE: Final = 96 * MIB + 12_345


@pytest.fixture(scope="module", params=[buildgrid, buildbox_casd], ids=["buildgrid", "casd"])
def remote(request: pytest.FixtureRequest) -> Iterator[Upstream]:
    with (
        tempfile.TemporaryDirectory(prefix="outputd-test-") as place,
        upstream(request.param, Path(place)) as running,
    ):
        yield running


def test_what_is_read_moves_and_nothing_moves_twice(remote: Upstream) -> None:
    data = random.Random(1).randbytes(SIZE)
    digest = remote.cas().put(data)
    with daemon_fixture.running("--remote", remote.relay.url) as daemon:
        with daemon_fixture.connected(daemon) as channel:
            build = BuildClient(channel, daemon.outputs)
            build.start()
            build.stage({"large": digest, "again": digest})
        file = daemon.outputs / build.base / "large"
        before = remote.relay.received

        def moved() -> int:
            return remote.relay.received - before

        with file.open("rb") as reader:
            reader.seek(-100, os.SEEK_END)
            assert reader.read() == data[-100:]
        assert moved() < 2 * MIB
        with file.open("rb") as reader:
            assert reader.read(64) == data[:64]
        fd = os.open(file, os.O_RDONLY)
        try:
            for offset in (50 * MIB + 1, 30 * MIB, 70 * MIB - 7):
                assert os.pread(fd, 1000, offset) == data[offset : offset + 1000]
            # In another process: the relay's threads run in this one, which a page fault would stop.
            script = (
                f"import mmap; print(mmap.mmap(0, 0, prot=mmap.PROT_READ)[{40 * MIB}:{40 * MIB + 10}].hex())"
            )
            mapped = subprocess.check_output([sys.executable, "-c", script], stdin=fd, timeout=30, text=True)
            assert mapped.strip() == data[40 * MIB :][:10].hex()
        finally:
            os.close(fd)
        assert moved() < 12 * MIB
        assert not list(daemon.cache.glob("blobs/*/*/*"))

        daemon.restart()  # what is here of it stays
        few = moved()
        with file.open("rb") as reader:
            assert reader.read(64) == data[:64]
        assert moved() - few < MIB
        assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(data).digest()
        assert moved() < SIZE + SIZE // 4  # BuildGrid sends whole mebibytes, whatever the limit
        whole = moved()
        assert hashlib.sha256((file.parent / "again").read_bytes()).digest() == hashlib.sha256(data).digest()
        assert moved() - whole < MIB
        assert [path.stat().st_size for path in daemon.cache.glob("blobs/*/*/*")] == [SIZE]
        assert list(daemon.cache.glob("partial/*")) == []


def test_with_whole_blobs_nobody_sees_a_byte_that_was_not_verified(remote: Upstream) -> None:
    data = random.Random(2).randbytes(8 * MIB)
    digest = remote.cas().put(data)
    settings = {"outputs.verify": "whole-blob"}
    with (
        daemon_fixture.running("--remote", remote.relay.url, settings=settings) as daemon,
        daemon_fixture.connected(daemon) as channel,
    ):
        build = BuildClient(channel, daemon.outputs)
        build.start()
        build.stage({"large": digest})
        before = remote.relay.received
        with (daemon.outputs / build.base / "large").open("rb") as reader:
            assert reader.read(10) == data[:10]
        assert remote.relay.received - before > len(data)
        assert [path.stat().st_size for path in daemon.cache.glob("blobs/*/*/*")] == [len(data)]
