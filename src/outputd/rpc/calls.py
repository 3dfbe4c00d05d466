"""The calls of clients that are under way, for who asks what is stuck. Never touches a call."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Call:
    """One call."""

    __slots__ = ("began", "method", "peer")

    def __init__(self, method: str, peer: str) -> None:
        self.method = method
        self.peer = peer
        """The client's address, as gRPC writes it."""
        self.began = time.monotonic()


class Calls:
    """All of them."""

    def __init__(self) -> None:
        self._calls: set[Call] = set()

    def __iter__(self) -> Iterator[Call]:
        return iter(list(self._calls))

    @contextmanager
    def entered(self, method: str, peer: str) -> Iterator[None]:
        """While a call is served."""
        call = Call(method, peer)
        self._calls.add(call)
        try:
            yield
        finally:
            self._calls.remove(call)
