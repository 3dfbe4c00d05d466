"""Replies and notifications lie as the kernel's own structs say, every field in its place."""

from __future__ import annotations

import ctypes
import errno
import stat
import struct
from typing import Any

import pytest

from outputd.wire import fuse_reply as wire
from outputd.wire.fuse_abi import FOPEN_KEEP_CACHE, OUT_HEADER_SIZE, Init, NotifyCode
from tests import fake_kernel as kernel

SECOND = 1_000_000_000

ATTR = wire.attr(11, 12, 13, 14 * SECOND + 15, 16 * SECOND + 17, -1, stat.S_IFREG | 0o755, 18, 19, 20, 21, 22)
ATTR_FIELDS = {
    "ino": 11,
    "size": 12,
    "blocks": 13,
    "atime": 14,
    "atimensec": 15,
    "mtime": 16,
    "mtimensec": 17,
    "ctime": (1 << 64) - 1,  # a second before 1970, as the kernel reads it back into a time64_t
    "ctimensec": 999_999_999,
    "mode": stat.S_IFREG | 0o755,
    "nlink": 18,
    "uid": 19,
    "gid": 20,
    "rdev": 21,
    "blksize": 22,
    "flags": 0,
}
ENTRY_FIELDS = {
    "nodeid": 3,
    "generation": 4,
    "entry_valid": 5,
    "entry_valid_nsec": 6,
    "attr_valid": 7,
    "attr_valid_nsec": 8,
    "attr": ATTR_FIELDS,
}
VALIDITY = wire.entry_validity(5 * SECOND + 6, 7 * SECOND + 8)


def _fields(value: Any) -> Any:
    if isinstance(value, ctypes.Structure):
        return {name: _fields(getattr(value, name)) for name, *_ in value._fields_}
    return list(value) if isinstance(value, ctypes.Array) else value


def _read(message: bytes, layout: type[Any], unique: int = 99, error: int = 0) -> Any:
    """Check the out header and return the fields of the body, which must be exactly the struct."""
    header = kernel.out_header.from_buffer_copy(message)
    assert (header.len, header.error, header.unique) == (len(message), error, unique)
    assert len(message) == OUT_HEADER_SIZE + ctypes.sizeof(layout)
    return _fields(layout.from_buffer_copy(message, OUT_HEADER_SIZE))


def test_sizes_are_those_of_the_abi() -> None:
    sizes = {
        kernel.out_header: 16,
        kernel.attr: 88,
        kernel.entry_out: 128,
        kernel.attr_out: 104,
        kernel.open_out: 16,
        kernel.statfs_out: 80,
        kernel.init_out: 64,
        kernel.statx: 256,
        kernel.statx_out: 288,
        kernel.direntplus: 152,
        kernel.notify_inval_inode_out: 24,
        kernel.notify_inval_entry_out: 16,
        kernel.notify_delete_out: 24,
    }
    assert {layout: ctypes.sizeof(layout) for layout in sizes} == sizes


def test_attributes() -> None:
    assert len(ATTR) == 88
    assert _fields(kernel.attr.from_buffer_copy(ATTR)) == ATTR_FIELDS


def test_error() -> None:
    assert wire.error_reply(99, errno.ENOENT) == bytes(kernel.out_header(16, -2, 99))


def test_empty() -> None:
    assert wire.empty_reply(1 << 63) == bytes(kernel.out_header(16, 0, 1 << 63))


def test_data() -> None:
    assert wire.data_reply(99, b"bytes") == bytes(kernel.out_header(21, 0, 99)) + b"bytes"
    assert wire.data_header(99, 5) + b"bytes" == wire.data_reply(99, b"bytes")


def test_entry() -> None:
    assert _read(wire.entry_reply(99, 3, 4, VALIDITY, ATTR), kernel.entry_out) == ENTRY_FIELDS


def test_negative_entry_has_nodeid_0_and_an_age() -> None:
    entry = _read(wire.negative_entry_reply(99, VALIDITY), kernel.entry_out)
    zeros = dict.fromkeys(ATTR_FIELDS, 0)
    assert entry == ENTRY_FIELDS | {"nodeid": 0, "generation": 0, "attr": zeros}


