"""What signals ask of the daemon: to stop, to stop at once, to run the program anew. Does none of it but the second."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import Final

_log = logging.getLogger(__name__)

_OURS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def hold() -> None:
    """Have what comes now wait for the Signals of the program that this process runs next."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)


class Signals:
    """What they ask for. Takes them from the moment it is made, also those that have come since `hold`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.stop: Final = asyncio.Event()
        self.reload: Final = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else by nohup(1)
            loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)

    def _stop(self) -> None:
        if self.stop.is_set():
            # The second one means now. The kernel ends the connection with the process; the next start clears the mount away.
            _log.warning("stopping at once: what was not saved yet is as after a crash")
            logging.shutdown()
            os._exit(1)
        _log.info("stopping in order; once more to stop at once")
        self.stop.set()

    def _hang_up(self) -> None:
        """A terminal that is closed ends what runs in it. To a daemon without one SIGHUP means, by custom, to read its settings."""
        try:
            os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
        except OSError:
            self.reload.set()
        else:
            self._stop()
