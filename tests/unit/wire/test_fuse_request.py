"""Requests as the kernel lays them out come back field by field; what the kernel never sends is refused."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from outputd.errors import Invalid
from outputd.wire import fuse_request as wire
from outputd.wire.fuse_abi import IN_HEADER_SIZE, WRITE_HEADER_SIZE, Init, Opcode
from outputd.wire.fuse_request import MalformedRequest
from tests import fake_kernel as kernel


def _decode(decode: Callable[..., Any], message: bytes, *arguments: Any) -> Any:
    """Decode as the daemon does: out of a larger buffer that still holds other bytes behind the message."""
    buffer = memoryview(bytearray(message + b"\xff" * 64))
    end = wire.decode_header(buffer, len(message))[6]
    return decode(buffer, end, *arguments)


def _decode_forgets(buffer: memoryview, end: int) -> list[tuple[int, int]]:
    return list(wire.decode_batch_forget(buffer, end))


def test_the_header_tells_who_asks_what() -> None:
    message = kernel.request(Opcode.LOOKUP, b"a\0", unique=7, nodeid=9, uid=1000, gid=100, pid=4321)
    assert wire.decode_header(message, len(message)) == (Opcode.LOOKUP, 7, 9, 1000, 100, 4321, len(message))


def test_a_body_ends_where_its_extensions_begin() -> None:
    message = kernel.request(Opcode.MKDIR, kernel.mkdir_in(0o755, 0o22), b"dir\0", extensions=b"\x01" * 16)
    assert wire.decode_header(message, len(message))[6] == len(message) - 16
    assert _decode(wire.decode_mkdir, message) == (0o755, 0o22, b"dir")


# One row an opcode: the decoder, what the kernel sends, what it means.
REQUESTS: list[tuple[Callable[..., Any], tuple[Any, ...], Any]] = [
    (wire.decode_name, (b"n\xff me\0",), b"n\xff me"),
    (wire.decode_forget, (kernel.forget_in(5),), 5),
    (
        _decode_forgets,
        (kernel.batch_forget_in(2, 0), kernel.forget_one(8, 1), kernel.forget_one(1 << 63, 3)),
        [(8, 1), (1 << 63, 3)],
    ),
    (_decode_forgets, (kernel.batch_forget_in(0, 0),), []),
    (wire.decode_getattr, (kernel.getattr_in(1, 0, 77),), (1, 77)),
    (
        wire.decode_setattr,
        (
            kernel.setattr_in(
                valid=0x7F,
                fh=1,
                size=2,
                lock_owner=3,
                atime=4,
                mtime=(1 << 64) - 1,
                ctime=5,
                atimensec=6,
                mtimensec=999_999_999,
                ctimensec=7,
                mode=0o100644,
                uid=8,
                gid=9,
            ),
        ),
        (0x7F, 1, 2, 3, 4_000_000_006, -1, 5_000_000_007, 0o100644, 8, 9),
    ),
    (wire.decode_symlink, (b"name\0", b"../to\0"), (b"name", b"../to")),
    (wire.decode_mknod, (kernel.mknod_in(0o10600, 5, 0o22), b"fifo\0"), (0o10600, 5, 0o22, b"fifo")),
    (wire.decode_mkdir, (kernel.mkdir_in(0o700, 0o77), b"d\0"), (0o700, 0o77, b"d")),
    (wire.decode_rename, (kernel.rename_in(12), b"old\0", b"new\0"), (12, 0, b"old", b"new")),
    (wire.decode_rename2, (kernel.rename2_in(12, 2, 0), b"old\0", b"new\0"), (12, 2, b"old", b"new")),
    (wire.decode_link, (kernel.link_in(33), b"hard\0"), (33, b"hard")),
    (wire.decode_open, (kernel.open_in(0o2, 1),), (0o2, 1)),
    (
        wire.decode_create,
        (kernel.create_in(0o101, 0o644, 0o22, 1), b"f\0"),
        (0o101, 0o644, 0o22, 1, b"f"),
    ),
    (wire.decode_read, (kernel.read_in(1, 2, 3, 4, 5, 6, 0),), (1, 2, 3, 4, 5, 6)),
    (wire.decode_write, (kernel.write_in(1, 2, 4, 3, 5, 6, 0), b"data"), (1, 2, 3, 5, 6, b"data")),
    (wire.decode_write, (kernel.write_in(1, 2, 0, 3, 5, 6, 0),), (1, 2, 3, 5, 6, b"")),
    (wire.decode_release, (kernel.release_in(1, 2, 3, 4),), (1, 2, 3, 4)),
    (wire.decode_flush, (kernel.flush_in(1, 0, 0, 4),), (1, 4)),
    (wire.decode_fsync, (kernel.fsync_in(1, 1, 0),), (1, 1)),
    (wire.decode_getxattr, (kernel.getxattr_in(256, 0), b"user.a\0"), (256, b"user.a")),
    (wire.decode_listxattr, (kernel.getxattr_in(64, 0),), 64),
    (wire.decode_access, (kernel.access_in(4, 0),), 4),
    (
        wire.decode_lock,
        (kernel.lk_in(1, 2, kernel.file_lock(3, 4, 5, 6), 7, 0),),
        (1, 2, 3, 4, 5, 6, 7),
    ),
    (wire.decode_interrupt, (kernel.interrupt_in(9),), 9),
    (wire.decode_ioctl, (kernel.ioctl_in(1, 2, 3, 4, 5, 6), b"bytes"), (1, 2, 3, 4, 6, b"bytes")),
    (wire.decode_poll, (kernel.poll_in(1, 2, 3, 4),), (1, 2, 3, 4)),
    (wire.decode_fallocate, (kernel.fallocate_in(1, 2, 3, 4, 0),), (1, 2, 3, 4)),
    (wire.decode_lseek, (kernel.lseek_in(1, 2, 3, 0),), (1, 2, 3)),
    (
        wire.decode_copy_file_range,
        (kernel.copy_file_range_in(1, 2, 3, 4, 5, 6, 7),),
        (1, 2, 3, 4, 5, 6, 7),
    ),
    (wire.decode_statx, (kernel.statx_in(1, 0, 2, 3, 4),), (1, 2, 3, 4)),
]


@pytest.mark.parametrize(("decode", "parts", "meant"), REQUESTS, ids=lambda v: getattr(v, "__name__", ""))
def test_every_field_comes_back(decode: Callable[..., Any], parts: tuple[Any, ...], meant: Any) -> None:
    assert _decode(decode, kernel.request(0, *parts)) == meant


@pytest.mark.parametrize(("decode", "parts", "meant"), REQUESTS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_body_one_byte_short_is_malformed(
    decode: Callable[..., Any], parts: tuple[Any, ...], meant: Any
) -> None:
    with pytest.raises(MalformedRequest):
        _decode(decode, kernel.request(0, b"".join(map(bytes, parts))[:-1]))


@pytest.mark.parametrize("extended", [False, True])
def test_setxattr_has_two_layouts(extended: bool) -> None:
    head = kernel.setxattr_in(5, 1, 1) if extended else kernel.compat_setxattr_in(5, 1)
    message = kernel.request(Opcode.SETXATTR, head, b"user.n\0", b"v\0lue")
    assert _decode(wire.decode_setxattr, message, extended) == (b"user.n", b"v\0lue", 1, int(extended))


def test_setxattr_takes_an_empty_value() -> None:
    message = kernel.request(Opcode.SETXATTR, kernel.compat_setxattr_in(0, 0), b"user.n\0")
    assert _decode(wire.decode_setxattr, message, False) == (b"user.n", b"", 0, 0)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"\x01\0\0\0", "at least 48"),
        (bytes(kernel.compat_setxattr_in(9, 0)) + b"user.n\0", "size: 9, but 7"),
        (bytes(kernel.compat_setxattr_in(0, 0)) + b"user.n", "no NUL"),
        (bytes(kernel.compat_setxattr_in(7, 0)) + b"user.n\0", "name: nothing"),
    ],
)
def test_setxattr_that_does_not_add_up_is_malformed(body: bytes, text: str) -> None:
    with pytest.raises(MalformedRequest, match=text):
        _decode(wire.decode_setxattr, kernel.request(Opcode.SETXATTR, body), False)


def test_init_of_an_old_kernel_has_no_upper_flags() -> None:
    message = kernel.request(Opcode.INIT, bytes(kernel.init_in(7, 31, 131072, Init.MAX_PAGES))[:16])
    assert _decode(wire.decode_init, message) == (7, 31, 131072, Init.MAX_PAGES)


def test_init_of_a_new_kernel_has_upper_flags() -> None:
    message = kernel.request(
        Opcode.INIT, kernel.init_in(7, 45, 131072, Init.INIT_EXT, Init.PASSTHROUGH >> 32)
    )
    assert _decode(wire.decode_init, message) == (7, 45, 131072, Init.INIT_EXT | Init.PASSTHROUGH)


def test_init_that_promises_upper_flags_must_bring_them() -> None:
    message = kernel.request(Opcode.INIT, bytes(kernel.init_in(7, 45, 131072, Init.INIT_EXT))[:16])
    with pytest.raises(MalformedRequest, match="INIT_EXT"):
        _decode(wire.decode_init, message)


@pytest.mark.parametrize("body", [b"", b"\0", b"a", b"a\0b\0", b"\0\0"])
def test_a_name_is_some_bytes_and_one_nul(body: bytes) -> None:
    with pytest.raises(MalformedRequest, match="name"):
        _decode(wire.decode_name, kernel.request(Opcode.LOOKUP, body))


@pytest.mark.parametrize("body", [b"", b"a\0", b"a\0b", b"\0b\0", b"a\0\0", b"a\0b\0c\0"])
def test_two_names_are_two(body: bytes) -> None:
    with pytest.raises(MalformedRequest, match="names"):
        _decode(wire.decode_symlink, kernel.request(Opcode.SYMLINK, body))


def test_forgetting_more_than_was_sent_is_malformed() -> None:
    message = kernel.request(
        Opcode.BATCH_FORGET, kernel.batch_forget_in(0xFFFFFFFF, 0), kernel.forget_one(1, 1)
    )
    with pytest.raises(MalformedRequest, match="count"):
        _decode(wire.decode_batch_forget, message)


def test_write_data_is_a_view_of_the_buffer() -> None:
    message = kernel.request(Opcode.WRITE, kernel.write_in(1, 0, 3, 0, 0, 0, 0), b"abc")
    buffer = bytearray(message)
    data = wire.decode_write(memoryview(buffer), len(message))[5]
    buffer[WRITE_HEADER_SIZE] = ord("X")
    assert bytes(data) == b"Xbc"


def test_a_header_must_be_whole_and_tell_its_length() -> None:
    message = kernel.request(Opcode.STATFS)
    with pytest.raises(MalformedRequest, match="39 bytes"):
        wire.decode_header(message, 39)
    with pytest.raises(MalformedRequest, match="len: 40, but 41"):
        wire.decode_header(message + b"\0", 41)


def test_extensions_must_fit() -> None:
    header = kernel.in_header(len=40, opcode=Opcode.STATFS, unique=2, total_extlen=1)
    with pytest.raises(MalformedRequest, match="total_extlen"):
        wire.decode_header(bytes(header), 40)


def test_malformed_is_the_callers_fault() -> None:
    assert issubclass(MalformedRequest, Invalid)


def test_sizes_are_those_of_the_abi() -> None:
    assert ctypes.sizeof(kernel.in_header) == IN_HEADER_SIZE == 40
    assert ctypes.sizeof(kernel.in_header) + ctypes.sizeof(kernel.write_in) == WRITE_HEADER_SIZE == 80
    assert ctypes.sizeof(kernel.init_in) == 64
    assert ctypes.sizeof(kernel.setattr_in) == 88
    assert ctypes.sizeof(kernel.copy_file_range_in) == 56
