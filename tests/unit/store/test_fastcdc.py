"""Where blobs are cut, against the published algorithm in its own words (two bytes at a time, 64 bits)."""

from __future__ import annotations

import hashlib
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outputd.store.fastcdc import _GEAR, _MASKS, FastCdc


def length_of(steps: Generator[None, None, int]) -> int:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            length: int = end.value
            return length


def lengths(cdc: FastCdc, data: bytes) -> list[int]:
    found = []
    while data:
        found.append(length_of(cdc.cut(data)))
        data = data[found[-1] :]
    return found


def plain_cut(cdc: FastCdc, data: bytes) -> int:
    whole = (1 << 64) - 1
    gear = [value ^ cdc.seed for value in _GEAR]
    shifted = [(value << 1 ^ cdc.seed << 1) & whole for value in _GEAR]
    smallest, average, end = cdc.average // 4, cdc.average, min(len(data), cdc.largest)
    if len(data) <= smallest:
        return len(data)
    middle = min(end, average)
    bits = cdc.average.bit_length() - 1
    fingerprint = 0
    for start, stop, mask in (
        (smallest & ~1, middle & ~1, _MASKS[bits + 2]),
        (middle & ~1, end & ~1, _MASKS[bits - 2]),
    ):
        for at in range(start, stop, 2):
            fingerprint = (fingerprint << 2 & whole) + shifted[data[at]] & whole
            if not fingerprint & mask << 1:
                return at
            fingerprint = fingerprint + gear[data[at + 1]] & whole
            if not fingerprint & mask:
                return at + 1
    return end


def random(size: int, seed: bytes = b"") -> bytes:
    return hashlib.shake_128(b"chunks" + seed).digest(size)


def test_the_table_is_the_published_one() -> None:
    assert (_GEAR[0], _GEAR[1]) == (0x3B5D3C7D207E37DC, 0x784D68BA91123086)


@pytest.mark.parametrize("average", [1 << 10, 1 << 12, 1 << 14])
@pytest.mark.parametrize("seed", [0, 666, (1 << 32) - 1])
def test_cuts_are_those_of_the_algorithm(average: int, seed: int) -> None:
    cdc = FastCdc(average, seed)
    data = random(20 * average + 1)
    found = lengths(cdc, data)
    assert sum(found) == len(data)
    assert all(average // 4 < length <= cdc.largest for length in found[:-1])
    at = 0
    for length in found:
        assert length == plain_cut(cdc, data[at:])
        at += length
    assert len(set(found)) > 5


@given(st.integers(0, 9000), st.binary(max_size=3))
def test_any_size_and_little_entropy(size: int, pattern: bytes) -> None:
    cdc = FastCdc(1 << 10)
    data = (pattern * size)[:size]
    if data:
        assert length_of(cdc.cut(data)) == plain_cut(cdc, data)


def test_an_insertion_leaves_most_chunks_as_they_were() -> None:
    cdc = FastCdc(1 << 12)
    data = random(1 << 18)
    changed = data[:100_000] + b"inserted" + data[100_000:]

    def chunks(data: bytes) -> set[bytes]:
        found, at = set(), 0
        for length in lengths(cdc, data):
            found.add(data[at : at + length])
            at += length
        return found

    assert len(chunks(changed) - chunks(data)) <= 3


@pytest.mark.parametrize(
    ("average", "seed", "valid"),
    [
        (1 << 10, 0, True),
        (1 << 20, 1, True),
        (512, 0, False),
        (1 << 21, 0, False),
        (3000, 0, False),
        (0, 0, False),
    ],
)
def test_parameters_that_rev2_allows(average: int, seed: int, valid: bool) -> None:
    assert FastCdc(average, seed).valid == valid
    assert not FastCdc(average, 1 << 32).valid
