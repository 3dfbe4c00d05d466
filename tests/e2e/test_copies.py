"""Copies of blobs by copy_file_range(2), as cp makes them: they are the same blob again, unless something happened to them. Real
daemon, real mount, with and without passthrough."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.daemon_fixture import Daemon
from tests.e2e.test_cas_directory import World, world
from tests.service_client import digest_of

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
    ),
    pytest.mark.parametrize("passthrough", ["true", "false"]),
]

LARGE = os.urandom(40 << 20)
SMALL = os.urandom(5000)
_REFLINK = {"auto": ["--reflink=auto"], "default": []}


def copy(source: Path, target: Path, *, then: bytes = b"") -> None:
    """All of it; at once, with no call in between, `then` at its beginning."""
    into = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with open(source, "rb") as file:
        while os.copy_file_range(file.fileno(), into, 1 << 30):
            pass
        if then:
            os.pwrite(into, then, 0)
    os.close(into)


def settled(daemon: Daemon) -> None:
    """No file waits to become a blob."""
    end = time.monotonic() + 10
    while left := daemon.private_files():
        assert time.monotonic() < end, left
        time.sleep(0.02)


def stored(w: World, data: bytes) -> Path:
    hash_ = digest_of(data).hash
    return w.daemon.cache / "blobs" / "sha256" / hash_[:2] / hash_[2:]


def test_a_copy_is_the_same_blob(passthrough: str) -> None:
    with world(**{"mount.passthrough": passthrough}) as w:
        w.build.start()
        top = w.daemon.outputs / w.build.base
        for data in (LARGE, SMALL):
            name = str(len(data))
            source = w.at("file", w.remote.add(data))
            copy(source, top / name)
            before = stored(w, data).stat().st_ino
            copy(source, w.daemon.mount / "scratch" / name)
            for flag in ("auto", "default"):
                subprocess.run(
                    ["cp", "--preserve=all", *_REFLINK[flag], top / name, top / f"{name}-{flag}"],
                    check=True,
                )
            settled(w.daemon)
            assert stored(w, data).stat().st_ino == before  # else it was taken for a new one
            for made in (
                top / name,
                top / f"{name}-auto",
                top / f"{name}-default",
                w.daemon.mount / "scratch" / name,
            ):
                assert made.read_bytes() == data
                assert made.stat().st_nlink == 1
            assert w.build.digests(name, f"{name}-auto") == [digest_of(data)] * 2
            assert abs((top / name).stat().st_mtime - (top / f"{name}-auto").stat().st_mtime) < 0.001
            assert abs((top / name).stat().st_mtime - time.time()) < 60
        w.build.finish()


def test_a_copy_that_was_written_to_is_another(passthrough: str) -> None:
    with world(**{"mount.passthrough": passthrough}) as w:
        w.build.start()
        top = w.daemon.outputs / w.build.base
        for data in (LARGE, SMALL):
            name = str(len(data))
            source = w.at("file", w.remote.add(data))
            for attempt in range(5):
                copied = top / f"{name}-{attempt}"
                copy(source, copied, then=b"%d" % attempt)
                expected = b"%d" % attempt + data[1:]
                assert w.build.digests(copied.name) == [digest_of(expected)]
                assert copied.read_bytes() == expected
            assert source.read_bytes() == data
        w.build.finish()


def test_a_copy_that_somebody_writes_to_by_another_handle_is_another(passthrough: str) -> None:
    with world(**{"mount.passthrough": passthrough}) as w:
        w.build.start()
        top = w.daemon.outputs / w.build.base
        source = w.at("file", w.remote.add(LARGE))
        into = os.open(top / "copy", os.O_WRONLY | os.O_CREAT)
        with open(source, "rb") as file:
            while os.copy_file_range(file.fileno(), into, 1 << 30):
                pass
        with open(top / "copy", "r+b") as other:
            assert other.read(10) == LARGE[:10]
            other.seek(-1, os.SEEK_END)
            other.write(b"!")
        os.close(into)
        expected = LARGE[:-1] + b"!"
        assert w.build.digests("copy") == [digest_of(expected)]
        assert (top / "copy").read_bytes() == expected
        w.build.finish()