def test_attr_reply() -> None:
    message = wire.attr_reply(99, wire.attr_validity(7 * SECOND + 8), ATTR)
    assert _read(message, kernel.attr_out) == {
        "attr_valid": 7,
        "attr_valid_nsec": 8,
        "dummy": 0,
        "attr": ATTR_FIELDS,
    }


def test_open() -> None:
    opened = {"fh": 5, "open_flags": FOPEN_KEEP_CACHE, "backing_id": -1}
    assert _read(wire.open_reply(99, 5, FOPEN_KEEP_CACHE, -1), kernel.open_out) == opened
    assert _read(wire.open_reply(99, 5, 0), kernel.open_out)["backing_id"] == 0


def test_create() -> None:
    message = wire.create_reply(99, 3, 4, VALIDITY, ATTR, 5, 6, 7)
    opened = {"fh": 5, "open_flags": 6, "backing_id": 7}
    assert _read(message, kernel.create_out) == {"entry": ENTRY_FIELDS, "open": opened}


@pytest.mark.parametrize(
    ("message", "layout", "field"),
    [
        (wire.write_reply(99, 7), kernel.write_out, "size"),
        (wire.xattr_size_reply(99, 7), kernel.getxattr_out, "size"),
        (wire.poll_reply(99, 7), kernel.poll_out, "revents"),
        (wire.lseek_reply(99, 7), kernel.lseek_out, "offset"),
        (wire.copy_file_range_64_reply(99, 7), kernel.copy_file_range_out, "bytes_copied"),
    ],
    ids=["write", "xattr size", "poll", "lseek", "copy_file_range_64"],
)
def test_one_number(message: bytes, layout: type[Any], field: str) -> None:
    assert _read(message, layout)[field] == 7


def test_statfs() -> None:
    assert _read(wire.statfs_reply(99, 1, 2, 3, 4, 5, 6, 7, 8), kernel.statfs_out) == {
        "blocks": 1,
        "bfree": 2,
        "bavail": 3,
        "files": 4,
        "ffree": 5,
        "bsize": 6,
        "namelen": 7,
        "frsize": 8,
        "padding": 0,
        "spare": [0] * 6,
    }


def test_lock() -> None:
    lock = {"start": 1, "end": 2, "type": 3, "pid": 4}
    assert _read(wire.lock_reply(99, 1, 2, 3, 4), kernel.lk_out) == {"lk": lock}


def test_ioctl() -> None:
    message = wire.ioctl_reply(99, -1, b"answer")
    out = {"result": -1, "flags": 0, "in_iovs": 0, "out_iovs": 0}
    assert message[:4] == struct.pack("=I", len(message))
    assert _fields(kernel.ioctl_out.from_buffer_copy(message, OUT_HEADER_SIZE)) == out
    assert message.endswith(b"answer")


def test_init() -> None:
    message = wire.init_reply(
        99,
        minor=45,
        max_readahead=1,
        flags=Init.INIT_EXT | Init.MAX_PAGES | Init.PASSTHROUGH,
        max_background=2,
        congestion_threshold=3,
        max_write=4,
        time_gran=5,
        max_pages=6,
        max_stack_depth=7,
        request_timeout=8,
    )
    assert _read(message, kernel.init_out) == {
        "major": 7,
        "minor": 45,
        "max_readahead": 1,
        "flags": Init.INIT_EXT | Init.MAX_PAGES,
        "max_background": 2,
        "congestion_threshold": 3,
        "max_write": 4,
        "time_gran": 5,
        "max_pages": 6,
        "map_alignment": 0,
        "flags2": Init.PASSTHROUGH >> 32,
        "max_stack_depth": 7,
        "request_timeout": 8,
        "unused": [0] * 11,
    }


def test_init_refuses_upper_flags_that_the_kernel_would_not_read() -> None:
    with pytest.raises(AssertionError, match="INIT_EXT"):
        wire.init_reply(
            99,
            minor=45,
            max_readahead=1,
            flags=Init.PASSTHROUGH,
            max_background=2,
            congestion_threshold=3,
            max_write=4,
            time_gran=5,
            max_pages=6,
        )


