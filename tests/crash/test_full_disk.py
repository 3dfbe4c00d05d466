"""A full or broken disk takes nothing away: what adds something is refused in so many words, and reading goes on.

What a full disk still allows is kept over a SIGKILL; so is all that was acknowledged before a disk became read-only.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from tests.crash.expected import DIRECTORY, FILE, Expected, Thing
from tests.crash.small_disk import fill, fragile_disk, needs_root, small_disk
from tests.daemon_fixture import Daemon, connected, directories
from tests.service_client import BuildClient, Cas, digest_of

SIZE = 24 << 20
CONTENTS = [b"%d " % number * 50 for number in range(200)]

JOURNAL_FULL = "nothing can be added to the output path: journal .*: No space left on device; [0-9]+ bytes"
NO_CHECKPOINT = r"output base \S+ has no new checkpoint, only its journal: .*(No space left|is full)"
STATE_FULL = "cannot reserve volume numbers, the next save does it: .*state.db: database or disk is full"
KEPT = "state/mount: open files would not survive a crash: No space left on device"
FULL = "No space left on device|database or disk is full|nothing that may go is left|nothing goes that is only here"
DEAD = "took off 1 mounts of dead daemons"


class Work:
    """A build on a disk that becomes full, and what was acknowledged."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.top = daemon.outputs / "base"
        self.expected = Expected()
        self._serial = 0

    def begin(self) -> None:
        with self.client() as (build, cas):
            build.start("b1")
            cas.put_all(CONTENTS)
            files = {f"staged/{number}": data for number, data in enumerate(CONTENTS)}
            build.stage({path: digest_of(data) for path, data in files.items()})
            for path, data in files.items():
                self.expected.stage(path, data)
        for number in range(20):
            self.write(f"local{number}")

    @contextmanager
    def client(self) -> Iterator[tuple[BuildClient, Cas]]:
        """For the build that runs."""
        with connected(self._daemon) as channel:
            build = BuildClient(channel, self._daemon.outputs)
            build.build_id = "b1"
            yield build, Cas(channel)

    def write(self, name: str) -> None:
        data = name.encode() * 500
        fd = os.open(self.top / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self.expected.enter(name, Thing(FILE, 0o644))
        try:
            os.write(fd, data)
            self.expected.things[name].content = data
        finally:
            os.close(fd)

    def make_directories(self, limit: int) -> int:
        """How many there was room for in the journal."""
        for count in range(limit):
            self._serial += 1
            name = f"directory with a longish name {self._serial}"
            try:
                (self.top / name).mkdir()
            except OSError as error:
                assert error.errno == errno.ENOSPC
                return count
            self.expected.enter(name, Thing(DIRECTORY, 0o755))
        return limit

    def change_without_adding(self) -> None:
        for name in [name for name in self.expected.things if name.startswith("staged/")][:20]:
            (self.top / name).unlink()
            self.expected.remove(name)
        one, other, third = [name for name in self.expected.things if name.startswith("local")][:3]
        (self.top / one).rename(self.top / other)
        self.expected.move(one, other)
        (self.top / third).chmod(0o600)
        self.expected.things[third].mode = 0o600

    def make_directories_until_read_only(self) -> None:
        """As far as the journal was allocated ahead."""
        with pytest.raises(AssertionError, match=f"{errno.EROFS}"):
            self.make_directories(5000)

    def stage_refused(self, code: grpc.StatusCode = grpc.StatusCode.RESOURCE_EXHAUSTED) -> str:
        """The message with which an artifact is refused."""
        with self.client() as (build, _):
            (status,) = build.try_stage({"too/late": digest_of(CONTENTS[0])})
        assert status.code == code.value[0]
        return status.message

    def survives_kills(self) -> None:
        for _ in range(2):
            self._daemon.kill()
            self._daemon.start()
            self.check()

    def check(self) -> None:
        assert not self.expected.differences(self.top)


@contextmanager
def _on_small_disk(*names: str) -> Iterator[tuple[Daemon, Work, Path]]:
    """A daemon with its `state`, its `cache` or both on one small disk, what was done with it, and the disk."""
    with directories() as daemon, small_disk(daemon.place / "small", SIZE) as disk:
        for name in names:
            setattr(daemon, name, disk / name)
        daemon.start()
        try:
            work = Work(daemon)
            work.begin()
            yield daemon, work, disk
            daemon.stop()
        finally:
            daemon.end()


def _refused(call: Callable[[], object], number: int = errno.ENOSPC) -> None:
    with pytest.raises(OSError) as refusal:
        call()
    assert refusal.value.errno == number


@needs_root
def test_a_full_state_directory_refuses_what_adds_something() -> None:
    with _on_small_disk("state") as (daemon, work, disk):
        daemon.expects(JOURNAL_FULL, NO_CHECKPOINT, STATE_FULL, DEAD, KEPT)
        filler = fill(disk)
        assert work.make_directories(5000) < 5000
        message = work.stage_refused()
        assert "journal" in message and "bytes and" in message and "are left" in message
        work.change_without_adding()
        with work.client() as (build, _):
            build.finish()  # its checkpoint fails, and takes nothing away
            daemon.logged(NO_CHECKPOINT)
            build.start("b1")
        work.change_without_adding()
        work.survives_kills()
        work.stage_refused()
        filler.unlink()
        time.sleep(1.1)  # a journal asks the disk once a second
        assert work.make_directories(50) == 50
        work.write("there is room again")
        with work.client() as (build, _):
            build.stage({"not/late": digest_of(CONTENTS[1])})
        work.expected.stage("not/late", CONTENTS[1])
        work.survives_kills()


@needs_root
@pytest.mark.parametrize("names", (("cache",), ("state", "cache")))
def test_a_full_cache_directory_refuses_bytes(names: tuple[str, ...]) -> None:
    with _on_small_disk(*names) as (daemon, work, disk):
        daemon.expects(DEAD, "failed with ENOSPC.*: .*private/\\w+: No space left on device", FULL)
        filler = fill(disk)
        _refused(lambda: work.write("written when it was full"))
        for _ in range(20):  # and the log is told once
            _refused(lambda: (work.top / "staged/5").open("ab").close())
        assert len([line for line in daemon.words().splitlines() if "failed with ENOSPC" in line]) == 1
        with work.client() as (_, cas):
            with pytest.raises(AssertionError, match=r"bytes and .* files are left on the file system of"):
                cas.put(b"a blob too many" * 1000)
            with pytest.raises(grpc.RpcError) as refusal:
                cas.put(b"streamed" * 1_000_000)
        assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        work.change_without_adding()
        work.check()
        work.survives_kills()
        filler.unlink()
        work.write("there is room again")
        work.survives_kills()


@needs_root
@pytest.mark.parametrize("name", ("state", "cache"))
def test_a_disk_that_becomes_read_only_is_read_on(name: str) -> None:
    with (
        directories() as daemon,
        fragile_disk(daemon.place / "small", daemon.place / "image", 64 << 20) as break_disk,
    ):
        setattr(daemon, name, daemon.place / "small" / name)
        daemon.expects("Read-only file system|disk I/O error")
        daemon.start()
        try:
            work = Work(daemon)
            work.begin()
            time.sleep(1)  # until what was closed has become blobs
            break_disk()
            if name == "state":
                daemon.expects("what was loaded lately will have to be loaded again: .*state.db")
                work.make_directories_until_read_only()
                _refused(lambda: (work.top / "one more").mkdir(), errno.EROFS)
                assert work.stage_refused(grpc.StatusCode.UNAVAILABLE).endswith("Read-only file system")
            else:
                _refused(lambda: work.write("written"), errno.EIO)
                work.expected.remove("written")
                with work.client() as (_, cas), pytest.raises(AssertionError, match="Read-only file system"):
                    cas.put(b"a blob too many")
            work.check()
            said = daemon.words()
            with work.client() as (build, _):
                build.finish()
                daemon.logged("output base base has no new checkpoint, only its journal")
                build.start("b2")
            work.check()
            time.sleep(6)  # longer than between two looks at what is due
            assert daemon.words().removeprefix(said).count("\n") < 8, (
                "the log is told the same again and again"
            )
            daemon.stop()
        finally:
            daemon.end()
