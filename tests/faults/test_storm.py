"""A storm of faults under the whole system: every read gives the right bytes or a documented errno in bounded time, every upload
that was acknowledged is in the remote, and afterwards all is as if nothing had been. Real daemon, real mount.

OUTPUTD_NIGHTLY=1 makes it ten minutes instead of seconds, and another one each time; OUTPUTD_STORM_SEED repeats one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from outputd.digest import Digest
from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.e2e.test_bad_remote import World, world
from tests.e2e.test_waiting import stuck
from tests.faults.server import STORM, Plan, weather
from tests.rev2_tree import Rev2Tree
from tests.service_client import SHA256, BuildClient, Cas

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

NIGHTLY: Final = os.environ.get("OUTPUTD_NIGHTLY") == "1"
SECONDS: Final = 600.0 if NIGHTLY else 10.0
READERS: Final = 16
TIMEOUT: Final = 1.0
READ_TIMEOUT: Final = 3.0
BOUND: Final = 2 * READ_TIMEOUT + 14.0
"""Seconds for one read: open(2) and read(2) may each wait. The rest is for a machine that stands still for a while."""
DOCUMENTED: Final = {
    errno.EIO,
    errno.EREMOTEIO,
    errno.ETIMEDOUT,
    errno.EBUSY,
    errno.EKEYREJECTED,
    errno.ENODATA,
}
"""docs/how-to/when-a-read-fails.md"""
CODES: Final = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.NOT_FOUND,
}
COMPLAINTS: Final = (
    r"[A-Z]+ of /outputs/\S+ for process \d+ failed with E(IO|REMOTEIO|TIMEDOUT|BUSY|KEYREJECTED|NODATA)"
    r"|was given up, it has not answered since|a directory cannot be shown any more"
)


class Storm:
    """What was staged, what was uploaded, and what came of reading and uploading."""

    def __init__(self, here: World, seed: int) -> None:
        self.here = here
        self.random = random.Random(seed)
        self.files: dict[Path, bytes] = {}
        self.outcomes: Counter[str] = Counter()
        self.longest = 0.0
        self.acknowledged: list[bytes] = []

    def stage(self, count: int, name: str) -> None:
        sizes = [self.random.choice((50, 3_000, 20_000)) for _ in range(count)]
        sizes += [self.random.randrange(300_000, 900_000) for _ in range(count // 10)]
        blobs = {f"{name}/{n % 7}/{n}": self.random.randbytes(size) for n, size in enumerate(sizes)}
        self.here.build.stage({path: self.here.remote.add(data) for path, data in blobs.items()})
        self.files |= {self.here.top / path: data for path, data in blobs.items()}
        for number in range(count // 20):
            content = b"%s %d" % (name.encode(), number) * 20
            tree = Rev2Tree({"sub": {"file": content}})
            for blob in (tree.message, *tree.files):
                self.here.remote.add(blob)
            path = f"{name}/tree{number}"
            self.here.build.stage({path: rev2.TreeArtifactLocator(tree_digest=tree.digest)})
            self.files[self.here.top / path / "sub/file"] = content

    def read(self, path: Path) -> int:
        """The errno, 0 for the right bytes."""
        began = time.monotonic()
        number = 0
        try:
            assert path.read_bytes() == self.files[path], f"{path}: WRONG BYTES"
        except OSError as error:
            assert error.errno in DOCUMENTED, f"{path}: {error}"
            number = error.errno
        took = time.monotonic() - began
        self.longest = max(self.longest, took)
        assert took < BOUND, f"{path}: {took:.1f} s"
        self.outcomes[errno.errorcode.get(number, "right")] += 1
        return number

    def read_on(self, until: float, seed: int) -> None:
        chance = random.Random(seed)
        paths = list(self.files)
        while time.monotonic() < until:
            if self.read(chance.choice(paths)):
                time.sleep(0.02)  # or most of what the storm sees are refusals by a server that was given up

    def upload_on(self, until: float, seed: int) -> None:
        chance = random.Random(seed)
        with daemon_fixture.connected(self.here.daemon) as channel:
            cas = Cas(channel)
            while time.monotonic() < until:
                blobs = [chance.randbytes(chance.choice((100, 5_000))) for _ in range(20)]
                blobs += [chance.randbytes(3 << 20)] if chance.random() < 0.2 else []
                try:
                    cas.put_all(blobs)
                except grpc.RpcError as error:
                    assert error.code() in CODES, error
                    time.sleep(0.02)
                    self.outcomes[f"upload {error.code().name}"] += 1
                except AssertionError as refused:  # some of a batch
                    assert "the CAS did not take" in str(refused), refused
                    self.outcomes["upload refused in part"] += 1
                else:
                    self.acknowledged += blobs
                    self.outcomes["upload"] += 1

    def build_on(self, until: float) -> None:
        """Builds of another output base begin and end."""
        with daemon_fixture.connected(self.here.daemon) as channel:
            build = BuildClient(channel, self.here.daemon.outputs, "other")
            some = {f"f{n}": self.here.remote.add(b"other %d" % n) for n in range(50)}
            while time.monotonic() < until:
                try:
                    build.start()
                    build.stage(some)
                    build.finish()
                    self.outcomes["build"] += 1
                except grpc.RpcError as error:
                    assert error.code() in CODES, error
                    self.outcomes[f"build {error.code().name}"] += 1


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def held_by(daemon: Daemon) -> list[str]:
    """What it has open, and its working directory."""
    place = f"/proc/{daemon.pid}"
    held = [os.readlink(f"{place}/cwd")]
    for number in os.listdir(f"{place}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            held.append(os.readlink(f"{place}/fd/{number}"))
    return held


def resident(daemon: Daemon) -> int:
    """MiB in memory."""
    with open(f"/proc/{daemon.pid}/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


@pytest.mark.timeout(SECONDS + 300)
def test_a_storm() -> None:
    seed = int(os.environ.get("OUTPUTD_STORM_SEED", time.time_ns() & 0xFFFF if NIGHTLY else 7))
    print(f"OUTPUTD_STORM_SEED={seed}")
    settings = {
        "outputs__read_timeout": str(READ_TIMEOUT),
        "remote__timeout": str(TIMEOUT),
        "remote__retry_seconds": str(TIMEOUT),
    }
    with world(**settings) as here:
        storm = Storm(here, seed)
        storm.stage(40, "before")
        for path in storm.files:
            assert storm.read(path) == 0
        before = descriptors(here.daemon), resident(here.daemon)
        storm.stage(12_000 if NIGHTLY else 900, "during")

        here.daemon.expects(COMPLAINTS)
        here.remote.fake.plan = plan = Plan(STORM, seed)
        until = time.monotonic() + SECONDS
        with weather(here.relay, seed, longest=TIMEOUT), ThreadPoolExecutor(READERS + 2) as threads:
            work = [threads.submit(storm.read_on, until, seed + n) for n in range(READERS)]
            work += [threads.submit(storm.upload_on, until, seed), threads.submit(storm.build_on, until)]
            for job in work:
                job.result()
        print(f"{dict(storm.outcomes)}, longest read {storm.longest:.1f} s, rules {sorted(plan.struck)}")

        here.remote.fake.plan = None
        here.remote.heal()
        fresh = here.stage("fresh", b"fresh")
        here.relay.cut()
        storm.files[fresh] = b"fresh"
        # The line of who was refused, not the one that tells of it: an outage of the storm may have been given up, too.
        refused = r"READ of /outputs/base/fresh .* was given up, it has not answered"
        assert eventually(
            lambda: storm.read(fresh) != 0 and re.search(refused, here.daemon.words()) is not None, 60
        )
        here.relay.mend()
        # The first call may still find a connection that the weather broke, and a server that was given up is probed at times.
        assert eventually(lambda: storm.read(fresh) == 0, 30), "the remote is well again, and nobody noticed"
        with ThreadPoolExecutor(READERS) as threads:
            assert set(threads.map(storm.read, storm.files)) == {0}
        for data in storm.acknowledged:
            assert Digest.of(SHA256, data) in here.remote.fake.blobs, "acknowledged, and not in the remote"
        nothing: Any = {"kernel_requests": [], "calls": [], "fetches": []}
        assert eventually(lambda: stuck(here.daemon, "--older-than", "0") == nothing, 60)
        after = descriptors(here.daemon), resident(here.daemon)
        print(f"descriptors {before[0]} -> {after[0]}, MiB {before[1]} -> {after[1]}")
        # Who serves a mount must never need it.
        assert not [path for path in held_by(here.daemon) if path.startswith(str(here.daemon.mount))]
        # Reading opens nothing for longer than a file is open; a probe's connection may still be there.
        assert after[0] <= before[0] + 10
        assert after[1] <= before[1] + (100 if NIGHTLY else 60)
        here.check_healthy()
