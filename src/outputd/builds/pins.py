"""What people want to stay on this machine: files that patterns name, which are not evicted, and brought after each build.

Pins belong to an output base, outlive restarts, and also the cleaning of the base: the next build fills it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, Protocol

from outputd.builds.prefetch import Prefetch
from outputd.builds.selection import Patterns, select
from outputd.builds.verification import Count
from outputd.digest import Digest
from outputd.drive.loader import Loader
from outputd.errors import NotFound, OutputdError
from outputd.tree.node import Directory

_log = logging.getLogger(__name__)

_AGAIN: Final = 300.0
"""Seconds after which what could not be brought is tried again."""


class PinRows(Protocol):
    """Where pins are written down."""

    def pins(self) -> list[tuple[str, bytes]]: ...
    async def pin(self, output_base_id: str, patterns: Sequence[bytes]) -> None: ...
    async def unpin(self, output_base_id: str, patterns: Sequence[bytes]) -> int: ...


@dataclass(slots=True)
class Pin:
    """One pattern."""

    output_base_id: str
    pattern: bytes
    matched: Count = field(default_factory=Count)
    missing: Count = field(default_factory=Count)
    current: bool = False
    """Looked at since the last build."""
    digests: frozenset[Digest] = frozenset()


class Pins:
    """For one event loop; `held` for any thread."""

    def __init__(
        self,
        rows: PinRows,
        root: Callable[[str], Directory],
        loader: Loader,
        prefetch: Prefetch,
        is_here: Callable[[Digest], bool],
    ) -> None:
        """`root` gives the top of an output path or raises NotFound. Raises Unavailable or Corrupt."""
        self._rows = rows
        self._root = root
        self._loader = loader
        self._prefetch = prefetch
        self._is_here = is_here
        self._pins: dict[tuple[str, bytes], Pin] = {}
        for output_base_id, pattern in rows.pins():
            self._pins[output_base_id, pattern] = Pin(output_base_id, pattern)
        self._held: frozenset[Digest] = frozenset()
        self._wake = asyncio.Event()
        self._wake.set()

    @property
    def held(self) -> frozenset[Digest]:
        """The blobs that are to stay here. After a start, what was pinned before is known when it was looked for."""
        return self._held

    def list(self) -> Sequence[Pin]:
        """By output base and pattern."""
        return [pin for _, pin in sorted(self._pins.items())]

    async def pin(self, output_base_id: str, patterns: Sequence[bytes]) -> None:
        """Keep these from now on. Raises Invalid, NotFound, Exhausted or Unavailable."""
        Patterns(patterns)
        self._root(output_base_id)
        await self._rows.pin(output_base_id, patterns)
        for pattern in patterns:
            self._pins.setdefault((output_base_id, pattern), Pin(output_base_id, pattern))
        self._wake.set()

    async def unpin(self, output_base_id: str, patterns: Sequence[bytes]) -> int:
        """End these pins, or with no pattern all of the output base; how many that were. Raises Exhausted or Unavailable."""
        removed = await self._rows.unpin(output_base_id, patterns)
        for key in list(self._pins):
            if key[0] == output_base_id and (not patterns or key[1] in patterns):
                del self._pins[key]
        self._hold()
        return removed

    def outdated(self, output_base_id: str) -> None:
        """A build has ended: what is pinned may have other bytes now."""
        for pin in self._pins.values():
            if pin.output_base_id == output_base_id:
                pin.current = False
                self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                async with asyncio.timeout(_AGAIN):
                    await self._wake.wait()
            except TimeoutError:
                pass  # What was evicted or could not be had is looked for again.
            self._wake.clear()
            for pin in list(self._pins.values()):
                try:
                    await self._bring(pin)
                except NotFound:
                    pin.current = True  # no such output base now; a build may bring it back
                except OutputdError as error:
                    _log.warning(
                        "what %s pins of output base %s cannot be looked for: %s",
                        pin.pattern.decode(errors="backslashreplace"),
                        pin.output_base_id,
                        error,
                    )

    async def settle(self, seconds: float) -> None:
        """Know what earlier pins hold, as far as that can be found out in so many seconds; `run` goes on with the rest."""
        try:
            async with asyncio.timeout(seconds):
                for pin in list(self._pins.values()):
                    try:
                        await self._find(pin)
                    except OutputdError as error:
                        _log.debug("pin %r of %s: %s", pin.pattern, pin.output_base_id, error)  # `run` tells
        except TimeoutError:
            _log.info("what is pinned is still being looked for")

    async def _find(self, pin: Pin) -> frozenset[Digest]:
        """What it names now, which is kept from here on."""
        digests: set[Digest] = set()
        files_named = select(self._root(pin.output_base_id), Patterns([pin.pattern]), self._loader)
        async with aclosing(files_named) as files:
            async for file in files:
                if file.digest is not None:
                    digests.add(file.digest)
        pin.digests = frozenset(digests)
        self._hold()
        return pin.digests

    async def _bring(self, pin: Pin) -> None:
        """Find what it names now, and bring what of that is not here."""
        pin.current = True
        digests = await self._find(pin)
        failed = 0
        first_failure = ""
        bringing = self._prefetch.of(self._root(pin.output_base_id), Patterns([pin.pattern]))
        async with aclosing(bringing) as steps:
            async for step in steps:
                pin.matched = step.matched
                failed, first_failure = step.failed, step.first_failure
        missing = Count()
        for digest in digests:
            if not self._is_here(digest):
                missing.add(digest.size)
        pin.missing = missing
        if failed:
            _log.warning(
                "%d files that %s pins of output base %s could not be brought: %s",
                failed,
                pin.pattern.decode(errors="backslashreplace"),
                pin.output_base_id,
                first_failure,
            )

    def _hold(self) -> None:
        self._held = frozenset().union(*(pin.digests for pin in self._pins.values()))
