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
from typing import Final

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


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # /proc may be mounted so that others' processes cannot be seen in it (hidepid)
    return True
