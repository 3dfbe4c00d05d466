"""One build after the other on a daemon, and what the daemon holds after each; as a program it shows the curve.

`python -m tests.crash.soak SECONDS` runs it and prints a line for every minute.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import grpc

from tests.daemon_fixture import Daemon, connected, running
from tests.service_client import BuildClient, Cas, digest_of

_BLOBS: Final = [b"soak %d " % number * 20 for number in range(500)]
_LOCAL: Final = 50
_REST_SECONDS: Final = 20.0


class Held(NamedTuple):
    """What a daemon holds while nothing goes on."""

    seconds: float
    """Since the beginning."""
    builds: int
    resident: int
    """Bytes (VmRSS)."""
    descriptors: int
    threads: int
    journals: int
    private: int
    """Files in the cache directory that are no blobs."""
    database: int
    """Bytes of state.db, without its log."""


JOURNALS = 3
"""One for each of the two output bases, and one for scratch."""


_FEWEST: Final = 18
"""Builds: a slow machine is given longer, or the curve would tell nothing."""


def soak(daemon: Daemon, seconds: float, *, files: int = 10_000) -> Iterator[Held]:
    """Builds on two output bases for so long, `files` staged in each."""
    begin = time.monotonic()
    builds = 0
    with connected(daemon) as channel:
        Cas(channel).put_all(_BLOBS)
        while time.monotonic() - begin < seconds or builds < _FEWEST:
            for base in ("one", "two"):
                _build(channel, daemon, base, builds, files)
                builds += 1
            yield _held(daemon, time.monotonic() - begin, builds)


def _build(channel: grpc.Channel, daemon: Daemon, base: str, number: int, files: int) -> None:
    build = BuildClient(channel, daemon.outputs, base)
    top = daemon.outputs / base
    build.start()
    build.stage({f"d{at % 100}/f{at}": digest_of(_BLOBS[(at + number) % len(_BLOBS)]) for at in range(files)})
    local = top / "local"
    local.mkdir(exist_ok=True)
    for at in range(_LOCAL):
        (local / f"new{at}").write_bytes(b"local %d %d " % (number % 10, at) * 100)
        os.replace(local / f"new{at}", local / f"file{at}")
    with (top / "d0" / "f0").open("ab") as file:
        file.write(b"appended")
    for at in range(0, files, max(1, files // 100)):
        assert (top / f"d{at % 100}" / f"f{at}").read_bytes().startswith(_BLOBS[(at + number) % len(_BLOBS)])
    assert sum(len(names) for _, _, names in os.walk(top)) == files + _LOCAL
    build.digests(*(f"local/file{at}" for at in range(_LOCAL)))
    build.finish()
    if number % 7 == 6:
        build.clean()


def _held(daemon: Daemon, seconds: float, builds: int) -> Held:
    """Once the checkpoints are made and everything closed is a blob."""
    end = time.monotonic() + _REST_SECONDS
    while len(os.listdir(daemon.state / "journals")) > JOURNALS or daemon.private_files():
        if time.monotonic() > end:
            break  # the numbers tell
        time.sleep(0.05)
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return Held(
        seconds,
        builds,
        _number(status, "VmRSS") * 1024,
        len(os.listdir(f"/proc/{daemon.pid}/fd")),
        _number(status, "Threads"),
        len(os.listdir(daemon.state / "journals")),
        len(daemon.private_files()),
        (daemon.state / "state.db").stat().st_size,
    )


def _number(status: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)
    assert found is not None
    return int(found[1])


def main() -> None:
    shown = -60.0
    with running() as daemon:
        for held in soak(daemon, float(sys.argv[1])):
            if held.seconds - shown >= 60:
                shown = held.seconds
                print(
                    f"{held.seconds:6.0f} s {held.builds:6} builds {held.resident / 1e6:7.1f} MB {held.descriptors:4} fds"
                    f" {held.threads:3} threads {held.journals:3} journals {held.private:3} private"
                    f" {held.database / 1e6:7.1f} MB state.db",
                    flush=True,
                )


if __name__ == "__main__":
    main()
