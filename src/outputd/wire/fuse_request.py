"""FUSE requests, the kernel's `fuse_*_in` messages, decoded into tuples; never any I/O, never a judgement of what is asked.

`decode_*(buffer, end)` read the message that lies in `buffer[0:end]`, where `end` is what `decode_header` returned
(it leaves out the extensions that may follow the body) and is not past the end of the buffer. They return plain tuples,
because an object would cost more than all the rest, and raise `MalformedRequest` and nothing else. Integers are
in the machine's byte order, as the ABI demands. A `memoryview` that is returned lies in the caller's buffer and is
overwritten by its next read.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final, TypeAlias

from outputd.errors import Invalid
from outputd.wire.fuse_abi import IN_HEADER_SIZE, Init

Buffer: TypeAlias = bytes | bytearray | memoryview

_NANOSECONDS: Final = 1_000_000_000


class MalformedRequest(Invalid):
    """The bytes are no FUSE request: the kernel never sends this, so the peer is not a kernel or the ABI is not ours."""


_BODY: Final = IN_HEADER_SIZE

_IN_HEADER: Final = Struct("=IIQQIIIH2x")  # len opcode unique nodeid uid gid pid total_extlen

_U32: Final = Struct("=I").unpack_from
_U64: Final = Struct("=Q").unpack_from
_INIT_IN: Final = Struct("=IIII").unpack_from  # major minor max_readahead flags, then flags2 since 7.36
_GETATTR_IN: Final = Struct("=I4xQ").unpack_from
_SETATTR_IN: Final = Struct("=I4xQQQqqqIIII4xII4x").unpack_from
_RENAME2_IN: Final = Struct("=QI4x").unpack_from
_OPEN_IN: Final = Struct("=II").unpack_from
_CREATE_IN: Final = Struct("=IIII").unpack_from
_MKNOD_IN: Final = Struct("=III4x").unpack_from
_MKDIR_IN: Final = Struct("=II").unpack_from
_READ_IN: Final = Struct("=QQIIQI4x").unpack_from
_WRITE_IN: Final = _READ_IN  # the same layout
_RELEASE_IN: Final = Struct("=QIIQ").unpack_from
_FLUSH_IN: Final = Struct("=Q8xQ").unpack_from
_FSYNC_IN: Final = Struct("=QI4x").unpack_from
_FORGET_ONE: Final = Struct("=QQ")
_LK_IN: Final = Struct("=QQQQIII4x").unpack_from
_IOCTL_IN: Final = Struct("=QIIQII").unpack_from
_POLL_IN: Final = Struct("=QQII").unpack_from
_FALLOCATE_IN: Final = Struct("=QQQI4x").unpack_from
_LSEEK_IN: Final = Struct("=QqI4x").unpack_from
_COPY_FILE_RANGE_IN: Final = Struct("=QQQQQQQ").unpack_from
_STATX_IN: Final = Struct("=I4xQII").unpack_from


def _short(what: str, end: int, least: int) -> MalformedRequest:
    return MalformedRequest(f"{what}: message of {end} bytes, at least {least} are needed")


def decode_header(buffer: Buffer, length: int) -> tuple[int, int, int, int, int, int, int]:
    """Return `(opcode, unique, nodeid, uid, gid, pid, end)` of the message of `length` bytes just read."""
    if length < _BODY:
        raise _short("fuse_in_header", length, _BODY)
    said, opcode, unique, nodeid, uid, gid, pid, extensions = _IN_HEADER.unpack_from(buffer)
    if said != length:
        raise MalformedRequest(f"fuse_in_header.len: {said}, but {length} bytes were read")
    # total_extlen counts units of 8 bytes (7.38); it was padding, and zero, before.
    end = length - 8 * extensions
    if end < _BODY:
        raise MalformedRequest(
            f"fuse_in_header.total_extlen: {extensions} units do not fit in {length} bytes"
        )
    return opcode, unique, nodeid, uid, gid, pid, end


def _name(buffer: Buffer, start: int, end: int) -> bytes:
    last = end - 1
    if last <= start:
        raise MalformedRequest(f"name: nothing at byte {start} of a message of {end}")
    name = bytes(buffer[start:last])
    if buffer[last]:
        raise MalformedRequest(f"name: no NUL at its end, byte {last}")
    if 0 in name:
        raise MalformedRequest(f"name: NUL inside {name[:64]!r}")
    return name


def _two_names(buffer: Buffer, start: int, end: int) -> tuple[bytes, bytes]:
    last = end - 1
    if last <= start or buffer[last]:
        raise MalformedRequest(f"names: no NUL at byte {last}, where the second must end")
    names = bytes(buffer[start:last]).split(b"\0")
    if len(names) != 2 or not names[0] or not names[1]:
        raise MalformedRequest(f"names: two that are not empty must follow at byte {start}")
    return names[0], names[1]


def decode_name(buffer: Buffer, end: int) -> bytes:
    """LOOKUP, UNLINK, RMDIR, REMOVEXATTR: the name."""
    return _name(buffer, _BODY, end)


def decode_init(buffer: Buffer, end: int) -> tuple[int, int, int, Init]:
    """Return `(major, minor, max_readahead, flags)`; `flags` holds flags2 in its upper half where the kernel sends it."""
    if end < _BODY + 16:
        raise _short("fuse_init_in", end, _BODY + 16)
    major, minor, max_readahead, flags = _INIT_IN(buffer, _BODY)
    if flags & Init.INIT_EXT:
        if end < _BODY + 64:
            raise _short("fuse_init_in with INIT_EXT", end, _BODY + 64)
        flags |= _U32(buffer, _BODY + 16)[0] << 32
    return major, minor, max_readahead, Init(flags)


def decode_forget(buffer: Buffer, end: int) -> int:
    """Return `nlookup`, the number of lookups the kernel gives back."""
    if end < _BODY + 8:
        raise _short("fuse_forget_in", end, _BODY + 8)
    nlookup: int = _U64(buffer, _BODY)[0]
    return nlookup


def decode_batch_forget(buffer: Buffer, end: int) -> Iterator[tuple[int, int]]:
    """`(nodeid, nlookup)` for each inode forgotten: up to 65,000, from a copy, so that they need not be looked at at once."""
    if end < _BODY + 8:
        raise _short("fuse_batch_forget_in", end, _BODY + 8)
    count = _U32(buffer, _BODY)[0]
    start = _BODY + 8
    stop = start + 16 * count
    if end < stop:
        raise MalformedRequest(f"fuse_batch_forget_in.count: {count} do not fit in {end} bytes")
    return _FORGET_ONE.iter_unpack(bytes(buffer[start:stop]))


def decode_getattr(buffer: Buffer, end: int) -> tuple[int, int]:
    """Return `(getattr_flags, fh)`."""
    if end < _BODY + 16:
        raise _short("fuse_getattr_in", end, _BODY + 16)
    return _GETATTR_IN(buffer, _BODY)


def decode_setattr(buffer: Buffer, end: int) -> tuple[int, int, int, int, int, int, int, int, int, int]:
    """Return `(valid, fh, size, lock_owner, atime, mtime, ctime, mode, uid, gid)`, times in nanoseconds."""
    if end < _BODY + 88:
        raise _short("fuse_setattr_in", end, _BODY + 88)
    (valid, fh, size, lock_owner, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, uid, gid) = (
        _SETATTR_IN(buffer, _BODY)
    )
    return (
        valid,
        fh,
        size,
        lock_owner,
        atime * _NANOSECONDS + atimensec,
        mtime * _NANOSECONDS + mtimensec,
        ctime * _NANOSECONDS + ctimensec,
        mode,
        uid,
        gid,
    )


def decode_symlink(buffer: Buffer, end: int) -> tuple[bytes, bytes]:
    """Return `(name, target)`."""
    return _two_names(buffer, _BODY, end)


def decode_mknod(buffer: Buffer, end: int) -> tuple[int, int, int, bytes]:
    """Return `(mode, rdev, umask, name)`."""
    name = _name(buffer, _BODY + 16, end)
    mode, rdev, umask = _MKNOD_IN(buffer, _BODY)
    return mode, rdev, umask, name


def decode_mkdir(buffer: Buffer, end: int) -> tuple[int, int, bytes]:
    """Return `(mode, umask, name)`."""
    name = _name(buffer, _BODY + 8, end)
    mode, umask = _MKDIR_IN(buffer, _BODY)
    return mode, umask, name


def decode_rename(buffer: Buffer, end: int) -> tuple[int, int, bytes, bytes]:
    """RENAME: return what `decode_rename2` returns, with flags 0."""
    old, new = _two_names(buffer, _BODY + 8, end)
    return _U64(buffer, _BODY)[0], 0, old, new


def decode_rename2(buffer: Buffer, end: int) -> tuple[int, int, bytes, bytes]:
    """Return `(newdir, flags, oldname, newname)`; flags are those of renameat2(2)."""
    old, new = _two_names(buffer, _BODY + 16, end)
    newdir, flags = _RENAME2_IN(buffer, _BODY)
    return newdir, flags, old, new


def decode_link(buffer: Buffer, end: int) -> tuple[int, bytes]:
    """Return `(oldnodeid, newname)`; the header's nodeid is the new parent."""
    name = _name(buffer, _BODY + 8, end)
    return _U64(buffer, _BODY)[0], name


