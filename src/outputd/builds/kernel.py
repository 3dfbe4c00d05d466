"""Telling the kernel what it may remember wrongly after a change that did not come from it; never changes anything itself."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from outputd.drive.reaper import Reaper
from outputd.tree.node import Node
from outputd.tree.tree import Tree


class KernelCache(Protocol):
    """The front's side of it."""

    async def invalidate(self, stale: list[tuple[Node, bytes | None]]) -> None:
        """Return when the kernel believes nothing any more about these names, and about the attributes of these nodes."""


class Changes:
    """The changes of one request: on leaving, the kernel has been told of all of them, also when the request failed.

    `note` after each stretch of changes, before the next `await`: until then what stands in `Tree.stale` is ours alone.
    """

    __slots__ = ("_kernel", "_reaper", "_stale", "tree")

    def __init__(self, tree: Tree, kernel: KernelCache, reaper: Reaper) -> None:
        self.tree = tree
        self._kernel = kernel
        self._reaper = reaper
        self._stale: list[tuple[Node, bytes | None]] = []

    def note(self) -> None:
        """Take over what the tree has collected since the last `await`."""
        tree = self.tree
        if tree.stale:
            self._stale += tree.stale
            tree.stale = []
        if tree.dropped:
            self._reaper.wake()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.note()
        if self._stale:
            stale, self._stale = self._stale, []
            await self._kernel.invalidate(stale)
