from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outputd._proto import bytestream_pb2 as bytestream
from outputd.errors import Corrupt
from outputd.store.remote.replies import piece_of


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 2_097_152])
def test_a_piece_is_what_protobuf_reads(size: int) -> None:
    data = bytes(size)
    piece = piece_of(bytestream.ReadResponse(data=data).SerializeToString(), "read")
    assert piece == data
    assert isinstance(piece, memoryview) == (size > 0)


@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda rest: b"\x52" + rest))
def test_whatever_comes_is_read_as_protobuf_does(reply: bytes) -> None:
    try:
        expected = bytestream.ReadResponse.FromString(reply).data
    except Exception:
        with pytest.raises(Corrupt):
            piece_of(reply, "read")
    else:
        assert piece_of(reply, "read") == expected


def test_the_last_of_several_fields_counts() -> None:
    one, two = (bytestream.ReadResponse(data=data).SerializeToString() for data in (b"one", b"two"))
    assert piece_of(one + two, "read") == b"two"
