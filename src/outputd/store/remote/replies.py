"""What the bytes of a reply say, or that they are no reply; pure."""

from __future__ import annotations

from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from outputd._proto import bytestream_pb2 as bytestream
from outputd.errors import Corrupt
from outputd.store.base import Piece

_DATA: Final = bytestream.ReadResponse.DATA_FIELD_NUMBER << 3 | 2  # of wire type LEN
_LENGTH_BYTES: Final = 5

M = TypeVar("M", bound=Message)


def parse(message: type[M], data: bytes, doing: str) -> M:
    """Raises Corrupt."""
    try:
        return message.FromString(data)
    except DecodeError as error:
        raise Corrupt(f"cannot {doing}: the reply is no {message.__name__}") from error


def piece_of(reply: bytes, doing: str) -> Piece:
    """The data of a ByteStream.ReadResponse. Raises Corrupt.

    Where nothing else is in the message, as ever, it stays where it came: protobuf would copy it twice.
    """
    if reply and reply[0] == _DATA:
        length = 0
        for at, byte in enumerate(reply[1 : 1 + _LENGTH_BYTES]):
            length |= (byte & 0x7F) << (7 * at)
            if byte < 0x80:
                if 2 + at + length == len(reply):
                    return memoryview(reply)[2 + at :]
                break
    return parse(bytestream.ReadResponse, reply, doing).data
