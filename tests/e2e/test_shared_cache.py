"""Two state directories and one cache directory: one daemon at a time, and what belongs to the other stays. Real daemons."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.e2e.test_restart import outputd, restart
from tests.service_client import BuildClient, Cas

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)


@pytest.fixture
def both() -> Iterator[tuple[Daemon, Daemon]]:
    with ExitStack() as stack:
        one, two = (stack.enter_context(daemon_fixture.directories()) for _ in range(2))
        two.cache = one.cache
        yield one, two


def test_only_one_daemon_at_a_time(both: tuple[Daemon, Daemon]) -> None:
    one, two = both
    one.start()
    refusal = f"cache directory {one.cache}: in use by the outputd with process id {one.pid}; stop that one, or give this one"
    assert refusal in two.refuses()
    restart(one)  # the lock goes over
    assert refusal in two.refuses()
    assert os.listdir(one.outputs) == []
    one.stop()
    two.start()
    two.kill()
    one.start()


def test_what_was_being_written_stays_while_another_has_the_cache(both: tuple[Daemon, Daemon]) -> None:
    one, two = both
    one.start()
    with daemon_fixture.connected(one) as channel:
        build = BuildClient(channel, one.outputs)
        build.start()
        build.stage({"file": Cas(channel).put(b"staged")})
        path = one.outputs / build.base / "written"
        writer = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.write(writer, b"not closed")
        one.send(signal.SIGKILL)
        one.wait()
        with pytest.raises(OSError):
            os.close(writer)
        assert len(one.private_files()) == 1

        two.settings["cache.garbage_age"] = "1"
        two.start()
        time.sleep(1.5)
        with daemon_fixture.connected(two) as other:
            second = BuildClient(other, two.outputs)
            second.start()
            (two.outputs / second.base / "its own").write_bytes(b"of two")
            second.finish()
        two.expects(
            f"what is only here is kept, for the cache directory also holds what belongs to the state {one.state}"
        )
        done = outputd(two, "gc", "--json")
        assert done.returncode == 0, done.stderr
        two.stop()
        assert len(one.private_files()) == 1

        one.expects("took off 1 mounts of dead daemons")
        one.start()
        assert path.read_bytes() == b"not closed"
        assert (path.parent / "file").read_bytes() == b"staged"


def test_a_daemon_can_read_what_another_has(tmp_path: Path) -> None:
    """What is said to those who want to share a cache: one daemon is the other's remote."""
    with daemon_fixture.running() as one, daemon_fixture.directories("--remote", one.target) as two:
        two.start()
        with daemon_fixture.connected(one) as first, daemon_fixture.connected(two) as second:
            digest = Cas(first).put(os.urandom(100_000))
            build = BuildClient(second, two.outputs)
            build.start()
            build.stage({"file": digest})
            assert len((two.outputs / build.base / "file").read_bytes()) == 100_000
