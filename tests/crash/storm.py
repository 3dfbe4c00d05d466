"""Rounds of work, SIGKILL at a random moment, restart on the same directories, comparison with what was acknowledged."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Final

from tests.crash.local import LocalActor
from tests.crash.uploader import Uploader
from tests.daemon_fixture import Daemon, connected

_START_SECONDS: Final = 1.0
"""Within which a kill meets a daemon that starts, most of the time."""


class Storm:
    """A daemon, those who work with it, and who kills it."""

    def __init__(self, daemon: Daemon, seed: str, *, bases: int = 3, patience: float = 0.5) -> None:
        """Everything random follows from `seed`, but for what threads and processes do to each other. `patience` is the
        longest that a daemon lives, in seconds."""
        self._daemon = daemon
        self._random = random.Random(seed)
        self._patience = patience
        self._dead = threading.Event()
        self._actors = [
            LocalActor(f"base{number}", seed, daemon.outputs, self._dead) for number in range(bases)
        ]
        self._uploader = Uploader(seed, self._dead)
        self.kills = 0

    @property
    def steps(self) -> int:
        """Calls that were acknowledged."""
        return self._uploader.steps + sum(actor.steps for actor in self._actors)

    def round(self) -> None:
        """The daemon runs, and does so at the end."""
        failures: list[BaseException] = []
        self._dead.clear()
        with connected(self._daemon) as channel:
            for actor in self._actors:
                actor.go_on(channel)
            self._uploader.check(channel)
            threads = [
                *(_thread(actor.run, failures) for actor in self._actors),
                _thread(lambda: self._uploader.run(channel), failures),
            ]
            time.sleep(self._random.uniform(0.0, self._patience))
            self._kill()
            self._dead.set()
            for thread in threads:
                thread.join(30)
                assert not thread.is_alive(), "a call hangs although the daemon is dead"
        if failures:
            raise failures[0]
        while self._random.random() < 0.3:
            self._daemon.begin()
            time.sleep(self._random.uniform(0.0, _START_SECONDS))
            self._kill()
        self._daemon.start()

    def end(self) -> None:
        """Look once more, and through the eyes of a daemon that was stopped in order."""
        for again in (False, True):
            if again:
                for actor in self._actors:
                    actor.close()
                self._daemon.restart()
            with connected(self._daemon) as channel:
                for actor in self._actors:
                    actor.go_on(channel)
                self._uploader.check(channel)

    def close(self) -> None:
        """Give up what is open."""
        for actor in self._actors:
            actor.close()

    def _kill(self) -> None:
        self._daemon.kill()
        self.kills += 1


def _thread(work: Callable[[], None], failures: list[BaseException]) -> threading.Thread:
    def run() -> None:
        try:
            work()
        except BaseException as error:  # told by `round`, in the thread of the test
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread
