"""Between builds: the leases of all output paths are renewed near their end, and what a build did not get to is asked for.

Asking prolongs lifetimes in the remote (REv2, FindMissingBlobs), so what lies in a tree is still there when the next build comes.
Nothing is taken away here, under nobody's feet: what is nowhere any more has no lease, so the next build to start asks for it and
takes it away, and Bazel sees one state of the output path from its first BatchStat on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from outputd.builds.leases import Leases
from outputd.builds.output_base import OutputBase
from outputd.builds.presence import Presence
from outputd.errors import OutputdError

_log = logging.getLogger(__name__)

_QUIET: Final = 5.0
"""Seconds after the start that belong to those who have waited for the daemon."""
_POLL: Final = 2.0
"""Seconds between two looks at what is due."""
_PAUSE: Final = 2.0
"""Between two batches, in times the last one took: builds come first."""
_KEPT: Final = 4
"""Leases are deleted when they are older than so many times what they are trusted: nobody renews them any more."""
_RETRY: Final = 60_000_000_000
"""Nanoseconds after which a base is tried again for which the remote did not answer."""


class Refresh:
    """One task for all output bases. Lives on the event loop."""

    def __init__(
        self,
        bases: Callable[[], Iterable[OutputBase]],
        presence: Presence,
        leases: Leases,
        duration: int,
        *,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        """`duration`: how long a lease is trusted, in nanoseconds, not 0. `now` tells nanoseconds since 1970."""
        self._bases = bases
        self._presence = presence
        self._leases = leases
        self._duration = duration
        self._now = now
        self._swept = 0
        """When old leases were deleted last."""
        self._failing: set[str] = set()
        """Instance names for which it failed the last time."""

    async def run(self) -> None:
        """Work until cancelled."""
        await asyncio.sleep(_QUIET)
        while True:
            await self.look()
            await asyncio.sleep(_POLL)

    async def look(self) -> None:
        """Ask for what is due now."""
        now = self._now()
        if now - self._swept >= self._duration:
            self._swept = now
            await self._leases.forget_before(now - _KEPT * self._duration)
        for base in list(self._bases()):
            due = self.due(base)
            base.obtainable.next = max(due, now)
            # What has changed has no digest to remember the answer by until it is saved, which may fail for long.
            unsaved = base.build is None and base.dirty and now - due < _RETRY
            if due <= now and not unsaved and not base.removed and not base.lock.locked():
                await self._renew(base)

    def due(self, base: OutputBase) -> int:
        """When an output base is asked for again: three quarters into its lease, that is near the end of it."""
        known = base.obtainable
        if known.due is not None:
            return known.due
        if known.lease is None:
            known.lease = self._presence.known(base.volume.root)
        if known.lease is None:
            return 0
        return known.lease.asked + self._duration * 3 // 4

    async def _renew(self, base: OutputBase) -> None:
        known = base.obtainable
        began = self._now()
        known.due = began + _RETRY
        try:
            # Those in the first half of their time will come next time, together with what is older then.
            checked = await self._presence.prolong(base.volume.root, began - self._duration // 2, _PAUSE)
        except OutputdError as error:
            if base.instance_name not in self._failing:
                # No more than news: whoever needs the remote will be told by it, and `status` shows that it fails.
                _log.info("output base %s: its leases cannot be renewed for now: %s", base.id, error)
            self._failing.add(base.instance_name)
            return
        self._failing.discard(base.instance_name)
        if base.removed or known.due != began + _RETRY:
            return  # a build has asked meanwhile, or has ended
        if checked.missing and checked.missing != known.missing:
            _log.warning(
                "output base %s: the CAS has lost %d blobs; the next build that starts will not see what needs them",
                base.id,
                checked.missing,
            )
        known.missing = checked.missing
        known.lease = checked.lease
        known.due = None if checked.lease is not None and checked.lease.blobs else began + self._duration // 2
