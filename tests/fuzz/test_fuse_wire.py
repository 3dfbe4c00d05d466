"""Whatever lies in the buffer, a decoder accepts it or raises MalformedRequest, and never looks behind the message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outputd.wire import fuse_request as wire
from outputd.wire.fuse_abi import IN_HEADER_SIZE
from outputd.wire.fuse_request import MalformedRequest
from tests import fake_kernel as kernel

DECODERS: dict[str, Callable[[memoryview, int], Any]] = {
    name: decode
    for name, decode in vars(wire).items()
    if name.startswith("decode_") and name not in ("decode_header", "decode_setxattr")
} | {
    "setxattr": lambda buffer, end: wire.decode_setxattr(buffer, end, False),
    "setxattr extended": lambda buffer, end: wire.decode_setxattr(buffer, end, True),
}

# Arbitrary bytes alone seldom pass a first check, so bodies are also made of what real ones are made of.
PIECES = st.one_of(
    st.binary(max_size=12),
    st.integers(0, 40).map(lambda n: n.to_bytes(4, "little")),
    st.integers(0, 40).map(bytes),
    st.sampled_from([b"name\0", b"\0", b"a", b"\xff" * 8]),
)
BODIES = st.one_of(st.binary(max_size=160), st.lists(PIECES, max_size=12).map(b"".join))
NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: 0 not in name)
U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)


@given(message=st.binary(max_size=64))
def test_any_header_is_read_or_refused(message: bytes) -> None:
    try:
        end = wire.decode_header(message, len(message))[6]
    except MalformedRequest:
        return
    assert IN_HEADER_SIZE <= end <= len(message)


@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS.keys())
@settings(max_examples=40)  # thirty decoders share the time of this file
@given(body=BODIES)
def test_any_body_is_read_or_refused(decode: Callable[[memoryview, int], Any], body: bytes) -> None:
    _check(decode, body)


@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS.keys())
@pytest.mark.parametrize("filling", [0, 1, 0x40, 0xFF])
def test_a_body_of_any_length_is_read_or_refused(
    decode: Callable[[memoryview, int], Any], filling: int
) -> None:
    for length in range(100):
        _check(decode, bytes((filling,)) * length)
        _check(decode, bytes((filling,)) * length + b"\0")


def _check(decode: Callable[[memoryview, int], Any], body: bytes) -> None:
    message = bytes(IN_HEADER_SIZE) + body
    outcomes = []
    # What lies behind the message, from an earlier and longer one, must not be seen.
    for behind in (b"", b"\0" * 128, b"\xff" * 128):
        try:
            outcomes.append(repr(_plain(decode(memoryview(message + behind), len(message)))))
        except MalformedRequest as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1] == outcomes[2]


def _plain(decoded: Any) -> Any:
    """A value whose repr() tells all of it: a view or an iterator shows only its address."""
    if isinstance(decoded, tuple):
        return tuple(bytes(field) if isinstance(field, memoryview) else field for field in decoded)
    return list(decoded) if isinstance(decoded, Iterator) else decoded


@given(opcode=U32, unique=U64, nodeid=U64, uid=U32, gid=U32, pid=U32, units=st.integers(0, 8), name=NAMES)
def test_a_lookup_comes_back_as_it_was_sent(
    opcode: int, unique: int, nodeid: int, uid: int, gid: int, pid: int, units: int, name: bytes
) -> None:
    message = kernel.request(
        opcode,
        name + b"\0",
        unique=unique,
        nodeid=nodeid,
        uid=uid,
        gid=gid,
        pid=pid,
        extensions=b"\xff" * 8 * units,
    )
    *who, end = wire.decode_header(message, len(message))
    assert who == [opcode, unique, nodeid, uid, gid, pid]
    assert wire.decode_name(message, end) == name


@given(newdir=U64, flags=U32, old=NAMES, new=NAMES)
def test_a_rename_comes_back_as_it_was_sent(newdir: int, flags: int, old: bytes, new: bytes) -> None:
    message = kernel.request(0, kernel.rename2_in(newdir, flags, 0), old + b"\0", new + b"\0")
    assert wire.decode_rename2(message, len(message)) == (newdir, flags, old, new)


@given(name=NAMES, value=st.binary(max_size=300), flags=U32, more=U32, extended=st.booleans())
def test_a_setxattr_comes_back_as_it_was_sent(
    name: bytes, value: bytes, flags: int, more: int, extended: bool
) -> None:
    size = len(value)
    head = kernel.setxattr_in(size, flags, more) if extended else kernel.compat_setxattr_in(size, flags)
    message = kernel.request(0, head, name + b"\0", value)
    expected = (name, value, flags, more if extended else 0)
    assert wire.decode_setxattr(message, len(message), extended) == expected


@given(forgotten=st.lists(st.tuples(U64, U64), max_size=50))
def test_a_batch_of_forgets_comes_back_as_it_was_sent(forgotten: list[tuple[int, int]]) -> None:
    ones = [kernel.forget_one(*one) for one in forgotten]
    message = kernel.request(0, kernel.batch_forget_in(len(ones), 0), *ones)
    assert list(wire.decode_batch_forget(message, len(message))) == forgotten
