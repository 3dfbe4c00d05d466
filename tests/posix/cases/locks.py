"""flock(2) and fcntl(2) locks between processes, leases and inotify."""

from __future__ import annotations

import fcntl
import os
import signal

from tests.posix.at import At, Cases, libc, told

CASES = Cases("locks")

_LOCKS = {"shared": fcntl.LOCK_SH, "exclusive": fcntl.LOCK_EX}


@CASES.each(_LOCKS, _LOCKS)
def flock_of_two_processes(at: At, first: int, second: int) -> object:
    at.file("f")
    with at.opened("f", os.O_RDWR) as fd:
        fcntl.flock(fd, first)

        def other() -> object:
            own = os.open(at / "f", os.O_RDWR)
            return told(fcntl.flock, own, second | fcntl.LOCK_NB)

        held = at.in_child(other)
        fcntl.flock(fd, fcntl.LOCK_UN)
        return held, at.in_child(other)


@CASES.each(
    _LOCKS, _LOCKS, {"same range": (0, 10), "overlap": (5, 10), "apart": (10, 10), "to the end": (5, 0)}
)
def fcntl_of_two_processes(at: At, first: int, second: int, where: tuple[int, int]) -> object:
    at.file("f", b"x" * 100)
    start, length = where
    with at.opened("f", os.O_RDWR) as fd:
        fcntl.lockf(fd, first, 10, 0)

        def other() -> object:
            own = os.open(at / "f", os.O_RDWR)
            return told(fcntl.lockf, own, second | fcntl.LOCK_NB, length, start)

        held = at.in_child(other)
        fcntl.lockf(fd, fcntl.LOCK_UN, 10, 0)
        return held, at.in_child(other)


@CASES.add
def fcntl_ends_with_any_close(at: At) -> object:
    at.file("f")

    def other() -> object:
        own = os.open(at / "f", os.O_RDWR)
        return told(fcntl.lockf, own, fcntl.LOCK_EX | fcntl.LOCK_NB)

    with at.opened("f", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX)
        held = at.in_child(other)
        os.close(os.open(at / "f", os.O_RDONLY))
        return held, at.in_child(other)


@CASES.add
def that_are_waited_for(at: At) -> object:
    at.file("f")
    reader, writer = os.pipe()
    ready, tell_ready = os.pipe()
    child = os.fork()
    if child == 0:
        own = os.open(at / "f", os.O_RDWR)
        fcntl.flock(own, fcntl.LOCK_EX)
        os.write(tell_ready, b"1")
        os.read(reader, 1)
        os._exit(0)
    os.read(ready, 1)
    with at.opened("f", os.O_RDWR) as fd:
        refused = told(fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(writer, b"1")
        got = told(fcntl.flock, fd, fcntl.LOCK_EX)
    os.waitpid(child, 0)
    for end in (reader, writer, ready, tell_ready):
        os.close(end)
    return refused, got


@CASES.add
def that_are_given_up_by_a_signal(at: At) -> object:
    at.file("f")
    with at.opened("f", os.O_RDWR) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)

        def other() -> object:
            def interrupted(*_: object) -> None:
                raise InterruptedError(4, "a signal came")

            signal.signal(signal.SIGALRM, interrupted)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            own = os.open(at / "f", os.O_RDWR)
            return told(fcntl.flock, own, fcntl.LOCK_EX)

        return at.in_child(other)


@CASES.add
def on_directories(at: At) -> object:
    with at.opened(".", os.O_RDONLY) as one, at.opened(".", os.O_RDONLY) as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        return told(fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)


@CASES.add
def inotify_tells(at: At) -> object:
    os.mkdir(at / "d")
    watch = libc("inotify_init1", os.O_NONBLOCK)
    libc("inotify_add_watch", watch, os.fsencode(at / "d"), 0xFFF)
    at.file("d/f")
    os.rename(at / "d/f", at / "d/g")
    os.unlink(at / "d/g")
    events = os.read(watch, 65536)
    os.close(watch)
    kinds = []
    while events:
        kinds.append(int.from_bytes(events[4:8], "little"))
        events = events[16 + int.from_bytes(events[12:16], "little") :]
    return [hex(kind) for kind in kinds]
