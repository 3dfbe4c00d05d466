from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outputd.errors import Invalid
from outputd.store.zstd import Compressing, Decompressing, compressed, decompressed


@given(st.lists(st.binary(max_size=2000), max_size=4), st.integers(1, 500))
def test_frames_in_pieces_of_any_size(parts: list[bytes], length: int) -> None:
    whole = b"".join(parts)
    sent = b"".join(map(compressed, parts))
    frames = Decompressing(len(whole))
    came = [
        piece for start in range(0, len(sent), length) for piece in frames.push(sent[start : start + length])
    ]
    frames.end()
    assert b"".join(came) == whole


def test_one_frame_made_in_pieces() -> None:
    frame = Compressing()
    sent = b"".join([frame.push(b"a" * 100_000), frame.push(b""), frame.push(b"b"), frame.end()])
    assert decompressed(sent, 100_001) == b"a" * 100_000 + b"b"


@pytest.mark.parametrize("size", [0, 1, 99, 101])
def test_another_size_than_told_is_refused(size: int) -> None:
    with pytest.raises(Invalid, match="stand for"):
        decompressed(compressed(bytes(100)), size)


def test_a_frame_of_gigabytes_is_unpacked_no_further_than_told() -> None:
    frame = Compressing()
    sent = b"".join([*(frame.push(bytes(1 << 20)) for _ in range(64)), frame.end()])
    frames = Decompressing(1000)
    with pytest.raises(Invalid, match="more than the 1000 of the blob"):
        list(frames.push(sent))


@pytest.mark.parametrize(
    "sent", [b"no frame at all", compressed(b"data")[:-1], compressed(b"data") + b"\0", b"("]
)
def test_what_is_no_zstandard_is_refused(sent: bytes) -> None:
    with pytest.raises(Invalid):
        decompressed(sent, 4)
