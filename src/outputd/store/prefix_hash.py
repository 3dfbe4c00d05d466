"""The hash of a file that fills up: of its beginning, while more comes, so that little is left to do at its end. Never waits.

The bytes are read back from the file, not taken as they come: they come in several places at once. Reading them from the page
cache costs a quarter of what hashing them does.
"""

from __future__ import annotations

import os
import threading
from typing import Final

from outputd.digest import Digest, DigestFunction

_STEP: Final = 1 << 20


class PrefixHash:
    """For any thread; what was hashed must not change afterwards."""

    def __init__(self, function: DigestFunction, fd: int) -> None:
        self._function = function
        self._fd = fd
        self._hasher = function.hasher()
        self._turn = threading.Lock()
        self.end = 0
        """All before that is hashed."""

    def advance(self, end: int) -> None:
        """Hash on, up to there. Raises OSError; what was hashed then stays hashed."""
        with self._turn:
            if self.end >= end:
                return
            buffer = memoryview(bytearray(min(_STEP, end - self.end)))
            while self.end < end and (count := os.preadv(self._fd, [buffer[: end - self.end]], self.end)):
                self._hasher.update(buffer[:count])
                self.end += count

    def digest(self, size: int) -> Digest:
        """That of the whole file of this size. Raises OSError."""
        self.advance(size)
        return Digest.make(self._function, self._hasher.digest(), self.end)
