"""What has become of the process behind a request, as /proc tells (proc(5)): whether it still wants an answer. Changes nothing.

The kernel sends INTERRUPT for any signal. Not each asks the process to stop: Go's scheduler sends SIGURG all the time, children
that end send SIGCHLD. Programs do not expect EINTR from a file, and where the kernel itself copies from a mapping they get EFAULT
(fault_signal_pending); so only who is to stop is answered like that. And the kernel sends nothing for whoever waits for a page,
killed or not (folio_lock_killable).

Only files of /proc are read that take no lock of the process: `cmdline` takes that of its memory, and whoever waits for us in a
page fault may hold it.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Final

from outputd.drive.accounting import Process
from outputd.drive.crawl import Caller

_TO_STOP: Final = sum(
    1 << number - 1
    for number in (
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGKILL,  # also stands for every other signal that ends the process (complete_signal)
        signal.SIGALRM,
        signal.SIGTERM,
    )
)

_GENERATIONS: Final = 12
"""Ancestors that are looked at: a shell in a terminal in a session has about eight."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_BOOTED: Final = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
"""Nanoseconds since 1970, once and for all: two looks at one process are to agree on when it started."""


def wants_out(pid: int) -> bool | None:
    """Whether a thread has ended, is ending, or was told to stop; None when that cannot be known."""
    if pid == 0:
        return None  # of a process namespace that we do not see
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return is_stopping(file.read())
    except (FileNotFoundError, ProcessLookupError):
        return None if _exists(pid) else True
    except OSError:
        return None


def is_stopping(status: bytes) -> bool:
    """The same, from the text of /proc/<pid>/status."""
    fields = dict(line.split(b":", 1) for line in status.splitlines() if b":" in line)
    if fields[b"State"].split()[0] in (b"Z", b"X"):
        return True
    pending = int(fields[b"SigPnd"], 16) | int(fields[b"ShdPnd"], 16)
    return bool(pending & ~int(fields[b"SigBlk"], 16) & _TO_STOP)


def name_of(pid: int) -> str:
    """The program's name, at most 15 bytes of it; empty when the process has ended."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().rstrip(b"\n").decode(errors="backslashreplace")
    except OSError:
        return ""


def caller_of(tid: int) -> Caller:
    """The process of a thread and where it comes from, as far as it can be known."""
    unknown = Caller(Process(tid, 0, name_of(tid) or "(ended)"), 0, (), "")
    if tid == 0:
        return unknown._replace(process=Process(0, 0, "(in another process namespace)"))
    try:
        with open(f"/proc/{tid}/status", "rb") as file:
            pid = int(next(line for line in file if line.startswith(b"Tgid:"))[5:])
        name, parent, group, ticks = _stat(pid)
    except (OSError, ValueError, StopIteration):
        return unknown
    ancestors: list[str] = []
    while parent > 0 and len(ancestors) < _GENERATIONS:
        try:
            ancestor, parent, _, _ = _stat(parent)
        except (OSError, ValueError):
            break
        ancestors.append(ancestor)
    started = _BOOTED + ticks * (1_000_000_000 // _TICKS)
    return Caller(Process(pid, started, name), group, tuple(ancestors), _cgroup(pid))


def _stat(pid: int) -> tuple[str, int, int, int]:
    """Name, parent, process group and start in clock ticks since boot. Raises OSError or ValueError."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        text = file.read()
    # The name may hold anything, also parentheses.
    name, _, rest = text.partition(b"(")[2].rpartition(b")")
    fields = rest.split()
    return name.decode(errors="backslashreplace"), int(fields[1]), int(fields[2]), int(fields[19])


def _cgroup(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cgroup", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    return next((os.fsdecode(line[3:]) for line in lines if line.startswith(b"0::")), "")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # /proc may be mounted so that others' processes cannot be seen in it (hidepid)
    return True
