"""SHA256TREE: the published vectors, and the fast form against a plain twin written from the rule."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outputd.sha256tree import Sha256Tree

MASK = 0xFFFFFFFF
START = struct.unpack(
    ">8I", bytes.fromhex("cbbb9d5d629a292a9159015a152fecd867332667 8eb44a87db0c2e0d47b5481d")
)


def primes(count: int) -> list[int]:
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % prime for prime in found):
            found.append(candidate)
        candidate += 1
    return found


def cube_root_fraction(number: int) -> int:
    """The first 32 bits of the fraction: FIPS 180-4 section 4.2.2 defines the round constants so."""
    scaled = number << 96
    low, high = 0, 1 << 40
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**3 <= scaled else (low, middle - 1)
    return low & MASK


ROUND = [cube_root_fraction(prime) for prime in primes(64)]


def rotate(word: int, count: int) -> int:
    return (word >> count | word << (32 - count)) & MASK


def compress(block: bytes) -> bytes:
    """FIPS 180-4 section 6.2.2, less its last step."""
    w = list(struct.unpack(">16I", block))
    for t in range(16, 64):
        s0 = rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ w[t - 15] >> 3
        s1 = rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ w[t - 2] >> 10
        w.append((w[t - 16] + s0 + w[t - 7] + s1) & MASK)
    a, b, c, d, e, f, g, h = START
    for t in range(64):
        s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)
        t1 = (h + s1 + (e & f ^ ~e & g) + ROUND[t] + w[t]) & MASK
        s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)
        t2 = (s0 + (a & b ^ a & c ^ b & c)) & MASK
        a, b, c, d, e, f, g, h = (t1 + t2) & MASK, a, b, c, (d + t1) & MASK, e, f, g
    return struct.pack(">8I", a, b, c, d, e, f, g, h)


def plain(data: bytes) -> bytes:
    """The rule as REv2 states it."""
    if len(data) <= 1024:
        return hashlib.sha256(data).digest()
    left = 1 << (len(data) - 1).bit_length() - 1
    return compress(plain(data[:left]) + plain(data[left:]))


def fast(*pieces: bytes) -> bytes:
    hasher = Sha256Tree()
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.mark.parametrize("digest", [plain, fast])
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (1025, "36c0998b21839ef74300b9de47d96d1f62323dc81f2b4231e98ce70cd6ffe750"),
        (2048, "b584996386f01793751c5cf0c39561f51b7e9924b818943b3cb2f6928cea0fa9"),
        (4097, "c3ec942c1b8f4580320d3a06bcf4f8fe1f5db2be797ab67061ea4c2a95f208f2"),
    ],
)
def test_published_vectors(digest, size: int, expected: str) -> None:  # type: ignore[no-untyped-def]
    assert digest(pattern(size)).hex() == expected


@pytest.mark.parametrize("size", [1, 1023, 1024, 2047, 2049, 3072, 5 * 1024, 7 * 1024 + 1, 8192, 33 * 1024])
def test_every_shape_of_the_right_edge_equals_the_plain_twin(size: int) -> None:
    assert fast(pattern(size)) == plain(pattern(size))


def test_many_rows_are_sent_up_while_data_comes() -> None:
    # Three times as many leaves as are compressed at once, and a rest; the twin takes one compression a leaf.
    data = pattern(3 * 1024 * 1024 + 1536)
    whole = Sha256Tree()
    whole.update(data)
    left = Sha256Tree()
    left.update(data[: 2 << 20])
    right = Sha256Tree()
    right.update(data[2 << 20 :])
    assert whole.digest() == compress(left.digest() + right.digest())


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_splitting_the_input_does_not_matter(data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 6000))
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=6)))
    content = pattern(size)
    pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
    assert fast(*pieces) == fast(content)


def test_asking_for_the_digest_does_not_end_the_input() -> None:
    hasher = Sha256Tree()
    content = pattern(5000)
    for start in range(0, 5000, 700):
        hasher.update(content[start : start + 700])
        assert hasher.digest() == fast(content[: start + 700])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_taken(kind: type) -> None:
    assert fast(kind(pattern(3000))) == fast(pattern(3000))