def test_statx() -> None:
    message = wire.statx_reply(
        99,
        validity=1 * SECOND + 2,
        mask=3,
        blksize=4,
        nlink=5,
        uid=6,
        gid=7,
        mode=8,
        ino=9,
        size=10,
        blocks=11,
        atime=12 * SECOND + 13,
        btime=14 * SECOND + 15,
        ctime=16 * SECOND + 17,
        mtime=-1,
        rdev_major=18,
        rdev_minor=19,
    )
    out = _read(message, kernel.statx_out)
    assert (out["attr_valid"], out["attr_valid_nsec"], out["flags"]) == (1, 2, 0)
    assert out["stat"] == {
        "mask": 3,
        "blksize": 4,
        "attributes": 0,
        "nlink": 5,
        "uid": 6,
        "gid": 7,
        "mode": 8,
        "spare0": 0,
        "ino": 9,
        "size": 10,
        "blocks": 11,
        "attributes_mask": 0,
        "atime": {"tv_sec": 12, "tv_nsec": 13, "reserved": 0},
        "btime": {"tv_sec": 14, "tv_nsec": 15, "reserved": 0},
        "ctime": {"tv_sec": 16, "tv_nsec": 17, "reserved": 0},
        "mtime": {"tv_sec": -1, "tv_nsec": 999_999_999, "reserved": 0},
        "rdev_major": 18,
        "rdev_minor": 19,
        "dev_major": 0,
        "dev_minor": 0,
        "spare2": [0] * 14,
    }


@pytest.mark.parametrize("length", range(1, 10))
def test_directory_records_are_padded_to_eight_bytes(length: int) -> None:
    name = b"n" * length
    padding = bytes(-length % 8)
    head = {"ino": 11, "off": 30, "namelen": length, "type": 4}  # DT_DIR

    plain = wire.dirent(11, 30, name, stat.S_IFDIR | 0o755)
    assert _fields(kernel.dirent.from_buffer_copy(plain)) == head
    assert plain[24:] == name + padding
    assert len(plain) == wire.dirent_size(length)

    plus = wire.direntplus(3, 4, VALIDITY, ATTR, 11, 30, name, stat.S_IFDIR | 0o755)
    assert _fields(kernel.direntplus.from_buffer_copy(plus)) == {"entry_out": ENTRY_FIELDS, "dirent": head}
    assert plus[152:] == name + padding
    assert len(plus) == wire.direntplus_size(length)


@pytest.mark.parametrize("name", [b"f", b"12345678", b"libexec.so", b"n" * 255])
@pytest.mark.parametrize(("size", "blocks"), [(0, 0), (1, 8), (4096, 8), (1_000_000, 1960)])
def test_the_quick_record_of_a_blob_is_that_of_any_file(name: bytes, size: int, blocks: int) -> None:
    mode, time = stat.S_IFREG | 0o555, 7 * SECOND + 8
    attributes = wire.attr(11, size, blocks, time, time, time, mode, 1, 19, 20, 0, 4096)
    quick = wire.direntplus_of_blob(
        11, 30, name, VALIDITY, size, wire.blob_attributes(time, mode, 19, 20), mode
    )
    assert quick == wire.direntplus(11, 0, VALIDITY, attributes, 11, 30, name, mode)


def test_notifications_have_no_unique_and_their_code_as_error() -> None:
    assert _read(wire.notify_inval_inode(5, 6, 7), kernel.notify_inval_inode_out, 0, 2) == {
        "ino": 5,
        "off": 6,
        "len": 7,
    }
    assert _read(wire.notify_inval_inode(5), kernel.notify_inval_inode_out, 0, 2)["off"] == -1
    assert wire.notify_inc_epoch() == bytes(kernel.out_header(16, NotifyCode.INC_EPOCH, 0))


def test_notifications_about_a_name_end_with_it_and_a_nul() -> None:
    entry = wire.notify_inval_entry(5, b"name", 1)
    head = bytes(kernel.notify_inval_entry_out(5, 4, 1))
    assert entry == bytes(kernel.out_header(37, NotifyCode.INVAL_ENTRY, 0)) + head + b"name\0"

    gone = wire.notify_delete(5, 6, b"name")
    head = bytes(kernel.notify_delete_out(5, 6, 4))
    assert gone == bytes(kernel.out_header(45, NotifyCode.DELETE, 0)) + head + b"name\0"


def test_notifications_can_be_named() -> None:
    assert wire.notification_name(wire.notify_inc_epoch()) == "INC_EPOCH"
    assert wire.notification_name(wire.notify_delete(1, 2, b"n")) == "DELETE"
