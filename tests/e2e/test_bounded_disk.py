"""A daemon whose store lies on a small file system that is filled by reading, writing and uploading: what may go goes, all that is
needed stays readable, and a disk that is full for good is told in words.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from outputd._proto import remote_execution_pb2 as reapi
from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.remote_thread import RemoteThread
from tests.service_client import BuildClient, Cas

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

MIB = 1 << 20
ROOM = 48 * MIB
PIECE = 2 * MIB


def content(number: int, size: int = PIECE) -> bytes:
    """Bytes that no other number has."""
    return (b"%08d" % number) * (size // 8)


@contextlib.contextmanager
def small_disk(*options: str, mount: str = "", **settings: str) -> Iterator[Daemon]:
    """A daemon that is not started yet, with 48 MiB for its store."""
    named = {name.replace("__", "."): text for name, text in settings.items()}
    with daemon_fixture.directories(*options, settings=named) as daemon:
        daemon.cache.mkdir()
        size = f"size={ROOM},nr_inodes=2000{mount}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "outputd-test", str(daemon.cache)], check=True)
        try:
            yield daemon
            daemon.stop()
        finally:
            daemon.end()
            subprocess.run(["umount", str(daemon.cache)], check=True)


@contextlib.contextmanager
def building(daemon: Daemon, base: str = "base") -> Iterator[tuple[BuildClient, Cas]]:
    with grpc.insecure_channel(daemon.target, options=daemon_fixture.CHANNEL_OPTIONS) as channel:
        yield BuildClient(channel, daemon.outputs, base), Cas(channel)


def gc(daemon: Daemon, *arguments: str) -> dict[str, dict[str, dict[str, int]]]:
    """What `outputd gc --json` says."""
    done = subprocess.run(
        [*(sys.executable, "-m", "outputd.cli.main", "gc", "--json", *arguments), "--listen", daemon.target],
        env=daemon.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said: dict[str, dict[str, dict[str, int]]] = json.loads(done.stdout)
    return said


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def put(cas: Cas, data: bytes) -> reapi.Digest:
    """As a client does that is told of no room, and tries again."""
    end = time.monotonic() + 30
    while True:
        try:
            return cas.put(data)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert time.monotonic() < end, error
        time.sleep(0.2)


def stored(daemon: Daemon) -> int:
    return sum(file.stat().st_size for file in (daemon.cache / "blobs").rglob("*") if file.is_file())


def test_reading_more_than_the_disk_holds(tmp_path: Path) -> None:
    with RemoteThread(tmp_path / "remote") as remote, small_disk("--remote", remote.url) as daemon:
        daemon.start()
        with building(daemon) as (build, _):
            build.start()
            build.stage({f"dir/{number}": remote.add(content(number)) for number in range(60)})
            top = daemon.outputs / "base" / "dir"
            with open(top / "0", "rb") as held:
                assert held.read(8) == content(0)[:8]
                for number in range(60):
                    assert (top / str(number)).read_bytes() == content(number)
                # Everything is still there to be read, though it was evicted; and who has a file open has its bytes.
                held.seek(0)
                assert held.read() == content(0)
            for number in range(60):
                assert (top / str(number)).read_bytes() == content(number)
            build.finish()
        assert stored(daemon) <= ROOM


def test_writing_more_than_the_disk_holds() -> None:
    """What is only here and needed stays; the writer is told that the disk is full, everybody else goes on."""
    with small_disk(cache__garbage_age="1") as daemon:
        daemon.start()
        with building(daemon) as (build, cas):
            build.start()
            top = daemon.outputs / "base"
            written = 0
            with pytest.raises(OSError, match="No space left"):
                while written < 100:
                    (top / f"local{written}").write_bytes(content(written))
                    written += 1
            assert ROOM // 2 < written * PIECE <= ROOM
            (top / f"local{written}").unlink()
            for number in range(written):
                assert (top / f"local{number}").read_bytes() == content(number)
            with pytest.raises(grpc.RpcError, match="gc --dry-run") as refused:
                cas.put(content(1000, 8 * MIB))
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "are left on the file system of" in str(refused.value.details())
            # What nothing needs any more makes room, without anybody's help.
            for number in range(10):
                (top / f"local{number}").unlink()
            digest = put(cas, content(1000, 8 * MIB))
            build.stage({"staged": digest})
            assert (top / "staged").read_bytes() == content(1000, 8 * MIB)
            for number in range(10, written):
                assert (top / f"local{number}").read_bytes() == content(number)
            build.finish()
        daemon.restart()
        for number in range(10, written):
            assert (top / f"local{number}").read_bytes() == content(number)
        daemon.expects(
            "the disk is full, and nothing that may go is left",
            "the store stays over its marks",
        )
        # That a blob is on the disk is written down now and then, which may find the disk full or not.
        daemon.allows("synced cannot be written")


def test_uploading_more_than_the_disk_holds() -> None:
    """Without a remote the store is the whole CAS: the least recently used goes, but for what an output tree needs."""
    with small_disk(cache__garbage_age="1") as daemon:
        daemon.start()
        with building(daemon) as (build, cas):
            build.start()
            needed = cas.put(content(1))
            build.stage({"needed": needed})
            digests = []
            for number in range(100, 145):
                # A client that is faster than it takes for something to become garbage fills the disk.
                digests.append(put(cas, content(number)))
                time.sleep(0.1)
            missing = cas.missing([needed, *digests])
            assert needed.hash not in missing
            assert digests[-1].hash not in missing
            assert 15 < len(missing) < 45
            assert (daemon.outputs / "base" / "needed").read_bytes() == content(1)
            build.finish()
        assert stored(daemon) <= ROOM


def test_more_files_than_the_disk_has_inodes(tmp_path: Path) -> None:
    with RemoteThread(tmp_path / "remote") as remote, small_disk("--remote", remote.url) as daemon:
        daemon.start()
        with building(daemon) as (build, _):
            build.start()
            build.stage({f"{number}": remote.add(b"%d" % number) for number in range(3000)})
            for number in range(3000):
                assert (daemon.outputs / "base" / str(number)).read_bytes() == b"%d" % number
            build.finish()


def test_a_disk_that_became_read_only(tmp_path: Path) -> None:
    with RemoteThread(tmp_path / "remote") as remote, small_disk("--remote", remote.url) as daemon:
        daemon.start()
        with building(daemon) as (build, _):
            build.start()
            build.stage({name: remote.add(name.encode()) for name in ("here", "not here")})
            top = daemon.outputs / "base"
            assert (top / "here").read_bytes() == b"here"
            # Not by a remount of the file system itself, which is refused while files are open for writing.
            subprocess.run(["mount", "--bind", str(daemon.cache), str(daemon.cache)], check=True)
            try:
                subprocess.run(["mount", "-o", "remount,bind,ro", str(daemon.cache)], check=True)
                assert (top / "here").read_bytes() == b"here"
                with pytest.raises(OSError, match="Input/output error"):
                    (top / "not here").read_bytes()
                with pytest.raises(OSError, match="Input/output error"):
                    (top / "new").write_bytes(b"new")
                assert (top / "here").read_bytes() == b"here"
            finally:
                subprocess.run(["umount", str(daemon.cache)], check=True)
            assert (top / "not here").read_bytes() == b"not here"
            (top / "new").write_bytes(b"new")
            build.finish()
        daemon.expects(
            "READ of .* failed with EIO.*: .*Read-only file system", "CREATE of .* failed with EIO"
        )


def test_collecting_garbage(tmp_path: Path) -> None:
    with (
        RemoteThread(tmp_path / "remote") as remote,
        small_disk("--remote", remote.url, cache__garbage_age="0") as daemon,
    ):
        daemon.start()
        with building(daemon) as (build, _), building(daemon, "other") as (other, _):
            build.start()
            build.stage({"cached": remote.add(content(1))})
            top = daemon.outputs / "base"
            assert (top / "cached").read_bytes() == content(1)
            (top / "needed").write_bytes(content(2))
            (top / "removed").write_bytes(content(3))
            assert build.digests("needed", "removed") != [None, None]
            (top / "removed").unlink()
            build.finish()
            other.start()
            (daemon.outputs / "other" / "d").mkdir()
            (daemon.outputs / "other" / "d" / "file").write_bytes(content(4))
            assert other.digests("d/file") != [None]
            other.finish()
            other.clean()

            blobs = gc(daemon, "--dry-run")["blobs"]
            assert {kind: found["blobs"] for kind, found in blobs.items()} == {
                "garbage": 2,
                "cached": 1,
                "results": 0,
                "kept": 1,
                "held": 0,
            }
            assert blobs["garbage"]["removed_bytes"] == 2 * PIECE
            assert stored(daemon) == 4 * PIECE

            assert gc(daemon)["blobs"]["garbage"]["removed_blobs"] == 2
            assert stored(daemon) == 2 * PIECE
            with open(top / "needed", "rb") as file:
                assert gc(daemon, "--dry-run")["blobs"]["held"]["blobs"] == 1
                assert file.read() == content(2)
            assert gc(daemon, "--max-size", "2MiB")["blobs"]["cached"]["removed_blobs"] == 1
            assert stored(daemon) == PIECE
            assert (top / "needed").read_bytes() == content(2)
            assert (top / "cached").read_bytes() == content(1)
            said = gc(daemon, "--older-than", "0s")
            assert [base["id"] for base in said["output_bases"]] == ["base"]  # type: ignore[index]
            assert os.listdir(daemon.outputs) == []
            assert stored(daemon) == 0


def test_what_a_power_cut_has_damaged_is_not_served(tmp_path: Path) -> None:
    with (
        RemoteThread(tmp_path / "remote") as remote,
        daemon_fixture.running("--remote", remote.url) as daemon,
        building(daemon) as (build, _),
    ):
        build.start()
        build.stage({str(number): remote.add(content(number)) for number in range(3)})
        top = daemon.outputs / "base"
        for number in range(3):
            assert (top / str(number)).read_bytes() == content(number)
        build.finish()
        daemon.kill()
        # As the machine would come up again: another boot, and zeros where bytes were not written back.
        record = daemon.cache / "synced"
        record.write_text(" ".join(["another", "0", *record.read_text().split()[2:]]) + "\n")
        damaged = next(file for file in (daemon.cache / "blobs").rglob("*") if file.is_file())
        damaged.chmod(0o644)
        damaged.write_bytes(bytes(PIECE))
        daemon.start()
        for number in range(3):
            assert (top / str(number)).read_bytes() == content(number)
        assert [file.read_bytes() for file in (daemon.cache / "damaged").iterdir()] == [bytes(PIECE)]
        daemon.expects("blob .* was damaged by a power cut", "1 blobs were damaged", "took off 1 mounts")
        assert record.read_text().split()[3] == "open"
