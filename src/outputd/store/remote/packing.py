"""Whether and how bytes travel as Zstandard; never makes a call.

Both ends pay processor time for it, about 1 s for each 300 MB at the end that packs and 650 MB at the one that unpacks. So it is
not done where no line is in between, nor for what would not become smaller.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Final

from outputd.digest import Digest
from outputd.store.base import Piece
from outputd.store.waiting import in_thread
from outputd.store.zstd import Compressing, Decompressing, compressed

ZSTD: Final = "zstd"
"""As capabilities and resource names call it."""
FROM: Final = 1 << 10
"""Bytes of a blob; smaller ones gain less than their frames and our time cost."""
RANGE: Final = 8 << 20
"""Bytes of a read that ends before its blob does. Such a stream cannot be told its end (REv2: no read_limit for compressed blobs):
we hang up, and what the server has sent until it hears of that, as much as the line holds, was sent for nothing."""
_GAIN: Final = 0.9
"""A blob goes packed when it, or its beginning, becomes smaller than this part of itself."""
_SAMPLE: Final = 128 << 10
_HERE: Final = 16 << 10
"""Bytes that are packed or unpacked sooner than a thread has started."""


def gains(data: Piece) -> bool:
    """Whether a blob that begins so is worth packing."""
    sample = bytes(data[:_SAMPLE])
    return len(compressed(sample)) < _GAIN * len(sample)


async def gains_from(data: Piece) -> bool:
    """The same, off the loop when it takes long."""
    return gains(data) if len(data) <= _HERE else await in_thread(gains, data)


async def packed(first: Piece, rest: AsyncGenerator[Piece]) -> AsyncGenerator[bytes]:
    """One frame of these bytes, in pieces as they come."""
    frame = Compressing()
    if some := await _push(frame, first):
        yield some
    async for piece in rest:
        if some := await _push(frame, piece):
            yield some
    yield await in_thread(frame.end)


async def _push(frame: Compressing, piece: Piece) -> bytes:
    return frame.push(piece) if len(piece) <= _HERE else await in_thread(frame.push, piece)


async def unpacked(frames: Decompressing, data: Piece, *, few: bool) -> AsyncGenerator[bytes]:
    """What these bytes stand for; `few`: not more than takes no time. Raises Invalid. Never more than one step is in memory."""
    pieces = frames.push(data)
    if few:
        for piece in pieces:
            yield piece
        return
    while (step := await in_thread(next, pieces, None)) is not None:
        yield step


async def packed_blobs(blobs: Mapping[Digest, bytes]) -> dict[Digest, bytes]:
    """Those of some small blobs that become smaller, packed."""

    def pack() -> dict[Digest, bytes]:
        tried = {digest: compressed(data) for digest, data in blobs.items() if len(data) >= FROM}
        return {digest: data for digest, data in tried.items() if len(data) < _GAIN * digest.size}

    return pack() if sum(map(len, blobs.values())) <= _HERE else await in_thread(pack)
