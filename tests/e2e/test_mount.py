"""Real mounts: made, served, refused, found dead, replaced, taken off while free, busy or hanging."""

from __future__ import annotations

import errno
import json
import os
import select
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outputd.errors import Precondition
from outputd.front.fuse import mount as module
from outputd.front.fuse.connection import abort_device
from outputd.front.fuse.mount import FSTYPE, Mount, abort, mount, topmost
from outputd.wire.fuse_abi import INC_EPOCH_MINOR_VERSION

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

FUSERMOUNT = shutil.which("fusermount3")
SERVER = Path(__file__).with_name("tiny_server.py")


class Daemon:
    """One tiny_server.py process."""

    def __init__(self, place: Path, *how: str, within: tuple[str, ...] = ()) -> None:
        self._process = subprocess.Popen(
            [*within, sys.executable, str(SERVER), str(place), *how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self.mounted = self.hear()

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        heard: dict[str, Any] = json.loads(self._process.stdout.readline() or b"{}")
        return heard

    def tell(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()
        return self.hear()

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self) -> None:
        """Kill it, if it still runs."""
        self._process.kill()
        self.finish()

    def finish(self) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        return self._process.wait(10)


class Looker:
    """A stat(2) that may wait for ever, in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._error: int | None = None
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        try:
            os.stat(self._path)
            self._error = 0
        except OSError as error:
            self._error = error.errno

    def error(self) -> int | None:
        """What it ended with; None when it did not."""
        self._thread.join(10)
        return self._error


Start = Callable[..., Daemon]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    place = Path(os.path.realpath(tmp_path)) / "mount point"
    yield place
    while topmost(str(place)) is not None:
        module._umount2(str(place), module._MNT_DETACH)


@pytest.fixture
def start(place: Path) -> Iterator[Start]:
    started: list[Daemon] = []

    def start(how: str = "mount") -> Daemon:
        started.append(Daemon(place, how))
        return started[-1]

    yield start
    for daemon in started:
        daemon.end()


@pytest.fixture(params=["mount", "fusermount"])
def daemon(request: pytest.FixtureRequest, start: Start) -> Daemon:
    if request.param == "fusermount" and not FUSERMOUNT:
        pytest.fail("fusermount3 is not installed: apt-get install fuse3 (scripts/debian-packages.txt)")
    return start(request.param)


def test_a_mount_is_made_served_and_taken_off(daemon: Daemon, place: Path) -> None:
    entry = topmost(str(place))
    assert entry is not None
    assert (entry.fstype, entry.source) == (FSTYPE, "outputd")
    assert daemon.mounted == {"connection": entry.minor, "created": True, "replaced": 0}

    seen = place.stat()
    assert (seen.st_ino, seen.st_nlink, seen.st_mtime_ns) == (1, 2, 1_700_000_000_000_000_005)
    assert not (place / "missing").exists()

    assert daemon.tell("unmount 2") == {"outcome": "clean"}
    assert topmost(str(place)) is None
    assert place.stat().st_ino != 1
    assert daemon.tell("ended") == {"ended": "None"}
    assert daemon.tell("quit") == {"notifier": True}
    assert daemon.finish() == 0


def test_a_busy_mount_is_detached(daemon: Daemon, place: Path) -> None:
    held = os.open(place, os.O_PATH)
    try:
        assert daemon.tell("unmount 0.2") == {"outcome": "detached"}
        assert topmost(str(place)) is None
        # Still served for those inside, until the daemon closes the device.
        assert os.stat(held).st_ino == 1
        assert daemon.tell("quit") == {"notifier": True}
        assert daemon.finish() == 0
        with pytest.raises(OSError, match="not connected") as raised:
            os.stat(held)
        assert raised.value.errno == errno.ENOTCONN
    finally:
        os.close(held)


def test_what_a_dead_daemon_left_is_replaced(daemon: Daemon, start: Start, place: Path) -> None:
    daemon.end()
    with pytest.raises(OSError, match="not connected") as raised:
        os.stat(place)
    assert raised.value.errno == errno.ENOTCONN

    second = start()
    assert second.mounted["replaced"] == 1
    assert place.stat().st_ino == 1
    assert second.tell("unmount 2") == {"outcome": "clean"}
    assert topmost(str(place)) is None


def test_a_living_daemon_is_left_alone(daemon: Daemon, place: Path) -> None:
    with pytest.raises(Precondition, match=rf"connection {daemon.mounted['connection']}\) and is alive"):
        mount(str(place))
    assert place.stat().st_ino == 1


def test_a_daemon_that_hangs_is_found_out_and_can_be_aborted(
    start: Start, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = start()
    assert place.stat().st_ino == 1
    assert daemon.tell("mute") == {"mute": True}
    monkeypatch.setattr(module, "PROBE_DEADLINE", 0.3)
    with pytest.raises(Precondition, match="does not answer"):
        mount(str(place))

    looker = Looker(place)
    connection = daemon.mounted["connection"]
    abort(Mount(str(place), -1, connection, by_us=True, created=False, replaced=0))
    # ECONNABORTED for what was waiting, ENOTCONN for what comes later.
    assert looker.error() in (errno.ECONNABORTED, errno.ENOTCONN)
    assert daemon.tell("unmount 2") == {"outcome": "clean"}


def test_who_has_the_number_of_what_has_ended_is_not_aborted(tmp_path: Path) -> None:
    """The kernel gives the number of a connection anew: what we keep of an old one must not harm its next owner."""
    for attempt in range(20):  # somebody else may mount something between the two
        old = mount(str(tmp_path / f"old {attempt}"))
        subprocess.run(["umount", "-l", old.path], check=True, timeout=60)
        new = mount(str(tmp_path / f"new {attempt}"))
        abort_device(old.fd)
        alive = select.poll()
        alive.register(new.fd, 0)
        events = alive.poll(0)
        subprocess.run(["umount", "-l", new.path], check=True, timeout=60)
        os.close(old.fd)
        os.close(new.fd)
        assert events == []
        if old.connection == new.connection:
            return
    raise AssertionError("the number was never given anew")


def test_the_kernel_takes_our_notifications(daemon: Daemon, place: Path) -> None:
    assert place.stat().st_ino == 1
    heard = daemon.tell("notify")
    minor = heard.pop("minor")
    epoch = heard.pop("epoch")
    assert heard == {"inode": "done", "entry": "done", "delete": "done"}
    if minor >= INC_EPOCH_MINOR_VERSION:
        assert epoch == "done"
    else:
        assert "INC_EPOCH: Invalid argument" in epoch
    assert daemon.tell("unmount 2") == {"outcome": "clean"}


def test_somebody_else_may_take_the_mount_off(daemon: Daemon, place: Path) -> None:
    assert place.stat().st_ino == 1
    subprocess.run(["umount", str(place)], check=True, timeout=60)
    assert daemon.tell("ended") == {"ended": "None"}
    assert daemon.tell("unmount 2") == {"outcome": "gone"}
    assert daemon.tell("quit") == {"notifier": True}
    assert daemon.finish() == 0


def test_an_invalidation_that_meets_a_lock_hangs_alone(start: Start, place: Path) -> None:
    daemon = start()
    looker = Looker(place / "stuck")
    heard = daemon.tell("deadlock")
    assert "waits for a lock" in heard["sent"]
    assert heard["closed"] is False
    assert heard["closed after abort"] is True
    assert looker.error() == errno.ECONNABORTED


@pytest.mark.skipif(not FUSERMOUNT, reason="fusermount3 is not installed")
def test_a_user_without_privileges_mounts_and_unmounts() -> None:
    nobody = 65534
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        device = os.path.join(directory, "fuse")
        os.mknod(device, 0o600 | stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
        os.chmod(device, 0o666)
        place = Path(os.path.realpath(directory)) / "theirs"
        place.mkdir()
        os.chown(place, nobody, nobody)
        # /dev/fuse is root's alone on some machines. It is opened to everybody in a mount namespace of the daemon's own.
        script = f'mount --bind {shlex.quote(device)} /dev/fuse && exec "$@"'
        private = ("unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh")
        daemon = Daemon(place, "fusermount", str(nobody), within=private)
        try:
            assert daemon.mounted["created"] is False
            # Not seen from here, and closed even to root: allow_other was not asked for.
            assert topmost(str(place)) is None
            inside = Path(f"/proc/{daemon.pid}/root") / place.relative_to("/")
            with pytest.raises(PermissionError):
                (inside / "missing").stat()
            assert daemon.tell("unmount 2") == {"outcome": "clean"}
            assert daemon.tell("quit") == {"notifier": True}
            assert daemon.finish() == 0
        finally:
            daemon.end()
