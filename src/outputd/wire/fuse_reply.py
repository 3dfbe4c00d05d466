"""FUSE replies and notifications, our `fuse_*_out` messages, encoded into bytes; never any I/O, never a choice of what to say.

A `*_reply` is a whole message, out header included, ready for one write(2). A block (`attr`, `entry_validity`,
`attr_validity`) is a part that replies take, so that what many replies share is packed once. A record (`dirent`,
`direntplus`) is one entry of a directory listing; records are joined and sent with `data_reply`. Times are integers
in nanoseconds. A value that does not fit its field is our own fault and raises `struct.error`.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from outputd.wire.fuse_abi import KERNEL_VERSION, Init, NotifyCode

_NANOSECONDS: Final = 1_000_000_000

_OUT_HEADER: Final = Struct("=IiQ")  # len error unique
# ino size blocks, atime mtime ctime, their nanoseconds, mode nlink uid gid rdev blksize flags. Seconds are signed: the
# ABI says uint64_t, the kernel stores them in a time64_t.
_ATTR: Final = Struct("=QQQqqqIIIIIIIIII").pack
_ENTRY_VALIDITY: Final = Struct("=QQII").pack
_ATTR_VALIDITY: Final = Struct("=QI4x").pack
# Out header, then fuse_entry_out: nodeid generation, a validity block, an attribute block.
_ENTRY_REPLY: Final = Struct("=IiQQQ24s88s").pack
_NEGATIVE_REPLY: Final = Struct("=IiQ16x24s88x").pack
_CREATE_REPLY: Final = Struct("=IiQQQ24s88sQIi").pack
_ATTR_REPLY: Final = Struct("=IiQ16s88s").pack
_OPEN_REPLY: Final = Struct("=IiQQIi").pack  # fh open_flags backing_id
_SIZE_REPLY: Final = Struct("=IiQI4x").pack  # fuse_write_out, fuse_getxattr_out, fuse_poll_out
_OFFSET_REPLY: Final = Struct("=IiQQ").pack  # fuse_lseek_out, fuse_copy_file_range_out
_STATFS_REPLY: Final = Struct("=IiQQQQQQIII4x24x").pack
_LOCK_REPLY: Final = Struct("=IiQQQII").pack
_IOCTL_REPLY: Final = Struct("=IiQiI8x").pack
# major minor max_readahead flags, max_background congestion_threshold, max_write time_gran, max_pages map_alignment,
# flags2 max_stack_depth request_timeout
_INIT_REPLY: Final = Struct("=IiQIIIIHHIIHHIIH22x").pack
# fuse_statx_out: a validity, flags, then struct fuse_statx, which is laid out as struct statx.
_STATX_REPLY: Final = Struct("=IiQQI20xIIQIIIH2xQQQQqI4xqI4xqI4xqI4xIIII112x").pack
_DIRENT: Final = Struct("=QQII").pack  # ino off namelen type
_DIRENTPLUS: Final = Struct("=QQ24s88sQQII").pack
# The same by the length of the padded name in units of eight bytes, with the name, and the attribute block in two: ino size
# blocks, and the rest.
_DIRENTPLUS_OF_BLOB: Final = tuple(Struct(f"=QQ24sQQQ64sQQII{8 * units}s").pack for units in range(33))
_BLOB_ATTRIBUTES: Final = Struct("=qqqIIIIIIIIII").pack
_INVAL_INODE: Final = Struct("=IiQQqq").pack
_INVAL_ENTRY: Final = Struct("=IiQQII").pack
_DELETE: Final = Struct("=IiQQQI4x").pack

_PADDING: Final = tuple(bytes(n) for n in range(8))
# The top four bits of st_mode are the file type as readdir(3) spells it (DT_REG is S_IFREG >> 12).
_TYPE_SHIFT: Final = 12

# --- blocks


def attr(
    ino: int,
    size: int,
    blocks: int,
    atime: int,
    mtime: int,
    ctime: int,
    mode: int,
    nlink: int,
    uid: int,
    gid: int,
    rdev: int,
    blksize: int,
) -> bytes:
    """Block: fuse_attr. `blocks` counts 512 bytes."""
    atime, atimensec = divmod(atime, _NANOSECONDS)
    mtime, mtimensec = divmod(mtime, _NANOSECONDS)
    ctime, ctimensec = divmod(ctime, _NANOSECONDS)
    return _ATTR(
        ino,
        size,
        blocks,
        atime,
        mtime,
        ctime,
        atimensec,
        mtimensec,
        ctimensec,
        mode,
        nlink,
        uid,
        gid,
        rdev,
        blksize,
        0,
    )


def entry_validity(entry: int, attributes: int) -> bytes:
    """Block: how long the kernel may believe a name, and its attributes, before it asks again."""
    entry_s, entry_ns = divmod(entry, _NANOSECONDS)
    attr_s, attr_ns = divmod(attributes, _NANOSECONDS)
    return _ENTRY_VALIDITY(entry_s, attr_s, entry_ns, attr_ns)


def attr_validity(attributes: int) -> bytes:
    """Block: how long the kernel may believe attributes before it asks again."""
    return _ATTR_VALIDITY(*divmod(attributes, _NANOSECONDS))


# --- replies


def error_reply(unique: int, errno: int) -> bytes:
    """Refuse with a positive `errno`. An entry refused with ENOENT is not remembered; `negative_entry_reply` is."""
    return _OUT_HEADER.pack(16, -errno, unique)


def empty_reply(unique: int) -> bytes:
    """Done, with nothing to tell: UNLINK, RENAME, RELEASE, FLUSH and their like."""
    return _OUT_HEADER.pack(16, 0, unique)


def data_reply(unique: int, data: bytes) -> bytes:
    """READ, READDIR, READDIRPLUS, READLINK, GETXATTR, LISTXATTR. For large data `data_header` saves the copy."""
    return _OUT_HEADER.pack(16 + len(data), 0, unique) + data


def data_header(unique: int, size: int) -> bytes:
    """The out header of a reply whose `size` bytes of data are written behind it with writev(2)."""
    return _OUT_HEADER.pack(16 + size, 0, unique)


def entry_reply(unique: int, nodeid: int, generation: int, validity: bytes, attributes: bytes) -> bytes:
    """LOOKUP, MKNOD, MKDIR, SYMLINK, LINK: the entry; it counts as one lookup of `nodeid`."""
    return _ENTRY_REPLY(144, 0, unique, nodeid, generation, validity, attributes)


def negative_entry_reply(unique: int, validity: bytes) -> bytes:
    """LOOKUP: no such name, and the kernel may remember it (nodeid 0)."""
    return _NEGATIVE_REPLY(144, 0, unique, validity)


def create_reply(
    unique: int,
    nodeid: int,
    generation: int,
    validity: bytes,
    attributes: bytes,
    fh: int,
    open_flags: int,
    backing_id: int = 0,
) -> bytes:
    """CREATE, TMPFILE: the entry, which counts as one lookup, and the open file."""
    return _CREATE_REPLY(160, 0, unique, nodeid, generation, validity, attributes, fh, open_flags, backing_id)


def attr_reply(unique: int, validity: bytes, attributes: bytes) -> bytes:
    """GETATTR, SETATTR."""
    return _ATTR_REPLY(120, 0, unique, validity, attributes)


def statx_reply(
    unique: int,
    validity: int,
    mask: int,
    blksize: int,
    nlink: int,
    uid: int,
    gid: int,
    mode: int,
    ino: int,
    size: int,
    blocks: int,
    atime: int,
    btime: int,
    ctime: int,
    mtime: int,
    rdev_major: int,
    rdev_minor: int,
) -> bytes:
    """STATX: what GETATTR tells, and the time of birth. `mask` says which fields are meant (STATX_*)."""
    return _STATX_REPLY(
        304,
        0,
        unique,
        *divmod(validity, _NANOSECONDS),
        mask,
        blksize,
        0,
        nlink,
        uid,
        gid,
        mode,
        ino,
        size,
        blocks,
        0,
        *divmod(atime, _NANOSECONDS),
        *divmod(btime, _NANOSECONDS),
        *divmod(ctime, _NANOSECONDS),
        *divmod(mtime, _NANOSECONDS),
        rdev_major,
        rdev_minor,
        0,
        0,
    )


def open_reply(unique: int, fh: int, open_flags: int, backing_id: int = 0) -> bytes:
    """OPEN, OPENDIR. `backing_id` is read only with FOPEN_PASSTHROUGH."""
    return _OPEN_REPLY(32, 0, unique, fh, open_flags, backing_id)


def write_reply(unique: int, size: int) -> bytes:
    """WRITE, COPY_FILE_RANGE: the bytes taken."""
    return _SIZE_REPLY(24, 0, unique, size)


def copy_file_range_64_reply(unique: int, size: int) -> bytes:
    """COPY_FILE_RANGE_64: the bytes copied."""
    return _OFFSET_REPLY(24, 0, unique, size)


def xattr_size_reply(unique: int, size: int) -> bytes:
    """GETXATTR, LISTXATTR asked with size 0: how long the answer would be."""
    return _SIZE_REPLY(24, 0, unique, size)


def lseek_reply(unique: int, offset: int) -> bytes:
    """LSEEK: where the data or the hole begins."""
    return _OFFSET_REPLY(24, 0, unique, offset)


def statfs_reply(
    unique: int,
    blocks: int,
    bfree: int,
    bavail: int,
    files: int,
    ffree: int,
    bsize: int,
    namelen: int,
    frsize: int,
) -> bytes:
    """STATFS; `blocks`, `bfree` and `bavail` count `frsize` bytes."""
    return _STATFS_REPLY(96, 0, unique, blocks, bfree, bavail, files, ffree, bsize, namelen, frsize)


def lock_reply(unique: int, start: int, end: int, kind: int, pid: int) -> bytes:
    """GETLK: the lock in the way, or `kind` F_UNLCK."""
    return _LOCK_REPLY(40, 0, unique, start, end, kind, pid)


def poll_reply(unique: int, revents: int) -> bytes:
    """POLL: the events that are there now."""
    return _SIZE_REPLY(24, 0, unique, revents)


def ioctl_reply(unique: int, result: int, data: bytes) -> bytes:
    """IOCTL: the value that ioctl(2) returns and the bytes for the caller's argument."""
    return _IOCTL_REPLY(32 + len(data), 0, unique, result, 0) + data