def decode_open(buffer: Buffer, end: int) -> tuple[int, int]:
    """OPEN, OPENDIR: return `(flags, open_flags)`; flags are those of open(2) without O_CREAT, O_EXCL, O_NOCTTY."""
    if end < _BODY + 8:
        raise _short("fuse_open_in", end, _BODY + 8)
    return _OPEN_IN(buffer, _BODY)


def decode_create(buffer: Buffer, end: int) -> tuple[int, int, int, int, bytes]:
    """CREATE, TMPFILE: return `(flags, mode, umask, open_flags, name)`; TMPFILE's name is `/` and means nothing."""
    name = _name(buffer, _BODY + 16, end)
    flags, mode, umask, open_flags = _CREATE_IN(buffer, _BODY)
    return flags, mode, umask, open_flags, name


def decode_read(buffer: Buffer, end: int) -> tuple[int, int, int, int, int, int]:
    """READ, READDIR, READDIRPLUS: return `(fh, offset, size, read_flags, lock_owner, flags)`."""
    if end < _BODY + 40:
        raise _short("fuse_read_in", end, _BODY + 40)
    return _READ_IN(buffer, _BODY)


def decode_write(buffer: memoryview, end: int) -> tuple[int, int, int, int, int, memoryview]:
    """Return `(fh, offset, write_flags, lock_owner, flags, data)`; `data` lies in the buffer."""
    start = _BODY + 40
    if end < start:
        raise _short("fuse_write_in", end, start)
    fh, offset, size, write_flags, lock_owner, flags = _WRITE_IN(buffer, _BODY)
    if end - start != size:
        raise MalformedRequest(f"fuse_write_in.size: {size}, but {end - start} bytes follow")
    return fh, offset, write_flags, lock_owner, flags, buffer[start:end]


