"""The numbers of the Linux FUSE kernel ABI, 7.31 to 7.45, spelled as `linux/fuse.h` spells them; never any behaviour.

Opcodes and notification codes are enums (`dict` look-ups and logs want names). Bits tested on the path of a request are
plain integers: `int & IntFlag` builds an enum member and costs half a microsecond, `int & int` thirty nanoseconds.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

KERNEL_VERSION: Final = 7
KERNEL_MINOR_VERSION: Final = 45
# Linux 5.4; READDIRPLUS, MAX_PAGES, COPY_FILE_RANGE and zero-message opendir are all there.
OLDEST_MINOR_VERSION: Final = 31

ROOT_ID: Final = 1

IN_HEADER_SIZE: Final = 40
OUT_HEADER_SIZE: Final = 16
# fuse_dev_do_read() refuses a buffer that cannot hold the two headers of a WRITE and max_write bytes.
WRITE_HEADER_SIZE: Final = 80
MIN_READ_BUFFER: Final = 8192

# An INTERRUPT's own `unique` is that of the request it names with this bit set (fs/fuse/fuse_dev_i.h).
INTERRUPT_UNIQUE_BIT: Final = 1
# Set in `unique` of a request sent a second time after NOTIFY_RESEND (7.40).
RESEND_UNIQUE_BIT: Final = 1 << 63


class Opcode(IntEnum):
    """What the kernel asks: `enum fuse_opcode`."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


# Requests that must not be answered: the kernel keeps no record to match a reply with, and write() would fail with EINVAL.
UNANSWERED: Final = frozenset((Opcode.FORGET, Opcode.BATCH_FORGET))


class NotifyCode(IntEnum):
    """What we may tell the kernel unasked: `enum fuse_notify_code`."""

    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RETRIEVE = 5
    DELETE = 6
    RESEND = 7
    INC_EPOCH = 8
    PRUNE = 9


# The first minor version that knows NotifyCode.INC_EPOCH; an older kernel answers the write with EINVAL.
INC_EPOCH_MINOR_VERSION: Final = 44

# notify_inval_entry flags (7.38): let the entry run out instead of dropping it.
EXPIRE_ONLY: Final = 1 << 0


class Init(IntFlag):
    """Capabilities offered and accepted in INIT: bits 0-31 travel in `flags`, 32-63 in `flags2`."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    FILE_OPS = 1 << 2
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    MAP_ALIGNMENT = 1 << 26
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    INIT_RESERVED = 1 << 31
    SECURITY_CTX = 1 << 32
    HAS_INODE_DAX = 1 << 33
    CREATE_SUPP_GROUP = 1 << 34
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42


# fuse_open_out.open_flags
FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_NONSEEKABLE: Final = 1 << 2
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_STREAM: Final = 1 << 4
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES: Final = 1 << 6
FOPEN_PASSTHROUGH: Final = 1 << 7

# fuse_setattr_in.valid
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_LOCKOWNER: Final = 1 << 9
FATTR_CTIME: Final = 1 << 10
FATTR_KILL_SUIDGID: Final = 1 << 11

GETATTR_FH: Final = 1 << 0  # fuse_getattr_in.getattr_flags: fh is valid
OPEN_KILL_SUIDGID: Final = 1 << 0  # fuse_open_in.open_flags, fuse_create_in.open_flags
RELEASE_FLUSH: Final = 1 << 0  # fuse_release_in.release_flags
RELEASE_FLOCK_UNLOCK: Final = 1 << 1
READ_LOCKOWNER: Final = 1 << 1  # fuse_read_in.read_flags: lock_owner is valid
WRITE_CACHE: Final = 1 << 0  # fuse_write_in.write_flags: from the page cache, fh is guessed
WRITE_LOCKOWNER: Final = 1 << 1
WRITE_KILL_SUIDGID: Final = 1 << 2
FSYNC_FDATASYNC: Final = 1 << 0  # fuse_fsync_in.fsync_flags
LK_FLOCK: Final = 1 << 0  # fuse_lk_in.lk_flags: flock(2) rather than fcntl(2)
SETXATTR_ACL_KILL_SGID: Final = 1 << 0  # fuse_setxattr_in.setxattr_flags
POLL_SCHEDULE_NOTIFY: Final = 1 << 0  # fuse_poll_in.flags

# ioctls of the device, as include/uapi/asm-generic/ioctl.h composes them (x86, arm, riscv).
DEV_IOC_CLONE: Final = 0x8004E500  # _IOR(229, 0, uint32_t)
DEV_IOC_BACKING_OPEN: Final = 0x4010E501  # _IOW(229, 1, struct fuse_backing_map)
DEV_IOC_BACKING_CLOSE: Final = 0x4004E502  # _IOW(229, 2, uint32_t)