def init_reply(
    unique: int,
    *,
    minor: int,
    max_readahead: int,
    flags: Init,
    max_background: int,
    congestion_threshold: int,
    max_write: int,
    time_gran: int,
    max_pages: int,
    max_stack_depth: int = 0,
    request_timeout: int = 0,
) -> bytes:
    """INIT, as 7.23 and later read it. `time_gran` in nanoseconds, `request_timeout` in seconds (0: none)."""
    # process_init_reply() reads flags2 only behind INIT_EXT: without it the upper half would be lost unseen.
    assert flags & Init.INIT_EXT or not flags >> 32, f"{flags!r} need INIT_EXT"
    return _INIT_REPLY(
        80,
        0,
        unique,
        KERNEL_VERSION,
        minor,
        max_readahead,
        flags & 0xFFFFFFFF,
        max_background,
        congestion_threshold,
        max_write,
        time_gran,
        max_pages,
        0,
        flags >> 32,
        max_stack_depth,
        request_timeout,
    )


# --- records


def dirent(ino: int, offset: int, name: bytes, mode: int) -> bytes:
    """Record of READDIR; `offset` is the cookie that asks for what follows this entry."""
    size = len(name)
    return _DIRENT(ino, offset, size, mode >> _TYPE_SHIFT) + name + _PADDING[-size & 7]


