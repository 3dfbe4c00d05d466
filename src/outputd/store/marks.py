"""A set of digests that must not be removed, in little memory; may hold more than was put in, never less.

A Bloom filter: to keep some garbage by mistake does no harm, so a million digests take 8 MiB here and not 150.
"""

from __future__ import annotations

from typing import Final

_BITS: Final = 26
"""Width of an index: 64 Mi bits. Of a million digests that were not put in, ten are taken for put in; of ten million, 4 %."""
_MASK: Final = (1 << _BITS) - 1


class Marks:
    """Takes anything whose last 16 bytes are part of a hash: digests of blobs, and of attribute records."""

    __slots__ = ("_bits",)

    def __init__(self) -> None:
        self._bits = bytearray(1 << (_BITS - 3))

    def add(self, digest: bytes) -> None:
        bits = self._bits
        hash_ = int.from_bytes(digest[-16:])
        for _ in range(4):
            index = hash_ & _MASK
            bits[index >> 3] |= 1 << (index & 7)
            hash_ >>= _BITS

    def __contains__(self, digest: object) -> bool:
        assert isinstance(digest, bytes)
        bits = self._bits
        hash_ = int.from_bytes(digest[-16:])
        for _ in range(4):
            index = hash_ & _MASK
            if not bits[index >> 3] >> (index & 7) & 1:
                return False
            hash_ >>= _BITS
        return True
