"""What systemd, or another supervisor that speaks its protocol, is told and has kept for us: sd_notify(3), sd_listen_fds(3).

A few messages over a datagram socket. Without a supervisor every call does nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

_log = logging.getLogger(__name__)

_FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START."""


class Supervisor:
    """Who started this process, and what it passed on. Takes its variables out of the environment: they are for us alone."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        # Not taken out: the program that this process may run next is the same service.
        self._address = environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        watched = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        limit = environ.get("WATCHDOG_USEC", "")
        self._ping_every = int(limit) / 2e6 if watched and limit.isdecimal() else 0.0
        self._kept = _listen_fds(environ)
        self._deaf = False
        """The last message was not taken."""

    def take(self, name: str) -> int | None:
        """A descriptor that was kept under a name, once. The caller owns it."""
        return self._kept.pop(name, None)

    def discard_rest(self) -> None:
        """Close what was kept and nobody took."""
        while self._kept:
            name, fd = self._kept.popitem()
            _log.warning("the supervisor kept a descriptor called %s, which is of no use here", name)
            os.close(fd)

    def ready(self, status: str) -> None:
        """Start-up, or a restart, is finished."""
        self._tell(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """A restart in place begins; the process id stays the same."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nSTATUS=restarting in place")

    def stopping(self) -> None:
        """The ordered stop begins."""
        self._tell("STOPPING=1\nSTATUS=stopping in order")

    def keep(self, name: str, fd: int) -> None:
        """Have a descriptor kept beyond our death, in place of one kept under that name before."""
        self.give_up(name)
        self._tell(f"FDSTORE=1\nFDNAME={name}", fd)

    def give_up(self, name: str) -> None:
        """Have a kept descriptor closed."""
        self._tell(f"FDSTOREREMOVE=1\nFDNAME={name}")

    async def ping(self) -> None:
        """Tell a watchdog that the event loop turns, until cancelled; returns at once without one."""
        while self._ping_every:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self._ping_every)

    def _tell(self, message: str, fd: int = -1) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                # A supervisor that reads nothing must not stop the mount: what it misses is told in the log.
                sender.setblocking(False)
                sender.connect(self._address)
                socket.send_fds(sender, [message.encode()], [fd] if fd >= 0 else [])
        except OSError as error:
            if not self._deaf:
                _log.warning("the supervisor at %r cannot be told %r: %s", self._address, message, error)
            self._deaf = True
        else:
            self._deaf = False


def _listen_fds(environ: MutableMapping[str, str]) -> dict[str, int]:
    pid, count, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    kept: dict[str, int] = {}
    listed = names.split(":")
    for index in range(int(count)):
        fd = _FIRST_FD + index
        os.set_inheritable(fd, False)
        name = listed[index] if index < len(listed) else ""
        if name in kept:  # the later one was stored later
            os.close(kept[name])
        kept[name] = fd
    return kept
