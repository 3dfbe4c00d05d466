"""What processes need fetched, told to those who count it and may refuse it. The kernel names the thread; /proc tells the rest.

Asked only for what is not here, so that reading what is costs nothing.
"""

from __future__ import annotations

import time
from typing import Final

from outputd.digest import Digest
from outputd.drive.accounting import Accounting, Place
from outputd.drive.content import Content
from outputd.drive.crawl import Caller, CrawlGuard
from outputd.drive.open_file import NotLocal
from outputd.front.fuse.callers import caller_of
from outputd.tree.status import NotLoaded

_KNOWN_FOR: Final = 2.0
"""Seconds for which a thread is taken for who it was: to look costs about 0.2 ms."""
_KNOWN: Final = 256


class Demand:
    """For one event loop."""

    def __init__(self, content: Content, accounting: Accounting, guard: CrawlGuard) -> None:
        self._content = content
        self._accounting = accounting
        self._guard = guard
        self._callers: dict[int, tuple[float, Caller]] = {}

    def note(self, pid: int, need: NotLocal | NotLoaded) -> None:
        """A thread waits for what `need` names. Raises Refused."""
        if isinstance(need, NotLoaded):
            directory = need.directory
            digest = directory.digest or directory.tree
            if digest is not None:
                self._accounting.asked(self._caller(pid).process, Place.of(directory), digest)
            return
        file = need.file
        digest = file.content if isinstance(file.content, Digest) else None
        if digest is None or self._content.is_local(file):
            return  # it is to be copied, not fetched
        caller = self._caller(pid)
        self._guard.admit(caller, digest, digest.size if need.wanted is None else need.wanted[1])
        self._accounting.asked(caller.process, Place.of(file), digest)

    def _caller(self, pid: int) -> Caller:
        now = time.monotonic()
        known = self._callers.get(pid)
        if known is not None and now - known[0] < _KNOWN_FOR:
            return known[1]
        if len(self._callers) >= _KNOWN:
            self._callers.clear()
        found = caller_of(pid)
        self._callers[pid] = now, found
        return found
