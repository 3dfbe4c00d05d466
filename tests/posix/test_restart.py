"""What is seen of an output path is the same after the daemon was restarted, and after it was killed, once a build has ended."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import daemon_fixture
from tests.posix.at import shown
from tests.posix.odd import facts, odd_files
from tests.service_client import BuildClient, Cas

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)


def everything(top: Path) -> dict[str, object]:
    """All that a program can see, by path."""
    found: dict[str, object] = {}
    for path in sorted(top.rglob("*")):
        seen = path.lstat()
        attributes = {}
        if not path.is_symlink():
            attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        found[str(path.relative_to(top)).encode(errors="surrogateescape").hex()] = (
            shown(str(path)),
            (seen.st_ino, seen.st_blocks),
            (seen.st_atime_ns, seen.st_mtime_ns, seen.st_ctime_ns),
            attributes,
        )
    return found


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_everything_is_as_it_was(end: str) -> None:
    with (
        daemon_fixture.running(settings={"mount.xattrs": "true"}) as daemon,
        daemon_fixture.connected(daemon) as channel,
    ):
        build, cas = BuildClient(channel, daemon.outputs), Cas(channel)
        build.start()
        top = daemon.outputs / build.base
        build.stage({"staged": cas.put(b"staged"), "deep/staged too": cas.put(b"staged too")})
        odd_files(top / "odd")
        os.link(top / "staged", top / "odd" / "linked")
        os.chmod(top / "staged", 0o4710)
        os.chown(top / "odd" / "empty", 1234, 2345)
        os.chown(top / "odd" / "soft link", 77, 88, follow_symlinks=False)
        os.mknod(top / "socket", 0o140600)
        os.utime(top / "deep", ns=(11, 22))
        os.utime(top, ns=(33, 44))
        os.setxattr(top / "staged", "user.x", b"\0\xff")
        os.setxattr(top / "deep", "user.y", b"of a directory")
        facts(top)  # a look gives inode numbers, and those that are given later a crash may take back
        build.finish()
        before, kept = everything(top), facts(top)
        root = os.stat(top)

        if end == "killed":
            daemon.kill()
            daemon.expects("took off 1 mounts of dead daemons")
        else:
            daemon.stop()
        daemon.start()
        assert everything(top) == before
        assert facts(top) == kept
        after = os.stat(top)
        assert (after.st_ino, after.st_mtime_ns, after.st_atime_ns) == (root.st_ino, 44, 33)
