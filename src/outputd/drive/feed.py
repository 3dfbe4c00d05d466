"""What happens in the output trees, told to whoever listens. Never waits for a listener: who is slow loses, and learns how much."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from outputd.digest import Digest
from outputd.drive.accounting import Place, Process
from outputd.tree.node import File

_MOST: Final = 10_000
"""Events that wait for one watcher; the oldest are lost first."""


class Event(NamedTuple):
    """One thing that happened."""

    name: str
    """`build started`, `build finalized`, `cleaned`, `staged`, `written`, `fetched`, `lost`."""
    output_base_id: str = ""
    build_id: str = ""
    path: bytes = b""
    """Below the output path."""
    size: int = 0
    """Bytes."""
    time: int = 0
    """Nanoseconds since 1970."""
    lost: int = 0
    """Of `lost`: how many."""


class Watcher:
    """Events that one has yet to read."""

    def __init__(self, output_base_id: str) -> None:
        self._output_base_id = output_base_id
        self._events: deque[Event] = deque()
        self._lost = 0
        self._some = asyncio.Event()

    def put(self, event: Event) -> None:
        if self._output_base_id not in ("", event.output_base_id):
            return
        if len(self._events) >= _MOST:
            self._events.popleft()
            self._lost += 1
        self._events.append(event)
        self._some.set()

    async def next(self) -> Event:
        """The oldest one, once there is one. Where events were lost, that comes first."""
        await self._some.wait()
        if self._lost:
            lost, self._lost = self._lost, 0
            return Event("lost", self._output_base_id, lost=lost, time=time.time_ns())
        event = self._events.popleft()
        if not self._events:
            self._some.clear()
        return event


class Feed:
    """For one event loop."""

    def __init__(self) -> None:
        self._watchers: list[Watcher] = []
        self.ended: Final[list[Callable[[str], object]]] = []
        """Told the output base of each build that was finalized, in the daemon itself; nothing is lost here."""

    @property
    def watched(self) -> bool:
        """Somebody watches: events that cost something to make are worth it."""
        return bool(self._watchers)

    @contextmanager
    def watching(self, output_base_id: str) -> Iterator[Watcher]:
        """What happens from here on, to one output base, or to all when that is empty."""
        watcher = Watcher(output_base_id)
        self._watchers.append(watcher)
        try:
            yield watcher
        finally:
            self._watchers.remove(watcher)

    def tell(
        self, name: str, output_base_id: str, *, build_id: str = "", path: bytes = b"", size: int = 0
    ) -> None:
        """Something happened now."""
        if self._watchers:
            event = Event(name, output_base_id, build_id, path, size, time.time_ns())
            for watcher in self._watchers:
                watcher.put(event)

    def finalized(self, output_base_id: str, build_id: str) -> None:
        """A build has ended."""
        self.tell("build finalized", output_base_id, build_id=build_id)
        for listener in self.ended:
            listener(output_base_id)

    def written(self, file: File) -> None:
        """The last writer of a file has closed it."""
        if self._watchers:
            place = Place.of(file)
            self.tell("written", place.output_base_id, path=place.path, size=file.size)

    def arrived(self, process: Process, place: Place, digest: Digest, size: int) -> None:
        """Bytes of a file that somebody reads came from the remote."""
        if self._watchers and place.output_base_id:
            self.tell("fetched", place.output_base_id, path=place.path, size=size)
