"""The write-back queue: what clients upload while a remote does not answer waits here, and is brought to it when it does. Never
decides what is to be queued, and takes no more than its limits.

Blobs lie in the local store, from which they are not evicted; what is queued, and the results of actions, are rows of the state
database. A result goes when the remote has every blob that it names. Nothing is sent that the remote has by then, so that a run
which was ended in the middle costs a question.

What the remote refuses for good is set aside: it is listed until it is too old, and never tried again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from outputd.builds.bringing import Bringing, Results
from outputd.builds.queue_lane import Lane, QueueFacts, QueueOptions
from outputd.builds.queued_rows import Key, QueuedRows, Row
from outputd.digest import Digest
from outputd.errors import Corrupt, OutputdError
from outputd.store.base import LocalStore, RemoteBlobs

_log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 1.0
_LAST_PAUSE: Final = 15.0
"""Seconds between two tries: they double. A remote that was given up is not asked by them (store/remote/contact.py)."""
_AGEING: Final = 3600.0
"""Seconds between two looks at what may have become too old."""


class WriteBack:
    """One queue for each remote. Lives on the event loop, but for `blobs`."""

    def __init__(
        self,
        rows: QueuedRows,
        remote: RemoteBlobs,
        local: LocalStore,
        options: Mapping[str, QueueOptions],
        remote_of: Callable[[str], str | None],
        *,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        """Go on with what an earlier run has left. `options`: of each remote, by prefix; `remote_of` tells which of them has an
        instance name; `now` tells nanoseconds since 1970. Raises Unavailable."""
        self._rows = rows
        self._remote = remote
        self._local = local
        self._lanes = {prefix: Lane(some) for prefix, some in options.items()}
        self._remote_of = remote_of
        self._now = now
        try:
            left = rows.all()
        except Corrupt as error:
            _log.error(
                "what uploads wait for a remote cannot be read, none of them will be brought: %s", error
            )
            left = []
        nobodys = 0
        for row in left:
            lane = self._lane(row.key.instance_name)
            if lane is None:
                nobodys += 1
            else:
                lane.restore(row)
        if nobodys:
            _log.warning(
                "%d uploads are queued for instance names that no remote of the settings has", nobodys
            )

    # who queues

    def takes(self, instance_name: str) -> bool:
        """Whether there is a queue for this instance name."""
        lane = self._lane(instance_name)
        return lane is not None and lane.options.bytes > 0

    async def keep_blobs(self, instance_name: str, digests: Collection[Digest]) -> set[Digest]:
        """Bring these, which lie in the local store and are retained there; those for which there is no room. A SIGKILL loses none
        of the others. Raises Exhausted or Unavailable."""
        lane = self._lane(instance_name)
        if lane is None:
            return set(digests)
        now = self._now()
        left: set[Digest] = set()
        rows: list[Row] = []
        for digest in digests:
            row = Row(Key(instance_name, digest, is_result=False), digest.size, now, None)
            if row.key in lane.waiting:
                rows += [lane.unwritten[row.key]] if row.key in lane.unwritten else []
            elif lane.enter(row):
                rows.append(row)
            else:
                left.add(digest)
        if rows:
            with self._writing(lane, rows):
                await self._rows.add_blobs(rows)
        return left

    async def keep_result(self, instance_name: str, action: Digest, request: bytes) -> bool:
        """Bring this result in place of an earlier one, when its blobs are there; whether there is room. Raises as `keep_blobs`."""
        lane = self._lane(instance_name)
        if lane is None:
            return False
        key = Key(instance_name, action, is_result=True)
        before = lane.waiting.get(key)
        queued = self._now() if before is None else max(self._now(), before.queued + 1)
        row = Row(key, len(request), queued, None)
        if not lane.enter(row):
            return False
        with self._writing(lane, [row]):
            await self._rows.add_result(row, request)
        return True

    def request(self, instance_name: str, action: Digest) -> bytes | None:
        """The result that waits, in its request. Raises Corrupt or Unavailable."""
        key = Key(instance_name, action, is_result=True)
        lane = self._lane(instance_name)
        return self._rows.request(key) if lane is not None and key in lane.waiting else None

    def waits(self, instance_name: str, digests: Collection[Digest] | None = None) -> bool:
        """Whether any of these blobs waits, or any blob at all."""
        lane = self._lane(instance_name)
        if lane is None or len(lane.waiting) == lane.results:
            return False
        if digests is None:
            return True
        return any(Key(instance_name, digest, is_result=False) in lane.waiting for digest in digests)

    def limit(self, instance_name: str) -> str:
        """For who is told that there is no room: what the limit is."""
        lane = self._lane(instance_name)
        return "" if lane is None else f"the offline queue is full: {lane.limit}"

    # who asks

    def blobs(self) -> set[Digest]:
        """Those that wait: their only copy may be the one here. From any thread."""
        return {
            key.digest for lane in self._lanes.values() for key in list(lane.waiting) if not key.is_result
        }

    def facts(self, prefix: str) -> QueueFacts:
        """Of one remote."""
        return self._lanes[prefix].facts()

    # who brings

    async def run(self, results: Results) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes.values():
                group.create_task(self._tend(lane, results))

    async def _tend(self, lane: Lane, results: Results) -> None:
        pause = 0.0
        while True:
            lane.wake.clear()
            if not lane.ready(results=False) and not lane.ready(results=True):
                try:
                    async with asyncio.timeout(_AGEING):
                        await lane.wake.wait()
                except TimeoutError:
                    pass  # what was set aside is to be forgotten one day
            before = lane.brought, lane.brought_bytes
            bringing = Bringing(lane, self._rows, self._remote, self._local, results, self._now)
            try:
                error = await bringing.run()
            except OutputdError as failure:
                error = failure
            if lane.brought > before[0]:
                _log.info(
                    "%d uploads that had waited for %s were brought to it, %d bytes; %d are left",
                    lane.brought - before[0],
                    lane.options.url,
                    lane.brought_bytes - before[1],
                    len(lane.waiting),
                )
            if error is None:
                pause, lane.error = 0.0, ""
                continue
            lane.error, lane.error_time = str(error), self._now()
            pause = min(max(_FIRST_PAUSE, 2 * pause), _LAST_PAUSE)
            await asyncio.sleep(pause)

    # within

    def _lane(self, instance_name: str) -> Lane | None:
        prefix = self._remote_of(instance_name)
        return None if prefix is None else self._lanes.get(prefix)

    @contextmanager
    def _writing(self, lane: Lane, rows: Sequence[Row]) -> Iterator[None]:
        """Rows on their way into the database. Who waits for the same blob meanwhile writes it once more."""
        if len(lane.waiting) == len(rows):
            _log.info("%s does not answer: uploads for it wait here until it does", lane.options.url)
        lane.unwritten.update((row.key, row) for row in rows)
        try:
            yield
        except OutputdError:
            for row in rows:
                lane.leave(row)
            raise
        finally:
            for row in rows:
                lane.unwritten.pop(row.key, None)
            lane.wake.set()
