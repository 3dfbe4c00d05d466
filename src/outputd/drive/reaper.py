"""Frees what the tree has dropped, in the background and in small steps: removed subtrees and private files without a name."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from outputd.drive.content import Content
from outputd.tree.tree import Tree

_STEP: Final = 0.001
"""Seconds of work between two turns of the event loop."""


class Reaper:
    """One task that empties `Tree.dropped`."""

    def __init__(self, tree: Tree, content: Content) -> None:
        self._tree = tree
        self._content = content
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Something was dropped."""
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._tree.dropped:
                await self._reap()

    async def _reap(self) -> None:
        dropped, self._tree.dropped = self._tree.dropped, []
        until = time.monotonic() + _STEP
        for node in dropped:
            for file in self._tree.dismantle(node):
                if file is not None:
                    await self._content.discard(file)
                if time.monotonic() > until:
                    await asyncio.sleep(0)
                    until = time.monotonic() + _STEP
