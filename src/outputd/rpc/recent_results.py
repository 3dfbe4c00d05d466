"""What the remote's action cache has said lately; never asks it, and never writes to a disk.

In memory, for a build that has nothing to do asks for tens of thousands of results, and each would be a write.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final, NamedTuple

from outputd.digest import Digest

_FRESH: Final = 300.0
"""Seconds for which a result that the remote gave is not asked for again."""
_BYTES: Final = 16 << 20
_OVERHEAD: Final = 400
"""Of one result, beside its bytes."""


class _Kept(NamedTuple):
    result: bytes
    given: float
    """When, by the monotonic clock; minus infinity for one that the remote took, which it may still not give: blobs may be gone."""


class RecentResults:
    """Serialized ActionResults by instance and action, the latest of them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, Digest], _Kept] = OrderedDict()
        """The one that came first is the first to go."""
        self._size = 0

    def gave(self, instance: str, action: Digest, result: bytes) -> None:
        """The remote answers with this."""
        self._keep((instance, action), _Kept(result, time.monotonic()))

    def took(self, instance: str, action: Digest, result: bytes) -> None:
        """The remote was given this."""
        self._keep((instance, action), _Kept(result, float("-inf")))

    def has_none(self, instance: str, action: Digest) -> None:
        """The remote does not know it (any more)."""
        self._drop((instance, action))

    def fresh(self, instance: str, action: Digest) -> bytes | None:
        """What the remote would say, as far as is known."""
        kept = self._kept.get((instance, action))
        return kept.result if kept is not None and time.monotonic() - kept.given < _FRESH else None

    def last(self, instance: str, action: Digest) -> bytes | None:
        """What was last heard of it, however long ago."""
        kept = self._kept.get((instance, action))
        return None if kept is None else kept.result

    def _keep(self, key: tuple[str, Digest], kept: _Kept) -> None:
        self._drop(key)
        self._kept[key] = kept
        self._size += len(kept.result) + _OVERHEAD
        while self._size > _BYTES:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: tuple[str, Digest]) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._size -= len(kept.result) + _OVERHEAD