def direntplus(
    nodeid: int,
    generation: int,
    validity: bytes,
    attributes: bytes,
    ino: int,
    offset: int,
    name: bytes,
    mode: int,
) -> bytes:
    """Record of READDIRPLUS; it counts as one lookup of `nodeid`, but for `.` and `..` and nodeid 0 (name only)."""
    size = len(name)
    return (
        _DIRENTPLUS(nodeid, generation, validity, attributes, ino, offset, size, mode >> _TYPE_SHIFT)
        + name
        + _PADDING[-size & 7]
    )


def blob_attributes(time: int, mode: int, uid: int, gid: int) -> bytes:
    """Block: what attribute blocks of files have in common that have one name, one time and no holes."""
    seconds, nanoseconds = divmod(time, _NANOSECONDS)
    return _BLOB_ATTRIBUTES(
        seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds, mode, 1, uid, gid, 0, 4096, 0
    )


def direntplus_of_blob(
    ino: int, offset: int, name: bytes, validity: bytes, size: int, attributes: bytes, mode: int
) -> bytes:
    """`direntplus` of such a file, whose node id is its inode number; `attributes` are `blob_attributes`.

    Most entries of most listings are that, and this is one packing of twelve values: a third of the time.
    """
    length = len(name)
    return _DIRENTPLUS_OF_BLOB[length + 7 >> 3](
        ino,
        0,
        validity,
        ino,
        size,
        (size + 4095 >> 12) << 3,
        attributes,
        ino,
        offset,
        length,
        mode >> _TYPE_SHIFT,
        name,
    )


