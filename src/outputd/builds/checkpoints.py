"""When checkpoints are made: in the background, after each build and before a journal grows long; never decides how.

A checkpoint costs what changed since the last one. It bounds what a power cut takes, and what a start after a crash plays back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Final

from outputd.builds.output_base import OutputBase
from outputd.builds.saving import Saving

_log = logging.getLogger(__name__)

_LONG: Final = 64 << 20
"""Bytes of journal from which on a checkpoint is due, whatever goes on: some 600,000 staged artifacts, two seconds to play back."""
_AGE: Final = 120.0
"""Seconds after which changes outside of a build are due. While a build runs they are its own to end."""
_LOOK: Final = 5.0
"""Seconds between two looks at what is due."""


class Checkpoints:
    """One task for all output bases."""

    def __init__(
        self,
        saving: Saving,
        bases: Callable[[], Collection[OutputBase]],
        made: Callable[[OutputBase], None] | None,
    ) -> None:
        """`made` is told when one that was asked for is there."""
        self._saving = saving
        self._bases = bases
        self._made = made
        self._asked: dict[OutputBase, None] = {}
        self._owed: dict[OutputBase, None] = {}
        """Those that were asked for, and have failed so far."""
        self._wake = asyncio.Event()

    def ask(self, base: OutputBase) -> None:
        """One is due now."""
        self._asked[base] = None
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                async with asyncio.timeout(_LOOK):
                    await self._wake.wait()
            except TimeoutError:
                pass  # time to look
            self._wake.clear()
            now = time.monotonic()
            due = [base for base in self._bases() if _is_due(base, now)]
            asked, self._asked = list(self._asked), {}
            for base in dict.fromkeys([*asked, *due]):
                await self._saving.settle()
                await self._saving.save(base)
                if base in asked:
                    self._owed[base] = None
                if base in self._owed and not base.save_error:
                    del self._owed[base]
                    if self._made is not None:
                        self._made(base)

    async def now(self) -> bool:
        """Of every output base that has changes, whatever else goes on; whether all that was saved is as it is now, or almost."""
        for base in list(self._bases()):
            if base.dirty:
                await self._saving.save(base)
        return not any(base.save_error for base in self._bases())

    async def all(self) -> None:
        """Of every output base that has changes: for the ordered stop, when `run` has ended."""
        await self._saving.settle()
        for base in list(self._bases()):
            if base.dirty or base in self._asked:
                await self._saving.save(base)
        self._asked.clear()


def _is_due(base: OutputBase, now: float) -> bool:
    journal = base.journal
    if journal is None or base.removed:
        return False
    if journal.incomplete:
        return now - base.saved_time > _LOOK
    if journal.size > _LONG:
        return True
    return base.build is None and base.dirty and now - base.saved_time > _AGE
