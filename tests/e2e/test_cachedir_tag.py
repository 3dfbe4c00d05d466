"""CACHEDIR.TAG in the mount and in the cache directory: backup programs leave both out. Real daemon, real tar."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests import daemon_fixture
from tests.e2e.test_restart import building, restart
from tests.service_client import digest_of

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"
TAG_INO = 4


def archived(top: Path, *options: str) -> list[str]:
    """The names of everything below `top` that tar takes."""
    names = [name for name in os.listdir(top) if name not in ("socket", "log", "state")]
    made = subprocess.run(
        ["tar", "--create", *options, "--directory", top, *sorted(names)], capture_output=True, check=True
    )
    listed = subprocess.run(["tar", "--list"], input=made.stdout, capture_output=True, check=True)
    return listed.stdout.decode().splitlines()


def test_backup_programs_leave_mount_and_cache_out() -> None:
    with building() as (daemon, build, cas, top):
        build.stage({"bin/file": cas.put(b"staged" * 100)})
        (top / "local").write_bytes(b"local")
        (daemon.place / "mine").write_bytes(b"mine")
        everything = archived(daemon.place)
        assert {"mine", "mount/CACHEDIR.TAG", "mount/outputs/base/bin/file", "cache/CACHEDIR.TAG"} < set(
            everything
        )
        assert archived(daemon.place, "--exclude-caches") == [
            *("cache/", "cache/CACHEDIR.TAG", "mine", "mount/", "mount/CACHEDIR.TAG")
        ]
        assert archived(daemon.place, "--exclude-caches-under") == ["cache/", "mine", "mount/"]
        assert archived(daemon.place, "--exclude-caches-all") == ["mine"]


def test_it_cannot_be_changed() -> None:
    with daemon_fixture.running() as daemon:
        tag = daemon.mount / "CACHEDIR.TAG"
        before = tag.stat()
        assert (before.st_mode, before.st_nlink, before.st_ino) == (0o100444, 1, TAG_INO)
        assert before.st_size == len(tag.read_bytes())
        assert tag.read_bytes()[:43] == SIGNATURE
        assert sorted(os.listdir(daemon.mount)) == ["CACHEDIR.TAG", "cas", "outputs", "scratch"]
        for change in (
            lambda: tag.unlink(),
            lambda: tag.rename(daemon.mount / "other"),
            lambda: tag.write_bytes(b""),
            lambda: os.truncate(tag, 0),
            lambda: tag.chmod(0o600),
            lambda: os.utime(tag),
            lambda: os.link(tag, daemon.mount / "scratch" / "tag"),
        ):
            with pytest.raises(OSError) as refused:
                change()
            assert refused.value.errno in (errno.EROFS, errno.EXDEV)
        assert tag.stat() == before
        assert tag.read_bytes()[:43] == SIGNATURE


def test_numbers_and_bytes_stay() -> None:
    with building() as (daemon, build, cas, top):
        tag = daemon.mount / "CACHEDIR.TAG"
        build.stage({"file": cas.put(b"staged")})
        places = (daemon.mount, tag, daemon.outputs, top / "file", daemon.mount / "cas")
        assert len(os.listdir(daemon.mount)) == 4  # a listing gives numbers, too
        before = [os.stat(place).st_ino for place in places]
        with open(tag, "rb") as opened:
            restart(daemon)
            assert opened.read(43) == SIGNATURE
            restart(daemon)
            assert os.pread(opened.fileno(), 43, 0) == SIGNATURE
        assert [os.stat(place).st_ino for place in places] == before
        build.finish()
        daemon.restart()
        assert [os.stat(place).st_ino for place in places] == before
        assert tag.read_bytes()[:43] == SIGNATURE
        # What was read is no blob among others: nobody can evict it, and nobody counts it.
        blobs = [path for path in (daemon.cache / "blobs").rglob("*") if path.is_file()]
        assert digest_of(tag.read_bytes()).hash not in {path.parent.name + path.name for path in blobs}


def test_updatedb_finds_the_type_by_which_it_prunes() -> None:
    with daemon_fixture.running() as daemon:
        # As updatedb reads it (PRUNEFS): the third word, compared as a whole.
        lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        assert [line[2] for line in lines if line[1] == str(daemon.mount)] == ["fuse.outputd"]
