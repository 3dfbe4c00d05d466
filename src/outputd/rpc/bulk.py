"""Takes a huge request apart without stopping the event loop for it; never looks into the pieces.

A message whose bulk is one repeated field is, on the wire, a row of pieces that each say their length (protobuf encoding). To parse
a hundred thousand of them in one call would stop every open file for a tenth of a second.
"""

from __future__ import annotations

import asyncio
from typing import Final

from outputd.errors import Invalid

_STRIDE: Final = 2048
"""Pieces between two turns of the loop: about half a millisecond."""

_VARINT: Final = 0
_FIXED64: Final = 1
_LENGTH_DELIMITED: Final = 2
_FIXED32: Final = 5


async def take_apart(data: bytes, number: int, what: str) -> tuple[bytes, list[bytes]]:
    """The message without the repeated field `number` (1 to 15; strings or messages), and that field's values in order.

    Raises Invalid, naming `what`, where `data` is no message.
    """
    tag = number << 3 | _LENGTH_DELIMITED
    rest: list[bytes] = []
    pieces: list[bytes] = []
    at = 0
    end = len(data)
    try:
        while at < end:
            for _ in range(_STRIDE):
                if data[at] != tag:
                    start = at
                    at = _after_field(data, at, number)
                    rest.append(data[start:at])
                else:
                    length = data[at + 1]
                    at += 2
                    if length >= 0x80:
                        more = data[at]
                        if more < 0x80:  # most artifacts: 128 bytes to 16 KiB
                            length = length & 0x7F | more << 7
                            at += 1
                        else:
                            length, at = _varint(data, at - 1)
                    pieces.append(data[at : at + length])
                    at += length
                if at >= end:
                    break
            if at < end:
                await asyncio.sleep(0)
    except IndexError:
        at = end + 1
    except ValueError as error:
        raise Invalid(f"the request is not a {what}: {error}") from None
    if at > end:
        raise Invalid(f"the request is not a {what}: it ends within a field")
    return b"".join(rest), pieces


def _after_field(data: bytes, at: int, number: int) -> int:
    """Where the field that begins at `at` ends. IndexError if that is beyond the end, ValueError for what is no field."""
    start = at
    tag, at = _varint(data, at)
    kind = tag & 7
    if tag >> 3 == number and kind == _LENGTH_DELIMITED:
        # Its tag was written with more bytes than it needs. Legal perhaps, but nobody does it and it would break the order.
        raise ValueError(f"the tag at byte {start} is not minimal")
    if kind == _VARINT:
        return _varint(data, at)[1]
    if kind == _LENGTH_DELIMITED:
        length, at = _varint(data, at)
        return at + length
    if kind == _FIXED64:
        return at + 8
    if kind == _FIXED32:
        return at + 4
    raise ValueError(f"no field begins at byte {start}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"the number before byte {at} has more than ten bytes")
