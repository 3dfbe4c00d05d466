"""A real `outputd serve` for a test: started on directories of its own, stopped, killed, started again on the same ones.

Every WARNING or ERROR in its log must have been announced by the test (`expects`), and every announced one must have come: a
daemon that complains unasked has a fault, and so has a test that waits for a complaint in vain. What may come or not, as a race
goes, is told with `allows`. Never reads inside the mount.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import grpc

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 60.0
_PAUSE: Final = 0.02
_COMPLAINT: Final = re.compile(r"^\S+Z (WARNING|ERROR|CRITICAL) |^Traceback |^outputd: ")
_REPOSITORY: Final = Path(__file__).resolve().parents[1]

CHANNEL_OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    # A daemon that was started again is to be found at once, not after gRPC's second of patience.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)
"""Requests of any size; replies only as large as Bazel takes them (4 MiB, gRPC's default)."""


class Daemon:
    """One set of directories and the daemon that runs on them, if it does."""

    def __init__(
        self,
        place: Path,
        *options: str,
        settings: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> None:
        """`options` follow `outputd serve`; `settings` go by environment, named `section.key`; `within` is a command that runs
        the daemon as its own process, by exec."""
        self.place: Final = place
        self.log: Final = place / "log"
        # All of these may be changed while it does not run.
        self.mount = place / "mount"
        self.socket = place / "socket"
        self.state = place / "state"
        self.cache = place / "cache"
        self.options = list(options)
        self.settings: Final = dict(settings or {})
        self.within: Final = tuple(within)
        self._expected: list[str] = []
        self._allowed: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def target(self) -> str:
        """Its address."""
        return f"unix:{self.socket}"

    @property
    def outputs(self) -> Path:
        """The directory that output paths are in."""
        return self.mount / "outputs"

    def private_files(self) -> list[Path]:
        """What local actions have written and is no blob."""
        return [path for path in (self.cache / "private").glob("*/*") if path.is_file()]

    def arguments(self) -> list[str]:
        """The command line."""
        return [
            *self.within,
            # What Python would warn of goes to the log, and so fails the test.
            *(sys.executable, "-W", "default", "-m", "outputd.cli.main", "serve"),
            *("--mount", str(self.mount), "--listen", self.target),
            *("--state-dir", str(self.state), "--cache-dir", str(self.cache), *self.options),
        ]

    def environment(self) -> dict[str, str]:
        """Ours, without the settings of whoever runs the tests."""
        environ = {name: text for name, text in os.environ.items() if not name.startswith("OUTPUTD_")}
        environ |= {f"OUTPUTD_{key}".replace(".", "_").upper(): text for key, text in self.settings.items()}
        environ["NETRC"] = str(self.place / "netrc")
        return environ | {"XDG_CONFIG_HOME": str(self.place), "PYTHONPATH": str(_REPOSITORY / "src")}

    # life

    def start(self) -> None:
        """Return when it listens, which it does last."""
        self.begin()
        process = self._running()
        end = time.monotonic() + START_SECONDS
        while not self._listening():
            if process.poll() is not None:
                raise AssertionError(f"the daemon ended with {process.returncode}:\n{self.words()}")
            assert time.monotonic() < end, f"no daemon listens after {START_SECONDS} s:\n{self.words()}"
            time.sleep(_PAUSE)

    def begin(self) -> None:
        """Start it and do not wait."""
        assert self._process is None, "it runs already"
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                self.arguments(),
                cwd=self.place,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def refuses(self) -> str:
        """Start it and see it fail, with exit code 1 and one complaint, which is announced with this; returns it."""
        before = self.words()
        self.begin()
        code = self.wait()
        said = self.words().removeprefix(before).splitlines()
        complaints = [line for line in said if _COMPLAINT.match(line)]
        assert (code, len(complaints)) == (1, 1), f"exit code {code}, and it said:\n{said}"
        self.expects(re.escape(complaints[0]))
        return complaints[0]

    def send(self, number: signal.Signals) -> None:
        self._running().send_signal(number)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Its exit code, once it has ended by itself."""
        try:
            code = self._running().wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon still runs after {seconds} s:\n{self.words()}") from None
        self._process = None
        return code

    def stop(self) -> None:
        """In order, with exit code 0."""
        self.send(signal.SIGTERM)
        code = self.wait()
        assert code == 0, f"the daemon ended with {code}:\n{self.words()}"

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def restart(self) -> None:
        """Stop it in order and start it again."""
        self.stop()
        self.start()

    # what it says

    def expects(self, *patterns: str) -> None:
        """These complaints (regular expressions) are part of the test: each will have come by its end."""
        self._expected += patterns

    def allows(self, *patterns: str) -> None:
        """These complaints may come: whether they do is decided by what else goes on at that moment."""
        self._allowed += patterns

    def words(self) -> str:
        """The log, of all runs."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def logged(self, pattern: str, seconds: float = 30.0) -> str:
        """The first line that matches; waits for it."""
        end = time.monotonic() + seconds
        while (found := re.search(rf"^.*{pattern}.*$", self.words(), re.MULTILINE)) is None:
            assert time.monotonic() < end, f"nothing in the log matches {pattern!r}:\n{self.words()}"
            time.sleep(_PAUSE)
        return found[0]

    def check_complaints(self) -> None:
        """Every complaint was announced, and every announced one came."""
        complaints = [line for line in self.words().splitlines() if _COMPLAINT.match(line)]
        for line in complaints:
            announced = any(re.search(pattern, line) for pattern in self._expected + self._allowed)
            assert announced, f"the log has what no test announced: {line}"
        for pattern in self._expected:
            came = any(re.search(pattern, line) for line in complaints)
            assert came, f"the log has no complaint like {pattern!r}"

    # the end

    def end(self) -> None:
        """Leave nothing behind, whatever state things are in."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
            self._process = None
        while os.fsencode(self.mount) in _mount_points():
            subprocess.run(["umount", "-l", str(self.mount)], check=True, timeout=10)

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it does not run"
        return self._process

    def _listening(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0


def _mount_points() -> set[bytes]:
    with open("/proc/self/mountinfo", "rb") as file:
        return {line.split(b" ")[4] for line in file}


@contextmanager
def directories(
    *options: str, settings: Mapping[str, str] | None = None, within: Sequence[str] = ()
) -> Iterator[Daemon]:
    """Directories for a daemon that is not started yet. At the end it is stopped, if it runs, and its log is looked through."""
    # pytest's own directories have paths that may be too long for a socket (unix(7): 107 bytes).
    with tempfile.TemporaryDirectory(prefix="outputd-test-") as place:
        daemon = Daemon(Path(os.path.realpath(place)), *options, settings=settings, within=within)
        try:
            yield daemon
            if daemon._process is not None:
                daemon.stop()
            daemon.check_complaints()
        except BaseException:
            print(f"the daemon's log:\n{daemon.words()}")  # pytest shows it with the failure
            raise
        finally:
            daemon.end()


@contextmanager
def running(
    *options: str, settings: Mapping[str, str] | None = None, within: Sequence[str] = ()
) -> Iterator[Daemon]:
    """The same, started."""
    with directories(*options, settings=settings, within=within) as daemon:
        daemon.start()
        yield daemon


@contextmanager
def connected(daemon: Daemon) -> Iterator[grpc.Channel]:
    """A channel to it, which outlives its restarts."""
    with grpc.insecure_channel(daemon.target, options=CHANNEL_OPTIONS) as channel:
        yield channel
