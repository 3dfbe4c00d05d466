"""The kernel's side of the FUSE ABI, for tests: its structs as C lays them out, its requests, and a socket that plays /dev/fuse.

The structs are laid out by ctypes from C declarations, so they are a second description of the ABI, independent of the format
strings in `outputd.wire`.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
from types import TracebackType
from typing import Any, Self

_TYPES: dict[str, Any] = {
    "uint64_t": ctypes.c_uint64,
    "int64_t": ctypes.c_int64,
    "uint32_t": ctypes.c_uint32,
    "int32_t": ctypes.c_int32,
    "uint16_t": ctypes.c_uint16,
}
_FIELD = re.compile(r"(?:struct )?(\w+) (\w+)(?:\[(\d+)\])?;")


def _struct(name: str, declaration: str) -> type[Any]:
    """Declare one struct of linux/fuse.h; later ones may use it by its name."""
    fields = []
    for kind, field, count in _FIELD.findall(declaration):
        fields.append((field, _TYPES[kind] * int(count) if count else _TYPES[kind]))
    made = type(name, (ctypes.Structure,), {"_fields_": fields})
    _TYPES[name] = made
    return made


in_header = _struct(
    "fuse_in_header",
    "uint32_t len; uint32_t opcode; uint64_t unique; uint64_t nodeid; uint32_t uid; uint32_t gid; uint32_t pid;"
    "uint16_t total_extlen; uint16_t padding;",
)
out_header = _struct("fuse_out_header", "uint32_t len; int32_t error; uint64_t unique;")

init_in = _struct(
    "fuse_init_in",
    "uint32_t major; uint32_t minor; uint32_t max_readahead; uint32_t flags; uint32_t flags2; uint32_t unused[11];",
)
forget_in = _struct("fuse_forget_in", "uint64_t nlookup;")
forget_one = _struct("fuse_forget_one", "uint64_t nodeid; uint64_t nlookup;")
batch_forget_in = _struct("fuse_batch_forget_in", "uint32_t count; uint32_t dummy;")
getattr_in = _struct("fuse_getattr_in", "uint32_t getattr_flags; uint32_t dummy; uint64_t fh;")
setattr_in = _struct(
    "fuse_setattr_in",
    "uint32_t valid; uint32_t padding; uint64_t fh; uint64_t size; uint64_t lock_owner; uint64_t atime; uint64_t mtime;"
    "uint64_t ctime; uint32_t atimensec; uint32_t mtimensec; uint32_t ctimensec; uint32_t mode; uint32_t unused4;"
    "uint32_t uid; uint32_t gid; uint32_t unused5;",
)
mknod_in = _struct("fuse_mknod_in", "uint32_t mode; uint32_t rdev; uint32_t umask; uint32_t padding;")
mkdir_in = _struct("fuse_mkdir_in", "uint32_t mode; uint32_t umask;")
rename_in = _struct("fuse_rename_in", "uint64_t newdir;")
rename2_in = _struct("fuse_rename2_in", "uint64_t newdir; uint32_t flags; uint32_t padding;")
link_in = _struct("fuse_link_in", "uint64_t oldnodeid;")
open_in = _struct("fuse_open_in", "uint32_t flags; uint32_t open_flags;")
create_in = _struct("fuse_create_in", "uint32_t flags; uint32_t mode; uint32_t umask; uint32_t open_flags;")
release_in = _struct(
    "fuse_release_in", "uint64_t fh; uint32_t flags; uint32_t release_flags; uint64_t lock_owner;"
)
flush_in = _struct("fuse_flush_in", "uint64_t fh; uint32_t unused; uint32_t padding; uint64_t lock_owner;")
read_in = _struct(
    "fuse_read_in",
    "uint64_t fh; uint64_t offset; uint32_t size; uint32_t read_flags; uint64_t lock_owner; uint32_t flags;"
    "uint32_t padding;",
)
write_in = _struct(
    "fuse_write_in",
    "uint64_t fh; uint64_t offset; uint32_t size; uint32_t write_flags; uint64_t lock_owner; uint32_t flags;"
    "uint32_t padding;",
)
fsync_in = _struct("fuse_fsync_in", "uint64_t fh; uint32_t fsync_flags; uint32_t padding;")
compat_setxattr_in = _struct("fuse_setxattr_in_compat", "uint32_t size; uint32_t flags;")
setxattr_in = _struct(
    "fuse_setxattr_in", "uint32_t size; uint32_t flags; uint32_t setxattr_flags; uint32_t padding;"
)
getxattr_in = _struct("fuse_getxattr_in", "uint32_t size; uint32_t padding;")
file_lock = _struct("fuse_file_lock", "uint64_t start; uint64_t end; uint32_t type; uint32_t pid;")
lk_in = _struct(
    "fuse_lk_in",
    "uint64_t fh; uint64_t owner; struct fuse_file_lock lk; uint32_t lk_flags; uint32_t padding;",
)
access_in = _struct("fuse_access_in", "uint32_t mask; uint32_t padding;")
interrupt_in = _struct("fuse_interrupt_in", "uint64_t unique;")
ioctl_in = _struct(
    "fuse_ioctl_in",
    "uint64_t fh; uint32_t flags; uint32_t cmd; uint64_t arg; uint32_t in_size; uint32_t out_size;",
)
poll_in = _struct("fuse_poll_in", "uint64_t fh; uint64_t kh; uint32_t flags; uint32_t events;")
fallocate_in = _struct(
    "fuse_fallocate_in",
    "uint64_t fh; uint64_t offset; uint64_t length; uint32_t mode; uint32_t padding;",
)
lseek_in = _struct("fuse_lseek_in", "uint64_t fh; uint64_t offset; uint32_t whence; uint32_t padding;")
copy_file_range_in = _struct(
    "fuse_copy_file_range_in",
    "uint64_t fh_in; uint64_t off_in; uint64_t nodeid_out; uint64_t fh_out; uint64_t off_out; uint64_t len;"
    "uint64_t flags;",
)
statx_in = _struct(
    "fuse_statx_in",
    "uint32_t getattr_flags; uint32_t reserved; uint64_t fh; uint32_t sx_flags; uint32_t sx_mask;",
)

attr = _struct(
    "fuse_attr",
    "uint64_t ino; uint64_t size; uint64_t blocks; uint64_t atime; uint64_t mtime; uint64_t ctime; uint32_t atimensec;"
    "uint32_t mtimensec; uint32_t ctimensec; uint32_t mode; uint32_t nlink; uint32_t uid; uint32_t gid; uint32_t rdev;"
    "uint32_t blksize; uint32_t flags;",
)
entry_out = _struct(
    "fuse_entry_out",
    "uint64_t nodeid; uint64_t generation; uint64_t entry_valid; uint64_t attr_valid; uint32_t entry_valid_nsec;"
    "uint32_t attr_valid_nsec; struct fuse_attr attr;",
)
attr_out = _struct(
    "fuse_attr_out", "uint64_t attr_valid; uint32_t attr_valid_nsec; uint32_t dummy; struct fuse_attr attr;"
)
open_out = _struct("fuse_open_out", "uint64_t fh; uint32_t open_flags; int32_t backing_id;")
create_out = _struct("create_out", "struct fuse_entry_out entry; struct fuse_open_out open;")
write_out = _struct("fuse_write_out", "uint32_t size; uint32_t padding;")
copy_file_range_out = _struct("fuse_copy_file_range_out", "uint64_t bytes_copied;")
statfs_out = _struct(
    "fuse_kstatfs",
    "uint64_t blocks; uint64_t bfree; uint64_t bavail; uint64_t files; uint64_t ffree; uint32_t bsize;"
    "uint32_t namelen; uint32_t frsize; uint32_t padding; uint32_t spare[6];",
)
getxattr_out = _struct("fuse_getxattr_out", "uint32_t size; uint32_t padding;")
lseek_out = _struct("fuse_lseek_out", "uint64_t offset;")
lk_out = _struct("fuse_lk_out", "struct fuse_file_lock lk;")
poll_out = _struct("fuse_poll_out", "uint32_t revents; uint32_t padding;")
ioctl_out = _struct("fuse_ioctl_out", "int32_t result; uint32_t flags; uint32_t in_iovs; uint32_t out_iovs;")
init_out = _struct(
    "fuse_init_out",
    "uint32_t major; uint32_t minor; uint32_t max_readahead; uint32_t flags; uint16_t max_background;"
    "uint16_t congestion_threshold; uint32_t max_write; uint32_t time_gran; uint16_t max_pages; uint16_t map_alignment;"
    "uint32_t flags2; uint32_t max_stack_depth; uint16_t request_timeout; uint16_t unused[11];",
)
sx_time = _struct("fuse_sx_time", "int64_t tv_sec; uint32_t tv_nsec; int32_t reserved;")
statx = _struct(
    "fuse_statx",
    "uint32_t mask; uint32_t blksize; uint64_t attributes; uint32_t nlink; uint32_t uid; uint32_t gid; uint16_t mode;"
    "uint16_t spare0; uint64_t ino; uint64_t size; uint64_t blocks; uint64_t attributes_mask; struct fuse_sx_time atime;"
    "struct fuse_sx_time btime; struct fuse_sx_time ctime; struct fuse_sx_time mtime; uint32_t rdev_major;"
    "uint32_t rdev_minor; uint32_t dev_major; uint32_t dev_minor; uint64_t spare2[14];",
)
statx_out = _struct(
    "fuse_statx_out",
    "uint64_t attr_valid; uint32_t attr_valid_nsec; uint32_t flags; uint64_t spare[2]; struct fuse_statx stat;",
)
dirent = _struct("fuse_dirent", "uint64_t ino; uint64_t off; uint32_t namelen; uint32_t type;")
direntplus = _struct("fuse_direntplus", "struct fuse_entry_out entry_out; struct fuse_dirent dirent;")
notify_inval_inode_out = _struct("fuse_notify_inval_inode_out", "uint64_t ino; int64_t off; int64_t len;")
notify_inval_entry_out = _struct(
    "fuse_notify_inval_entry_out", "uint64_t parent; uint32_t namelen; uint32_t flags;"
)
notify_delete_out = _struct(
    "fuse_notify_delete_out", "uint64_t parent; uint64_t child; uint32_t namelen; uint32_t padding;"
)


def request(
    opcode: int,
    *parts: Any,
    unique: int = 2,
    nodeid: int = 1,
    uid: int = 0,
    gid: int = 0,
    pid: int = 0,
    extensions: bytes = b"",
) -> bytes:
    """A whole request: the header, then structs and bytes in order, then extensions (whole units of 8 bytes)."""
    body = b"".join(map(bytes, parts)) + extensions
    assert len(extensions) % 8 == 0
    header = in_header(
        ctypes.sizeof(in_header) + len(body), opcode, unique, nodeid, uid, gid, pid, len(extensions) // 8
    )
    return bytes(header) + body


class FakeKernel:
    """One end of a socket that keeps messages whole, as /dev/fuse does; the daemon gets `device`."""

    def __init__(self) -> None:
        # Messages must fit the send buffer, whose limit for everybody (wmem_max) is some 200 KiB.
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ours.close()
        self._theirs.close()

    def device(self) -> int:
        """A descriptor of the daemon's end, which the caller owns."""
        return os.dup(self._theirs.fileno())

    def ask(self, message: bytes) -> None:
        """Queue a request for the daemon."""
        self._ours.send(message)

    def answer(self) -> tuple[Any, bytes]:
        """Wait for what the daemon wrote: its header and the rest."""
        message = self._ours.recv(1 << 21)
        header = out_header.from_buffer_copy(message)
        assert header.len == len(message)
        return header, message[ctypes.sizeof(out_header) :]

    def hang_up(self) -> None:
        """End the connection; the daemon reads its end."""
        self._theirs.close()
        self._ours.close()