def dirent_size(name_length: int) -> int:
    """How many bytes a READDIR record of a name takes."""
    return 24 + (name_length + 7 & ~7)


def direntplus_size(name_length: int) -> int:
    """How many bytes the record of a name takes; a reply must not be longer than the request's size."""
    return 152 + (name_length + 7 & ~7)


# --- notifications


def notify_inval_inode(ino: int, offset: int = -1, length: int = 0) -> bytes:
    """Drop the attributes of `ino`, and its data from `offset` on for `length` bytes (0: all); offset < 0: attributes only.

    With data the write waits for page locks that a READ we have not answered may hold (invalidate_inode_pages2_range).
    """
    return _INVAL_INODE(40, NotifyCode.INVAL_INODE, 0, ino, offset, length)


def notify_inval_entry(parent: int, name: bytes, flags: int = 0) -> bytes:
    """Drop `name` in `parent`, a negative entry too. The write waits for the directory's lock (fuse_reverse_inval_entry)."""
    size = len(name)
    return _INVAL_ENTRY(33 + size, NotifyCode.INVAL_ENTRY, 0, parent, size, flags) + name + b"\0"


def notify_delete(parent: int, child: int, name: bytes) -> bytes:
    """`name` of `parent`, which was inode `child`, is gone: as `notify_inval_entry`, and inotify watchers are told."""
    size = len(name)
    return _DELETE(41 + size, NotifyCode.DELETE, 0, parent, child, size) + name + b"\0"


def notify_inc_epoch() -> bytes:
    """Every entry the kernel holds is to be looked up again (7.44); takes no lock."""
    return _OUT_HEADER.pack(16, NotifyCode.INC_EPOCH, 0)


def notify_resend() -> bytes:
    """Every request that was read and not answered is to be sent again (7.40); takes no lock."""
    return _OUT_HEADER.pack(16, NotifyCode.RESEND, 0)


def notification_name(message: bytes) -> str:
    """What a notification encoded here is called, for an error's text."""
    return NotifyCode(_OUT_HEADER.unpack_from(message)[1]).name