def decode_release(buffer: Buffer, end: int) -> tuple[int, int, int, int]:
    """RELEASE, RELEASEDIR: return `(fh, flags, release_flags, lock_owner)`."""
    if end < _BODY + 24:
        raise _short("fuse_release_in", end, _BODY + 24)
    return _RELEASE_IN(buffer, _BODY)


def decode_flush(buffer: Buffer, end: int) -> tuple[int, int]:
    """Return `(fh, lock_owner)`."""
    if end < _BODY + 24:
        raise _short("fuse_flush_in", end, _BODY + 24)
    return _FLUSH_IN(buffer, _BODY)


def decode_fsync(buffer: Buffer, end: int) -> tuple[int, int]:
    """FSYNC, FSYNCDIR: return `(fh, fsync_flags)`."""
    if end < _BODY + 16:
        raise _short("fuse_fsync_in", end, _BODY + 16)
    return _FSYNC_IN(buffer, _BODY)


def decode_setxattr(buffer: Buffer, end: int, extended: bool) -> tuple[bytes, bytes, int, int]:
    """Return `(name, value, flags, setxattr_flags)`; `extended` says whether INIT agreed on `Init.SETXATTR_EXT`."""
    start = _BODY + (16 if extended else 8)
    if end < start:
        raise _short("fuse_setxattr_in", end, start)
    size, flags = _OPEN_IN(buffer, _BODY)
    setxattr_flags = _U32(buffer, _BODY + 8)[0] if extended else 0
    if end - start < size:
        raise MalformedRequest(f"fuse_setxattr_in.size: {size}, but {end - start} bytes follow")
    name = _name(buffer, start, end - size)
    return name, bytes(buffer[end - size : end]), flags, setxattr_flags


