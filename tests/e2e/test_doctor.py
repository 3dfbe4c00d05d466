"""The doctor's look at real mounts: one whose daemon died, one whose daemon hangs. It ends in both cases."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from outputd.cli.checks import directories
from outputd.cli.checks.finding import Verdict
from outputd.front.fuse.mount import Mount, mount, unmount

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)


@pytest.fixture
def unanswered(tmp_path: Path) -> Iterator[Mount]:
    """A mount whose requests nobody reads."""
    made = mount(str(tmp_path / "mount"))
    yield made
    unmount(made, patience=0.1)
    try:
        os.close(made.fd)
    except OSError:
        pass  # the test closed it: that was the daemon's death


def test_a_daemon_that_died(unanswered: Mount) -> None:
    os.close(unanswered.fd)
    finding = directories.mount_point(unanswered.path)
    assert finding.verdict is Verdict.WARN
    assert finding.reason == f"{unanswered.path} is the mount of an outputd that has died"


def test_a_daemon_that_hangs(unanswered: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "PROBE_DEADLINE", 0.3)
    started = time.monotonic()
    finding = directories.mount_point(unanswered.path)
    assert time.monotonic() - started < 30
    assert finding.verdict is Verdict.FAIL
    assert "does not answer within 0.3 s" in finding.reason
    assert finding.fix is not None
    assert f"umount -l {unanswered.path}" in finding.fix
