"""Requests taken apart by hand mean what protobuf says they mean, whatever their shape, and broken ones are refused."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from outputd._proto import bazel_output_service_pb2 as bos
from outputd.errors import Invalid
from outputd.rpc.bulk import take_apart


def _apart(data: bytes) -> tuple[bytes, list[bytes]]:
    return asyncio.run(take_apart(data, 2, "BatchStatRequest"))


@given(st.text(max_size=20), st.lists(st.text(max_size=300), max_size=20))
def test_head_and_pieces_are_what_protobuf_sees(build_id: str, paths: list[str]) -> None:
    message = bos.BatchStatRequest(build_id=build_id, paths=paths)
    head, pieces = _apart(message.SerializeToString())
    assert bos.BatchStatRequest.FromString(head) == bos.BatchStatRequest(build_id=build_id)
    assert [piece.decode() for piece in pieces] == paths


@given(st.binary(max_size=60))
def test_any_bytes_are_taken_as_protobuf_takes_them_or_refused(data: bytes) -> None:
    try:
        head, pieces = _apart(data)
    except Invalid:
        return
    again = b"".join(b"\x12" + _varint(len(piece)) + piece for piece in pieces)
    try:
        expected = bos.BatchStatRequest.FromString(data)
    except DecodeError:
        # What the pieces are nobody has looked at yet: here, no UTF-8. Or the head is broken.
        with pytest.raises(DecodeError):
            bos.BatchStatRequest.FromString(head + again)
    else:
        assert bos.BatchStatRequest.FromString(head + again) == expected


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16383, 16384, 3_000_000])
def test_a_piece_of_any_length(length: int) -> None:
    data = bos.BatchStatRequest(build_id="b", paths=["x" * length, "y"]).SerializeToString()
    assert _apart(data)[1] == [b"x" * length, b"y"]


def test_fields_in_any_order_and_ones_nobody_knows() -> None:
    unknown = b"\x78\x05" + b"\x79" + bytes(8) + b"\x7a\x03abc" + b"\x7d" + bytes(4)
    data = b"\x12\x01p" + unknown + b"\x0a\x01b" + b"\x12\x01q" + unknown
    assert _apart(data) == (unknown + b"\x0a\x01b" + unknown, [b"p", b"q"])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x12", "ends within a field"),
        (b"\x12\x05abc", "ends within a field"),
        (b"\x12\x80", "ends within a field"),
        (b"\x12\xff\xff", "ends within a field"),
        (b"\x0a\x05abc", "ends within a field"),
        (b"\x0b", "no field begins at byte 0"),
        (b"\x12\x00\x0e", "no field begins at byte 2"),
        (b"\x92\x00\x01p", "the tag at byte 0 is not minimal"),
        (b"\x12" + b"\xff" * 10 + b"\x01", "more than ten bytes"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(Invalid, match=f"the request is not a BatchStatRequest: .*{reason}"):
        _apart(data)


def test_the_loop_has_its_turns() -> None:
    data = bos.BatchStatRequest(paths=["x"] * 20_000).SerializeToString()

    async def run() -> int:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counter = asyncio.create_task(count())
        _, pieces = await take_apart(data, 2, "BatchStatRequest")
        counter.cancel()
        assert len(pieces) == 20_000
        return turns

    assert asyncio.run(run()) >= 5


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