def decode_getxattr(buffer: Buffer, end: int) -> tuple[int, bytes]:
    """Return `(size, name)`; size 0 asks how long the value is."""
    name = _name(buffer, _BODY + 8, end)
    return _U32(buffer, _BODY)[0], name


def decode_listxattr(buffer: Buffer, end: int) -> int:
    """Return `size`; 0 asks how long the list is."""
    if end < _BODY + 8:
        raise _short("fuse_getxattr_in", end, _BODY + 8)
    size: int = _U32(buffer, _BODY)[0]
    return size


def decode_access(buffer: Buffer, end: int) -> int:
    """Return the mask of access(2)."""
    if end < _BODY + 8:
        raise _short("fuse_access_in", end, _BODY + 8)
    mask: int = _U32(buffer, _BODY)[0]
    return mask


def decode_lock(buffer: Buffer, end: int) -> tuple[int, int, int, int, int, int, int]:
    """GETLK, SETLK, SETLKW: return `(fh, owner, start, end, type, pid, lk_flags)`."""
    if end < _BODY + 48:
        raise _short("fuse_lk_in", end, _BODY + 48)
    return _LK_IN(buffer, _BODY)


def decode_interrupt(buffer: Buffer, end: int) -> int:
    """Return the `unique` of the request whose caller got a signal."""
    if end < _BODY + 8:
        raise _short("fuse_interrupt_in", end, _BODY + 8)
    unique: int = _U64(buffer, _BODY)[0]
    return unique


def decode_ioctl(buffer: Buffer, end: int) -> tuple[int, int, int, int, int, bytes]:
    """Return `(fh, flags, cmd, arg, out_size, data)`."""
    start = _BODY + 32
    if end < start:
        raise _short("fuse_ioctl_in", end, start)
    fh, flags, cmd, arg, in_size, out_size = _IOCTL_IN(buffer, _BODY)
    if end - start != in_size:
        raise MalformedRequest(f"fuse_ioctl_in.in_size: {in_size}, but {end - start} bytes follow")
    return fh, flags, cmd, arg, out_size, bytes(buffer[start:end])


def decode_poll(buffer: Buffer, end: int) -> tuple[int, int, int, int]:
    """Return `(fh, kh, flags, events)`."""
    if end < _BODY + 24:
        raise _short("fuse_poll_in", end, _BODY + 24)
    return _POLL_IN(buffer, _BODY)


def decode_fallocate(buffer: Buffer, end: int) -> tuple[int, int, int, int]:
    """Return `(fh, offset, length, mode)`."""
    if end < _BODY + 32:
        raise _short("fuse_fallocate_in", end, _BODY + 32)
    return _FALLOCATE_IN(buffer, _BODY)


def decode_lseek(buffer: Buffer, end: int) -> tuple[int, int, int]:
    """Return `(fh, offset, whence)`; the kernel asks only for SEEK_DATA and SEEK_HOLE (fuse_file_llseek)."""
    if end < _BODY + 24:
        raise _short("fuse_lseek_in", end, _BODY + 24)
    return _LSEEK_IN(buffer, _BODY)


def decode_copy_file_range(buffer: Buffer, end: int) -> tuple[int, int, int, int, int, int, int]:
    """COPY_FILE_RANGE and its 64-bit form: return `(fh_in, off_in, nodeid_out, fh_out, off_out, len, flags)`."""
    if end < _BODY + 56:
        raise _short("fuse_copy_file_range_in", end, _BODY + 56)
    return _COPY_FILE_RANGE_IN(buffer, _BODY)


def decode_statx(buffer: Buffer, end: int) -> tuple[int, int, int, int]:
    """Return `(getattr_flags, fh, sx_flags, sx_mask)`."""
    if end < _BODY + 24:
        raise _short("fuse_statx_in", end, _BODY + 24)
    return _STATX_IN(buffer, _BODY)
