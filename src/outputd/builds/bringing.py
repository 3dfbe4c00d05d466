"""One try of all that waits for a remote in the write-back queue: blobs, and then the results that name them. Queues nothing, and
never tries twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

from outputd.builds.queue_lane import Lane
from outputd.builds.queued_rows import Key, QueuedRows, Row
from outputd.builds.sending import BLOBS_A_QUESTION, Sending
from outputd.digest import Digest
from outputd.errors import Exhausted, NotFound, OutputdError, Throttled, Unavailable, Unproven
from outputd.store.base import LocalStore, RemoteBlobs

_log = logging.getLogger(__name__)

_RESULTS_AT_ONCE: Final = 200
"""Results whose blobs are asked for together."""
_UPDATES: Final = 8
"""Results that are under way at once."""
_WORDS: Final = 500
"""Characters of an error that are kept."""
_PASSING: Final = (Unavailable, Throttled, Unproven)
"""Errors that another time, or other credentials, may cure. All others are for good."""


class Results(Protocol):
    """What is to be known of action results, which are the edge's business."""

    async def named(self, key: Key, request: bytes) -> set[Digest]:
        """Every blob that somebody may ask for who gets this result. Raises what reading Trees and Directory messages raises."""

    async def update(self, key: Key, request: bytes) -> None:
        """Give it to the remote. Raises as RemoteBlobs."""


class Bringing:
    """One try of all that waits for one remote."""

    def __init__(
        self,
        lane: Lane,
        rows: QueuedRows,
        remote: RemoteBlobs,
        local: LocalStore,
        results: Results,
        now: Callable[[], int],
    ) -> None:
        self._lane = lane
        self._rows = rows
        self._remote = remote
        self._local = local
        self._results = results
        self._now = now
        self._done: list[Row] = []
        """Brought, and in the database still."""
        self._refused: list[Row] = []
        """The same, set aside."""
        self._error: OutputdError | None = None
        """Why the first of those that stay does."""

    async def run(self) -> OutputdError | None:
        """Why something stays in the queue, if anything does. Raises what befalls all."""
        try:
            self._forget_old()
            blobs = _by_name(self._lane.ready(results=False))
            results = _by_name(self._lane.ready(results=True))
            for name in dict.fromkeys([*blobs, *results]):
                remote = self._remote.of_instance(name)
                digests = [row.key.digest for row in blobs.get(name, ())]
                for start in range(0, len(digests), BLOBS_A_QUESTION):
                    await self._blobs(name, remote, digests[start : start + BLOBS_A_QUESTION])
                    self._note()
                rows = results.get(name, [])
                for start in range(0, len(rows), _RESULTS_AT_ONCE):
                    await self._some_results(name, remote, rows[start : start + _RESULTS_AT_ONCE])
                    self._note()
        finally:
            self._note()
        return self._error

    def _forget_old(self) -> None:
        """Drop what has waited for too long, and what was refused so long ago."""
        eldest = self._now() - int(self._lane.options.age * 1e9)
        old = [row for row in self._lane.waiting.values() if row.queued < eldest]
        for row in old:
            self._lane.leave(row)
        listed = [row for row in self._lane.refused.values() if row.queued < eldest]
        for row in listed:
            del self._lane.refused[row.key]
        self._rows.drop(old + listed)
        if old:
            _log.warning(
                "%d uploads waited for %s longer than offline_queue_age, they are given up",
                len(old),
                self._lane.options.url,
            )

    async def _blobs(
        self, name: str, remote: RemoteBlobs, digests: Collection[Digest]
    ) -> dict[Digest, OutputdError]:
        """Have the remote have these; those that it has not, with why. Raises what befalls all."""

        def brought(some: Collection[Digest]) -> None:
            self._blobs_are_there(name, some)

        missing = await remote.find_missing(digests)
        there = [digest for digest in digests if digest not in missing]
        self._local.confirm_remote(there)
        brought(there)
        sending = Sending(remote, self._local, self._lane.options.rate, of_one=_any, sent=brought)
        failures = await sending.blobs(missing)
        for digest, error in failures.items():
            row = self._lane.waiting.get(Key(name, digest, is_result=False))
            if row is not None:
                self._failed(row, error)
        return failures

    def _blobs_are_there(self, name: str, digests: Collection[Digest]) -> None:
        for digest in digests:
            row = self._lane.waiting.get(Key(name, digest, is_result=False))
            if row is not None:
                self._brought(row)

    async def _some_results(self, name: str, remote: RemoteBlobs, rows: Sequence[Row]) -> None:
        requests: dict[Row, bytes] = {}
        named: dict[Row, set[Digest]] = {}
        for row in rows:
            request = self._rows.request(row.key)
            if request is None:
                self._failed(row, NotFound("its row has gone from the database"))
                continue
            try:
                named[row] = {digest for digest in await self._results.named(row.key, request) if digest.size}
            except Exhausted as error:  # of our own disk
                self._error = self._error or error
            except OutputdError as error:
                self._failed(row, error)
            else:
                requests[row] = request
        failures = await self._blobs(name, remote, set().union(*named.values()))
        slots = asyncio.Semaphore(_UPDATES)
        async with asyncio.TaskGroup() as group:
            for row, request in requests.items():
                lacking = [failures[digest] for digest in named[row] if digest in failures]
                if lacking:
                    # For good, if one of them is.
                    self._failed(row, min(lacking, key=lambda error: isinstance(error, _PASSING)))
                else:
                    group.create_task(self._update(row, request, slots))

    async def _update(self, row: Row, request: bytes, slots: asyncio.Semaphore) -> None:
        async with slots:
            try:
                await self._results.update(row.key, request)
            except OutputdError as error:
                self._failed(row, error)
            else:
                self._brought(row)

    def _brought(self, row: Row) -> None:
        self._done.append(row)
        self._lane.brought += 1
        self._lane.brought_bytes += row.size
        self._lane.leave(row)

    def _failed(self, row: Row, error: OutputdError) -> None:
        if isinstance(error, _PASSING):
            self._error = self._error or error
        elif self._lane.leave(row):
            self._refused.append(row._replace(refused=str(error)[:_WORDS]))

    def _note(self) -> None:
        """In the database what has come of it by now."""
        self._rows.drop(self._done)
        self._done = []
        if self._refused:
            self._rows.refuse(self._refused)
            for row in self._refused:
                self._lane.refuse(row)
            _log.warning(
                "%d uploads that had waited for %s are set aside, it does not take them: %s",
                len(self._refused),
                self._lane.options.url,
                self._refused[0].refused,
            )
            self._refused = []


def _by_name(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.key.instance_name, []).append(row)
    return found


def _any(_error: OutputdError) -> bool:
    """Whatever befalls one upload, the others are tried."""
    return True
