"""What a SIGKILL in the middle of a build leaves: everything, and the build goes on. Real daemon, real mount."""

from __future__ import annotations

import os

from tests.daemon_fixture import connected, running
from tests.service_client import BuildClient, Cas


def test_a_running_build_outlives_a_sigkill() -> None:
    with running() as daemon:
        daemon.expects("took off 1 mounts of dead daemons")
        with connected(daemon) as channel:
            cas = Cas(channel)
            first, second = cas.put(b"first"), cas.put(b"second")
            build = BuildClient(channel, daemon.outputs)
            build.start("b1")
            build.stage({"bin/first": first, "bin/second": second, "gone": first})
            top = daemon.outputs / build.base
            (top / "bin" / "first").rename(top / "bin" / "moved")
            (top / "gone").unlink()
            (top / "dir").mkdir(mode=0o750)
            (top / "dir" / "written").write_bytes(b"written")
            os.utime(top / "dir" / "written", ns=(1, 2_000_000_001))
            os.chmod(top / "dir" / "written", 0o640)
            os.link(top / "dir" / "written", top / "same")
            (top / "link").symlink_to("dir/written")
            with (top / "appended").open("wb") as file:
                file.write(b"some bytes")
                file.flush()
                seen = {path.name: path.lstat().st_ino for path in top.iterdir()}
                daemon.kill()
        daemon.start()
        with connected(daemon) as channel:
            again = BuildClient(channel, daemon.outputs)
            again.build_id = build.build_id
            stats = again.digests("bin/moved", "bin/second", "gone", "dir/written", "same", "appended")
            assert stats[:2] == [first, second]
            assert stats[2] is None
            assert stats[3] == stats[4] is not None
            assert (top / "appended").read_bytes() == b"some bytes"
            assert {path.name: path.lstat().st_ino for path in top.iterdir()} == seen
            status = (top / "dir" / "written").stat()
            assert (status.st_mode & 0o7777, status.st_mtime_ns, status.st_nlink) == (0o640, 2_000_000_001, 2)
            assert (top / "dir").stat().st_mode & 0o7777 == 0o750
            assert (top / "same").samefile(top / "dir" / "written")
            assert (top / "link").read_bytes() == b"written"
            assert (top / "bin" / "moved").read_bytes() == b"first"
            again.stage({"later": second})
            again.finish()
        daemon.restart()
        assert (top / "later").read_bytes() == b"second"
        assert (top / "bin" / "moved").read_bytes() == b"first"


def test_a_build_that_was_finalized_just_before_a_sigkill_is_there() -> None:
    with running() as daemon:
        daemon.expects("took off 1 mounts of dead daemons")
        for number in range(5):
            with connected(daemon) as channel:
                digest = Cas(channel).put(b"%d" % number)
                build = BuildClient(channel, daemon.outputs)
                build.start(f"b{number}")
                build.stage({f"d/{number}": digest})
                build.finish()
                daemon.kill()
            daemon.start()
            top = daemon.outputs / build.base / "d"
            assert sorted(os.listdir(top)) == [str(index) for index in range(number + 1)]
