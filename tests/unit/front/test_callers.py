"""Who still wants an answer, by what /proc tells."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from outputd.front.fuse.callers import caller_of, is_stopping, name_of, wants_out

STATUS = b"""Name:\tcat: a
State:\t%s (whatever)
Pid:\t17
SigQ:\t0/1
SigPnd:\t%016x
ShdPnd:\t%016x
SigBlk:\t%016x
SigIgn:\t0000000000000000
SigCgt:\t0000000000000000
"""


def bits(*signals: signal.Signals) -> int:
    return sum(1 << number - 1 for number in signals)


@pytest.mark.parametrize(
    "number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGTERM]
)
def test_signals_that_ask_to_stop(number: signal.Signals) -> None:
    for own, shared in ((bits(number), 0), (0, bits(number))):
        assert is_stopping(STATUS % (b"S", own, shared, 0))
        assert not is_stopping(STATUS % (b"S", own, shared, bits(number))), "it is blocked"


@pytest.mark.parametrize(
    "number",
    [signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGPROF, signal.SIGTSTP, signal.SIGRTMIN],
)
def test_signals_that_do_not(number: signal.Signals) -> None:
    assert not is_stopping(STATUS % (b"D", bits(number), bits(number), 0))
    assert is_stopping(STATUS % (b"D", bits(number), bits(signal.SIGKILL), 0))


@pytest.mark.parametrize(("state", "ended"), [(b"Z", True), (b"X", True), (b"D", False), (b"T", False)])
def test_who_has_ended(state: bytes, ended: bool) -> None:
    assert is_stopping(STATUS % (state, 0, 0, 0)) is ended


def test_real_processes() -> None:
    assert wants_out(os.getpid()) is False
    assert name_of(os.getpid())
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert wants_out(process.pid) is True, "a zombie"
    process.communicate()
    assert wants_out(process.pid) is True
    assert name_of(process.pid) == ""
    assert wants_out(0) is None, "of another process namespace"


def test_caller_of_ourselves() -> None:
    found = caller_of(threading.get_native_id())
    assert found.process.pid == os.getpid()
    assert found.process.name == name_of(os.getpid())
    assert found.group == os.getpgrp()
    assert abs(found.process.started / 1e9 - time.time()) < 86400
    assert found.ancestors[0] == name_of(os.getppid())
    assert caller_of(os.getpid()).process == found.process


def test_caller_that_is_not_seen() -> None:
    assert (caller_of(0).process.pid, caller_of(0).group) == (0, 0)
