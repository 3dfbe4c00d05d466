"""outputd.drive.crawl: who goes over the bounds, what is said of it, and when it is forgiven."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.drive.accounting import Accounting, Place, Process
from outputd.drive.crawl import Caller, CrawlGuard, CrawlOptions, Mode
from outputd.errors import Refused


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def digest(number: int) -> Digest:
    return Digest.of(DigestFunction.SHA256, b"%d" % number)


def caller(
    name: str = "grep", *, group: int = 5, ancestors: tuple[str, ...] = ("bash",), cgroup: str = "/user"
) -> Caller:
    return Caller(Process(group, 1, name), group, ancestors, cgroup)


def guard(
    mode: Mode,
    clock: Callable[[], float],
    *,
    allow: tuple[str, ...] = (),
    deny: tuple[str, ...] = (),
    accounting: Accounting | None = None,
) -> CrawlGuard:
    return CrawlGuard(CrawlOptions(mode, 3, 1000, 60.0, allow, deny), accounting or Accounting(), clock)


def read(found: CrawlGuard, who: Caller, count: int, size: int = 1) -> int:
    """How many of so many files it gets."""
    got = 0
    for number in range(count):
        try:
            found.admit(who, digest(number), size)
        except Refused:
            continue
        got += 1
    return got


def test_limit(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    found = guard(Mode.LIMIT, clock)
    assert read(found, caller(), 10) == 3
    assert read(found, caller(group=6), 3) == 3
    assert len(caplog.messages) == 1
    assert "'grep' to crawl.allow" in caplog.text and "EPERM" in caplog.text
    assert [(job.process.name, job.refused) for job in found.crawlers] == [("grep", 7)]
    clock.now += 59
    assert read(found, caller(), 1) == 0  # it went on
    clock.now += 60
    assert read(found, caller(), 3) == 3


def test_warn_lets_all_through_and_says_it_once(caplog: pytest.LogCaptureFixture) -> None:
    found = guard(Mode.WARN, Clock())
    assert read(found, caller(), 10) == 10
    assert len(caplog.messages) == 1
    assert "crawl.mode = 'limit'" in caplog.text


def test_off() -> None:
    assert read(guard(Mode.OFF, Clock(), deny=("grep",)), caller(), 10) == 10


def test_bytes() -> None:
    assert read(guard(Mode.LIMIT, Clock()), caller(), 3, size=400) == 2


def test_parts_of_one_file_are_one_file() -> None:
    found = guard(Mode.LIMIT, Clock())
    for _ in range(10):
        found.admit(caller(), digest(1), 1)


def test_the_count_begins_anew_after_a_window() -> None:
    clock = Clock()
    found = guard(Mode.LIMIT, clock)
    for _ in range(5):
        assert read(found, caller(), 3) == 3
        clock.now += 60


@pytest.mark.parametrize(
    "who", [caller("ninja"), caller(ancestors=("sh", "ninja")), caller(cgroup="/build/a"), caller(group=0)]
)
def test_allowed(who: Caller) -> None:
    assert read(guard(Mode.LIMIT, Clock(), allow=("nin*", "/build")), who, 10) == 10


def test_what_is_read_ahead_counts() -> None:
    for mode, brought in ((Mode.LIMIT, 2), (Mode.WARN, 10)):
        accounting = Accounting()
        who = caller()
        found = guard(mode, Clock(), accounting=accounting)
        found.admit(who, digest(0), 1)
        accounting.asked(who.process, Place("base", b"dir/0"), digest(0))
        ahead = found.ahead(digest(0), [digest(number) for number in range(1, 11)])
        assert list(ahead) == [digest(number) for number in range(1, 1 + brought)]
        accounting.arrived(digest(1), 7)
        assert accounting.processes.top(1)[0][0] == who.process
        if mode is Mode.LIMIT:
            with pytest.raises(Refused):
                found.admit(who, digest(99), 1)
        for number in range(1, 1 + brought):
            found.admit(who, digest(number), 1)  # it was counted, and is under way
        assert found.ahead(digest(0), [digest(1)]) == []
        found.came(ahead)
        if mode is Mode.LIMIT:
            with pytest.raises(Refused):
                found.admit(who, digest(1), 1)


def test_no_more_bytes_are_read_ahead_than_a_job_may_have() -> None:
    accounting = Accounting()
    who = caller()
    found = guard(Mode.LIMIT, Clock(), accounting=accounting)
    found.admit(who, digest(0), 500)
    accounting.asked(who.process, Place("base", b"dir/0"), digest(0))
    large = [Digest.make(DigestFunction.SHA256, bytes([number]) * 32, 400) for number in range(1, 4)]
    assert found.ahead(digest(0), large) == large[:1]


def test_denied() -> None:
    found = guard(Mode.LIMIT, Clock(), deny=("updatedb*",))
    assert read(found, caller("updatedb.plocat"), 2) == 0
    assert read(found, caller(group=9), 2) == 2
