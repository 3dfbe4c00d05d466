"""What waits for one remote in the write-back queue, in memory, and the limits of that. Never waits, never asks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from outputd.builds.queued_rows import Key, Row
from outputd.builds.sending import Rate

_log = logging.getLogger(__name__)

ITEMS: Final = 100_000
"""Blobs and results that may wait for one remote; each takes 300 bytes of memory."""
_LISTED: Final = 1000
"""Refused ones that are remembered of one remote."""


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """What the settings say of one remote."""

    url: str
    bytes: int
    """remote.offline_queue; 0: nothing new is taken."""
    age: float
    """remote.offline_queue_age, in seconds."""
    rate: Rate


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """How a queue is. Times in nanoseconds since 1970."""

    limit: int
    blobs: int
    results: int
    bytes: int
    oldest: int | None
    error: str
    error_time: int
    brought: int
    brought_bytes: int
    refused: Sequence[Row]


class Lane:
    """What waits for one remote, in the order in which it came."""

    def __init__(self, options: QueueOptions) -> None:
        self.options: Final = options
        self.waiting: dict[Key, Row] = {}
        self.refused: dict[Key, Row] = {}
        self.results = 0
        """How many of those that wait are no blobs."""
        self.bytes = 0
        """Of what waits."""
        self.unwritten: dict[Key, Row] = {}
        """Their rows are on the way into the database."""
        self.full = False
        """Something found no room since there was room for all."""
        self.error = ""
        self.error_time = 0
        """Nanoseconds since 1970."""
        self.brought = self.brought_bytes = 0
        """Since the daemon started: blobs and results."""
        self.wake = asyncio.Event()

    def enter(self, row: Row) -> bool:
        """Whether there is room, in place of an earlier one of that key."""
        before = self.waiting.get(row.key)
        growth = row.size - (0 if before is None else before.size)
        if not self.options.bytes:
            return False
        if self.bytes + growth > self.options.bytes or (before is None and len(self.waiting) >= ITEMS):
            if not self.full:
                _log.warning(
                    "the offline queue for %s is full: clients are told again that it does not answer (%s)",
                    self.options.url,
                    self.limit,
                )
            self.full = True
            return False
        if before is not None:
            del self.waiting[row.key]  # it goes to the end
        self.waiting[row.key] = row
        self.refused.pop(row.key, None)
        self.bytes += growth
        self.results += row.key.is_result and before is None
        return True

    def restore(self, row: Row) -> None:
        """One that an earlier run has left, whatever the limits are now."""
        if row.refused is not None:
            self.refuse(row)
            return
        self.waiting[row.key] = row
        self.bytes += row.size
        self.results += row.key.is_result

    def ready(self, *, results: bool) -> list[Row]:
        """Those blobs, or results, that are in the database: what is brought before is not known to have been queued."""
        return [
            row for key, row in self.waiting.items() if key.is_result is results and key not in self.unwritten
        ]

    def leave(self, row: Row) -> bool:
        """It does not wait any more; False when it was replaced, and what replaced it does."""
        if self.waiting.get(row.key) is not row:
            return False
        del self.waiting[row.key]
        self.bytes -= row.size
        self.results -= row.key.is_result
        self.full = False
        return True

    @property
    def limit(self) -> str:
        """For who finds no room."""
        return f"{self.bytes} of {self.options.bytes} bytes of offline_queue, {len(self.waiting)} of {ITEMS} uploads"

    def refuse(self, row: Row) -> None:
        self.refused[row.key] = row
        if len(self.refused) > _LISTED:
            del self.refused[next(iter(self.refused))]

    def facts(self) -> QueueFacts:
        return QueueFacts(
            self.options.bytes,
            len(self.waiting) - self.results,
            self.results,
            self.bytes,
            min((row.queued for row in self.waiting.values()), default=None),
            self.error,
            self.error_time,
            self.brought,
            self.brought_bytes,
            list(self.refused.values()),
        )
