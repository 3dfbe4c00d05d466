"""FastCDC 2020: where to cut a blob so that an insertion changes few chunks. Pure; never reads a file, never hashes a chunk.

Source: REv2, ChunkingFunction.FAST_CDC_2020, which refers to Xia et al., "The Design of Fast Content-Defined Chunking for Data
Deduplication Based Storage Systems" (2020), with normalization level 2 and the tables of its published implementations.

A byte costs 100 ns here. So cutting goes in steps of a millisecond, and who drives them serves others in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

# Masks have no bits above, and additions and shifts carry upwards only: the hash modulo 2**64 need not be known beyond.
_HASH_BITS: Final = (1 << 48) - 1
# MD5 of the byte repeated 64 times, its first eight bytes. (The comment in REv2 says MD5 of the byte: its vectors say this.)
_GEAR: Final = tuple(
    int.from_bytes(hashlib.md5(bytes([byte]) * 64, usedforsecurity=False).digest()[:8]) for byte in range(256)
)
# By the number of bits in it, from 8 on: the paper's, spread over the hash.
_MASKS: Final = {
    8: 0x1800035300,
    9: 0x19000353000,
    10: 0x590003530000,
    11: 0xD90003530000,
    12: 0xD90103530000,
    13: 0xD90303530000,
    14: 0xD90313530000,
    15: 0xD90F03530000,
    16: 0xD90303537000,
    17: 0xD90703537000,
    18: 0xD90707537000,
    19: 0xD91707537000,
    20: 0xD91747537000,
    21: 0xD91767537000,
    22: 0xD93767537000,
}
_STEP: Final = 8 << 10


@dataclass(frozen=True, slots=True)
class FastCdc:
    """One set of parameters. `average` in bytes."""

    average: int = 512 << 10
    seed: int = 0

    @property
    def valid(self) -> bool:
        """Whether REv2 allows it: a power of two from 1 KiB to 1 MiB, and 32 bits."""
        power = self.average > 0 and self.average & (self.average - 1) == 0
        return power and 1 << 10 <= self.average <= 1 << 20 and 0 <= self.seed < 1 << 32

    @property
    def largest(self) -> int:
        """Bytes of the longest chunk. A blob that is shorter is not cut."""
        return 4 * self.average

    def cut(self, data: bytes) -> Generator[None, None, int]:
        """The length of the first chunk, at the end of some steps.

        `data` is what is left of the blob, or as much of it as `largest`.
        """
        smallest = self.average // 4
        end = min(len(data), self.largest)
        if end <= smallest:
            return end
        bits = self.average.bit_length() - 1
        gears = [(gear ^ self.seed) & _HASH_BITS for gear in _GEAR]
        at = smallest
        fingerprint = 0
        # The reference goes two bytes at a time and so never looks at the last one of an odd number.
        for stop, mask in ((min(end, self.average), _MASKS[bits + 2]), (end, _MASKS[bits - 2])):
            stop &= ~1
            while at < stop:
                after = min(at + _STEP, stop)
                for index, gear in enumerate(map(gears.__getitem__, data[at:after]), at):
                    fingerprint = (fingerprint << 1) + gear & _HASH_BITS
                    if not fingerprint & mask:
                        return index
                at = after
                yield
        return end
