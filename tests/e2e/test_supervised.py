"""Under a supervisor that keeps the device, as systemd does: what goes on after a SIGKILL, and what the supervisor is told."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.remote_thread import RemoteThread
from tests.service_client import BuildClient, Cas
from tests.unit.store.fake_remote import Fault

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

_AS_LISTENER = """
import os, sys
number, name, *command = sys.argv[1:]
if number:
    os.dup2(int(number), 3)
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": name}
os.execv(command[0], command)
"""


class Supervised(Daemon):
    """A daemon, and around it what systemd does for it."""

    def __init__(self, place: Path, *options: str) -> None:
        super().__init__(place, *options)
        self._inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._inbox.bind(str(place / "notify"))
        self._inbox.setblocking(False)
        self.stored: dict[str, int] = {}
        self.told: list[str] = []
        self.watchdog = 60_000_000

    def environment(self) -> dict[str, str]:
        return super().environment() | {
            "NOTIFY_SOCKET": str(self.place / "notify"),
            "WATCHDOG_USEC": str(self.watchdog),
        }

    def begin(self) -> None:
        """With what is stored as descriptors 3 and up."""
        self.listen()
        name, fd = next(iter(self.stored.items()), ("", ""))
        command = [sys.executable, "-c", _AS_LISTENER, str(fd), name, *self.arguments()]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.place,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=tuple(self.stored.values()),
            )

    def listen(self) -> None:
        """Take in what was told by now."""
        with contextlib.suppress(BlockingIOError):
            while True:
                message, fds, _, _ = socket.recv_fds(self._inbox, 4096, 4)
                lines = message.decode().splitlines()
                said = dict(line.split("=", 1) for line in lines)
                name = said.get("FDNAME", "")
                if "FDSTORE" in said:
                    (self.stored[name],) = fds
                    os.set_inheritable(self.stored[name], False)
                if "FDSTOREREMOVE" in said and name in self.stored:
                    os.close(self.stored.pop(name))
                self.told += lines

    def hears(self, line: str, seconds: float = 30.0) -> None:
        """Wait until it was told, after what was heard before."""
        end = time.monotonic() + seconds
        while True:
            self.listen()
            if line in self.told:
                del self.told[: self.told.index(line) + 1]
                return
            assert time.monotonic() < end, f"{line} was not told:\n{self.words()}"
            time.sleep(0.02)

    def end(self) -> None:
        super().end()
        self.listen()
        for fd in self.stored.values():
            os.close(fd)
        self._inbox.close()


@contextlib.contextmanager
def supervised(*options: str) -> Iterator[Supervised]:
    with tempfile.TemporaryDirectory(prefix="outputd-test-") as directory:
        daemon = Supervised(Path(os.path.realpath(directory)), *options)
        try:
            yield daemon
            if daemon._process is not None:
                daemon.stop()
            daemon.check_complaints()
        except BaseException:
            print(f"the daemon's log:\n{daemon.words()}")
            raise
        finally:
            daemon.end()


def crash(daemon: Supervised) -> None:
    daemon.listen()
    daemon.kill()
    daemon.expects("going on with the mount at .*, whose last process was killed")
    daemon.start()


def test_a_supervisor_is_told() -> None:
    with supervised() as daemon:
        daemon.watchdog = 200_000
        daemon.start()
        daemon.hears("FDNAME=outputd-fuse")
        daemon.hears("READY=1")
        daemon.hears("WATCHDOG=1")
        daemon.hears("WATCHDOG=1")
        daemon.send(signal.SIGHUP)
        daemon.hears("RELOADING=1")
        daemon.hears("READY=1")
        daemon.hears("WATCHDOG=1")
        assert list(daemon.stored) == ["outputd-fuse"]
        daemon.stop()
        daemon.hears("STOPPING=1")
        assert daemon.stored == {}


def test_what_is_open_goes_on_after_a_kill() -> None:
    with supervised() as daemon, contextlib.ExitStack() as opened:
        daemon.start()
        channel = opened.enter_context(daemon_fixture.connected(daemon))
        build, cas, top = BuildClient(channel, daemon.outputs), Cas(channel), daemon.outputs / "base"
        build.start()
        big = os.urandom(1 << 20)
        build.stage({"small": cas.put(b"0123456789"), "big": cas.put(big), "d/e/f": cas.put(b"deep")})
        build.stage({"bash": cas.put(Path("/bin/bash").read_bytes())})
        small = opened.enter_context(open(top / "small", "rb", buffering=0))
        large = opened.enter_context(open(top / "big", "rb", buffering=0))
        mapped = mmap.mmap(large.fileno(), 0, prot=mmap.PROT_READ)
        opened.callback(mapped.close)
        written = opened.enter_context(open(top / "written", "w+b", buffering=0))
        written.write(b"0 ")
        unlinked = opened.enter_context(open(top / "unlinked", "w+b", buffering=0))
        unlinked.write(b"gone")
        os.unlink(top / "unlinked")
        shell = subprocess.Popen(
            [top / "bash"], cwd=top / "d" / "e", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert shell.stdin is not None and shell.stdout is not None
        shell.stdin.write("echo up\n")
        shell.stdin.flush()
        assert shell.stdout.readline() == "up\n"
        inode = os.fstat(small.fileno()).st_ino
        # The kernel learns here that FLUSH is not needed: else each process that we start from now on, and so the next daemon,
        # would flush the files that it inherits and closes, and wait for the daemon.
        (top / "small").read_bytes()

        for number in range(1, 3):
            if number == 1:
                daemon.expects("inode .* was open and cannot be found again", "of unknown inode")
            crash(daemon)
            assert small.read(1) == str(number - 1).encode()
            assert os.fstat(small.fileno()).st_ino == os.stat(top / "small").st_ino == inode
            assert os.pread(large.fileno(), 10, 70000 * number) == big[70000 * number :][:10]
            assert mapped[-number * 70000 :][:5] == big[-number * 70000 :][:5]
            assert (top / "big").read_bytes() == big
            written.write(b"%d " % number)
            build.stage({f"staged {number}": cas.put(b"x")})  # the build goes on, and the kernel sees it
            assert (top / f"staged {number}").read_bytes() == b"x"
        with pytest.raises(OSError):
            os.fstat(unlinked.fileno())
        said, _ = shell.communicate(f"cat f; echo; {top}/bash -c 'echo again'; ls; cd ..; ls\n", timeout=60)
        assert said == "deep\nagain\nf\ne\n"
        shell.wait(10)
        mapped.close()
        written.close()
        assert (top / "written").read_bytes() == b"0 1 2 "
        assert build.digests("written") == [cas.put(b"0 1 2 ")]


def test_who_waited_at_the_kill_is_answered() -> None:
    with (
        supervised() as daemon,
        RemoteThread(daemon.place / "remote") as remote,
        ThreadPoolExecutor(2) as readers,
    ):
        daemon.options = ["--remote", remote.url]
        daemon.start()
        with daemon_fixture.connected(daemon) as channel:
            build, top = BuildClient(channel, daemon.outputs), daemon.outputs / "base"
            build.start()
            build.stage({"late": remote.add(b"late content"), "other": remote.add(b"")})
            (top / "other").read_bytes()
            remote.fail("BatchReadBlobs", *[Fault(hang=True)] * 100)
            remote.fail("Read", *[Fault(hang=True)] * 100)
            reader = readers.submit((top / "late").read_bytes)
            remote.called("BatchReadBlobs")
            remote.heal()
            daemon.listen()
            daemon.kill()
            asked = readers.submit(os.listdir, top)
            time.sleep(0.3)
            assert not asked.done()  # who asks while nobody serves waits for the next
            daemon.expects("going on with the mount at .*, whose last process was killed")
            daemon.start()
            assert reader.result(20) == b"late content"
            assert sorted(asked.result(20)) == ["late", "other"]


def test_a_device_of_no_use_is_given_up() -> None:
    with supervised() as daemon:
        daemon.start()
        daemon.listen()
        daemon.kill()
        (daemon.state / "mount").unlink()
        daemon.expects("the device that was kept cannot be used", "took off 1 mounts of dead daemons")
        daemon.start()
        assert os.listdir(daemon.outputs) == []
        daemon.hears("READY=1")
        assert list(daemon.stored) == ["outputd-fuse"]  # the new one

        # Another mount was put in its place meanwhile.
        daemon.kill()
        subprocess.run(["umount", "-l", daemon.mount], check=True, timeout=60)
        daemon.expects("the device that was kept cannot be used: .* shows nothing")
        daemon.start()
        assert os.listdir(daemon.outputs) == []
