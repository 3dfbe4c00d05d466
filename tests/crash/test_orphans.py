"""Processes that outlive a daemon with a file open for writing: the kernel lets them write on, and nobody may see it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.daemon_fixture import Daemon, connected, running
from tests.service_client import BuildClient, digest_of


@pytest.mark.parametrize(
    ("end", "complaint"),
    (
        (Daemon.kill, "took off 1 mounts of dead daemons"),
        (Daemon.stop, "was in use; unmounted all the same"),
    ),
)
def test_what_is_written_after_the_end_is_seen_nowhere(end: Callable[[Daemon], None], complaint: str) -> None:
    with running() as daemon:
        daemon.expects(complaint)
        with connected(daemon) as channel:
            build = BuildClient(channel, daemon.outputs)
            build.start("b1")
            path = daemon.outputs / build.base / "f"
            orphan = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(orphan, b"written")
            end(daemon)
            kept = b"written"
            if _writes_on(orphan, b" and lost"):
                kept += b" and lost"  # the restart has not looked yet
        daemon.start()
        with connected(daemon) as channel:
            build = BuildClient(channel, daemon.outputs)
            build.build_id = "b1"
            assert build.digests("f") == [digest_of(kept)]
            _writes_on(orphan, b" for ever")
            assert path.read_bytes() == kept
            assert build.digests("f") == [digest_of(kept)]
        with suppress(OSError):  # close(2) tells that nobody was there to be told
            os.close(orphan)
        daemon.restart()
        assert path.read_bytes() == kept


def _writes_on(fd: int, data: bytes) -> bool:
    """Whether the kernel lets a process write whose daemon is gone: with passthrough it does."""
    try:
        os.write(fd, data)
    except OSError:
        return False
    return True
