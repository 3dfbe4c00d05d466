"""Small files that others replace while we run: tokens, certificates. Notices that they changed; never judges what is in them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Final

LOOK_SECONDS: Final = 2.0
"""Between two looks: a call must not cost a stat(2) of each file."""
_TICK: Final = 1.0
"""A file that was written so many seconds ago or less may be written again without another time; file systems count coarsely."""

_Stamp = tuple[int, ...] | None


class Watch:
    """Some files that belong together."""

    def __init__(self, paths: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        """What they hold now counts as known."""
        self._paths = paths
        self._clock = clock
        self._next = clock() + LOOK_SECONDS
        self._known = self._look()

    def changed(self, *, at_once: bool = False) -> bool:
        """Whether they may hold something else than at the last question. Looks every LOOK_SECONDS, or `at_once`."""
        now = self._clock()
        if not self._paths or (now < self._next and not at_once):
            return False
        self._next = now + LOOK_SECONDS
        before, self._known = self._known, self._look()
        return self._known is None or self._known != before

    def _look(self) -> tuple[_Stamp, ...] | None:
        """None when they were changed so lately that they may change again without a trace."""
        stamps = tuple(map(_stamp, self._paths))
        lately = (time.time() - _TICK) * 1e9
        if any(stamp is not None and stamp[0] > lately for stamp in stamps):
            return None
        return stamps


def _stamp(path: str) -> _Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev, found.st_size
