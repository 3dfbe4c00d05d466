"""Bytes: written, read, cut, mapped, punched, copied, searched for holes, synced, and the limits of it."""

from __future__ import annotations

import mmap
import os
import resource
import signal

from tests.posix.at import At, Cases, libc, shown, told

CASES = Cases("content")

_BLOCK = 4096
_KEEP_SIZE, _PUNCH_HOLE, _COLLAPSE, _ZERO, _INSERT, _UNSHARE = 1, 2, 8, 16, 32, 64


# --- reading, writing, cutting


@CASES.add
def what_was_written_is_read(at: At) -> object:
    pattern = bytes(range(256)) * 5000
    with at.opened("f", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, pattern)
        pieces = [
            os.pread(fd, size, offset) == pattern[offset : offset + size]
            for size, offset in ((1, 0), (4097, 4095), (1 << 20, 3))
        ]
        return pieces, os.pread(fd, 10, len(pattern)), os.pread(fd, 10, len(pattern) - 3), shown(fd)["size"]


@CASES.each((0, 1, 5, 4095, 4096, 4097, 10000), ("by name", "by handle", "by opening"))
def cut_to(at: At, size: int, how: str) -> object:
    at.file("f", b"0123456789" * 500)
    if how == "by name":
        os.truncate(at / "f", size)
    elif how == "by handle":
        with at.opened("f", os.O_RDWR) as fd:
            os.ftruncate(fd, size)
    else:
        with at.opened("f", os.O_RDWR | os.O_TRUNC) as fd:
            os.ftruncate(fd, size)
    return shown(at / "f")["size"], at.content("f").rstrip("\0"), len(at.content("f"))


@CASES.add
def cut_while_others_have_it_open(at: At) -> object:
    at.file("f", b"0123456789")
    with at.opened("f", os.O_RDONLY) as reader, at.opened("f", os.O_RDWR) as writer:
        os.read(reader, 5)
        with at.opened("f", os.O_WRONLY | os.O_TRUNC):
            after = os.read(reader, 5), shown(reader)["size"]
        os.pwrite(writer, b"tail", 6)
        return after, os.read(reader, 9), os.pread(reader, 20, 0)


@CASES.add
def emptied_by_another_while_it_is_written(at: At) -> object:
    fd = os.open(at / "f", os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(fd, b"first")
    os.close(os.open(at / "f", os.O_WRONLY | os.O_TRUNC))
    emptied = os.stat(at / "f").st_size
    os.close(fd)
    return emptied, at.tree()


@CASES.each(("truncate", "ftruncate", "lseek", "pwrite", "pread"))
def negative_sizes(at: At, what: str) -> object:
    at.file("f")
    with at.opened("f", os.O_RDWR) as fd:
        call = {
            "truncate": lambda: os.truncate(at / "f", -1),
            "ftruncate": lambda: os.ftruncate(fd, -1),
            "lseek": lambda: os.lseek(fd, -1, os.SEEK_SET),
            "pwrite": lambda: os.pwrite(fd, b"x", -1),
            "pread": lambda: os.pread(fd, 1, -1),
        }[what]
        return told(call)


@CASES.each(("directory", "symlink to a directory", "fifo", "nothing", "file opened to read"))
def what_cannot_be_cut(at: At, what: str) -> object:
    at.directory("target")
    if what == "directory":
        os.mkdir(at / "x")
    elif what == "symlink to a directory":
        os.symlink("target", at / "x")
    elif what == "fifo":
        os.mkfifo(at / "x")
    elif what == "file opened to read":
        at.file("x")
        with at.opened("x", os.O_RDONLY) as fd:
            return told(os.ftruncate, fd, 1), told(os.write, fd, b"x"), told(libc, "fallocate", fd, 0, 0, 10)
    return told(os.truncate, at / "x", 1)


@CASES.add
def what_is_open_to_write_cannot_be_read(at: At) -> object:
    at.file("f")
    with at.opened("f", os.O_WRONLY) as fd:
        return told(os.read, fd, 1), told(mmap.mmap, fd, 4, mmap.MAP_SHARED, mmap.PROT_READ)


@CASES.add
def written_beyond_the_end(at: At) -> object:
    with at.opened("f", os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"far", 1 << 20)
        os.fsync(fd)
        return shown(fd)["size"], os.pread(fd, 10, (1 << 20) - 5), os.fstat(fd).st_blocks <= 64


@CASES.add
def blocks_are_counted(at: At) -> object:
    """st_blocks of what was written, grown, holed."""
    counts = []
    with at.opened("f", os.O_RDWR | os.O_CREAT) as fd:
        for action in (
            lambda: None,
            lambda: os.pwrite(fd, b"x", 0),
            lambda: os.pwrite(fd, b"x" * (10 * _BLOCK), 0),
            lambda: os.ftruncate(fd, 1 << 20),
            lambda: libc("fallocate", fd, _PUNCH_HOLE | _KEEP_SIZE, 0, 5 * _BLOCK),
            lambda: os.ftruncate(fd, 0),
        ):
            action()
            os.fsync(fd)
            counts.append(os.fstat(fd).st_blocks)
    at.file("small", b"one byte and a few")
    return counts, os.stat(at / "small").st_blocks


@CASES.add
def in_vectors(at: At) -> object:
    with at.opened("f", os.O_RDWR | os.O_CREAT) as fd:
        os.writev(fd, [b"one ", b"two ", b"three"])
        os.pwritev(fd, [b"T", b"WO"], 4)
        buffers = [bytearray(3), bytearray(100)]
        count = os.preadv(fd, buffers, 2)
        return count, bytes(buffers[0]), bytes(buffers[1][: count - 3])


@CASES.add
def by_sendfile_and_splice(at: At) -> object:
    data = bytes(range(256)) * 300
    at.file("from", data)
    with at.opened("from", os.O_RDONLY) as source, at.opened("to", os.O_RDWR | os.O_CREAT) as target:
        sent = 0
        while count := os.sendfile(target, source, sent, 50000):
            sent += count
        reader, writer = os.pipe()
        moved = os.splice(source, writer, 1000, offset_src=5)
        os.splice(reader, target, moved, offset_dst=0)
        os.close(reader)
        os.close(writer)
        return (
            sent,
            os.pread(target, 1000, 0) == data[5:1005],
            os.pread(target, 1000, 5000) == data[5000:6000],
        )


@CASES.add
def synced(at: At) -> object:
    at.file("f")
    os.mkdir(at / "d")
    outcomes = []
    for name, flags in (("f", os.O_RDONLY), ("f", os.O_WRONLY), ("d", os.O_RDONLY)):
        with at.opened(name, flags) as fd:
            outcomes += [told(os.fsync, fd), told(os.fdatasync, fd), told(libc, "syncfs", fd)]
    with at.opened("f", os.O_PATH) as fd:
        outcomes.append(told(os.fsync, fd))
    return outcomes


@CASES.add
def up_to_a_limit_of_the_process(at: At) -> object:
    def write() -> object:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        fd = os.open(at / "f", os.O_RDWR | os.O_CREAT)
        return [
            told(os.write, fd, b"x" * 9000),
            told(os.write, fd, b"x" * 9000),
            told(os.write, fd, b"x"),
            told(os.ftruncate, fd, 20000),
        ]

    return at.in_child(write), shown(at / "f")["size"]


@CASES.each(
    {
        "1 EiB": 1 << 60,
        "8 EiB less 1": (1 << 63) - 1,
        "15 TiB": 15 << 40,
        "16 TiB": 16 << 40,
        "17 TiB": 17 << 40,
    }
)
def far_away(at: At, offset: int) -> object:
    with at.opened("f", os.O_RDWR | os.O_CREAT) as fd:
        os.unlink(at / "f")  # nobody is to hash so many zeros
        return (
            told(os.pwrite, fd, b"x", offset),
            told(os.ftruncate, fd, offset),
            told(libc, "fallocate", fd, 0, offset, 10),
        )


# --- mappings


@CASES.add
def mapped_to_share(at: At) -> object:
    at.file("f", b"a" * 10000)
    with at.opened("f", os.O_RDWR) as fd, mmap.mmap(fd, 10000) as one, mmap.mmap(fd, 10000) as two:
        one[5000:5003] = b"xyz"
        seen = two[4999:5004], os.pread(fd, 5, 4999)
        os.pwrite(fd, b"written", 7000)
        also = one[7000:7007]
        one.flush()
    return seen, also, at.content("f")[4999:5004]


@CASES.add
def mapped_and_left_dirty(at: At) -> object:
    at.file("f", b"a" * 10000)
    fd = os.open(at / "f", os.O_RDWR | os.O_APPEND)
    mapping = mmap.mmap(fd, 10000)
    os.close(fd)
    mapping[1:4] = b"xyz"
    mapping[9000:9003] = b"end"
    mapping.close()
    return shown(at / "f")["size"], at.content("f")[:6], at.content("f")[8999:9004]


@CASES.add
def mapped_for_oneself(at: At) -> object:
    at.file("f", b"a" * 100)
    with at.opened("f", os.O_RDONLY) as fd:
        private = mmap.mmap(fd, 100, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        private[0:3] = b"own"
        shared = told(mmap.mmap, fd, 100, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        return private[0:5], os.pread(fd, 5, 0), shared


@CASES.add
def mapped_and_removed(at: At) -> object:
    at.file("f", b"a" * 100)
    with at.opened("f", os.O_RDWR) as fd:
        mapping = mmap.mmap(fd, 100)
        os.unlink(at / "f")
    mapping[0:3] = b"own"
    return mapping[0:5], at.tree()


@CASES.add
def mapped_and_grown(at: At) -> object:
    at.file("f", b"a" * 100)
    with at.opened("f", os.O_RDWR) as fd:
        os.ftruncate(fd, 3 * _BLOCK)
        with mmap.mmap(fd, 3 * _BLOCK) as mapping:
            mapping[2 * _BLOCK : 2 * _BLOCK + 4] = b"grew"
            mapping.flush()
        return os.pread(fd, 6, 2 * _BLOCK - 1), os.pread(fd, 3, 99)


@CASES.add
def mapped_beyond_the_end(at: At) -> object:
    at.file("f", b"a" * 10)

    def look() -> object:
        fd = os.open(at / "f", os.O_RDWR)
        mapping = mmap.mmap(fd, 0)
        os.ftruncate(fd, 0)
        return mapping[0]

    return at.in_child(look)


@CASES.add
def mapped_tail_is_not_kept(at: At) -> object:
    at.file("f", b"a" * 10)
    with at.opened("f", os.O_RDWR) as fd:
        libc_mapping = mmap.mmap(fd, 10)
        libc_mapping[9:10] = b"z"
        libc_mapping.close()
        os.ftruncate(fd, 30)
        return os.pread(fd, 40, 0)


# --- ranges


@CASES.each(
    {
        "allocate": 0,
        "allocate, keep size": _KEEP_SIZE,
        "punch": _PUNCH_HOLE | _KEEP_SIZE,
        "punch without keep size": _PUNCH_HOLE,
        "zero": _ZERO,
        "zero, keep size": _ZERO | _KEEP_SIZE,
        "collapse": _COLLAPSE,
        "insert": _INSERT,
        "unshare": _UNSHARE,
        "nonsense": 1 << 20,
    },
    {
        "inside": (_BLOCK, 2 * _BLOCK),
        "unaligned": (1000, 5000),
        "over the end": (2 * _BLOCK, 10 * _BLOCK),
        "beyond": (20 * _BLOCK, _BLOCK),
        "nothing": (0, 0),
        "negative": (-1, 10),
    },
)
def fallocate(at: At, mode: int, where: tuple[int, int]) -> object:
    offset, length = where
    with at.opened("f", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"abcdefgh" * (_BLOCK // 2))
        os.fsync(fd)
        outcome = told(libc, "fallocate", fd, mode, offset, length)
        os.fsync(fd)
        bytes_now = os.pread(fd, 1 << 20, 0)
        runs = [(byte, sum(1 for b in bytes_now if b == byte)) for byte in sorted(set(bytes_now))]
        return (
            outcome,
            shown(fd)["size"],
            runs,
            bytes_now[max(offset, 0) - 8 : max(offset, 0) + 8],
            os.fstat(fd).st_blocks,
        )


@CASES.add
def allocated_much(at: At) -> object:
    with at.opened("f", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"begins")
        outcome = told(libc, "fallocate", fd, 0, 0, 64 << 20)
        size, blocks = shown(fd)["size"], os.fstat(fd).st_blocks >= (64 << 20) // 512
        os.pwrite(fd, b"ends", (64 << 20) - 4)
        return outcome, size, blocks, os.pread(fd, 9, 0), os.pread(fd, 9, (64 << 20) - 5)


@CASES.each(
    (0, 1, 2 * _BLOCK, 3 * _BLOCK + 5, 8 * _BLOCK, 10 * _BLOCK - 1, 10 * _BLOCK, 11 * _BLOCK, 50 * _BLOCK),
    {"data": os.SEEK_DATA, "hole": os.SEEK_HOLE},
)
def seek(at: At, offset: int, whence: int) -> object:
    """Data in blocks 0-1 and 8, a hole between, a hole at the end."""
    with at.opened("f", os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"x" * (2 * _BLOCK), 0)
        os.pwrite(fd, b"x" * _BLOCK, 8 * _BLOCK)
        os.ftruncate(fd, 10 * _BLOCK)
        os.fsync(fd)
        return told(os.lseek, fd, offset, whence), os.lseek(fd, 0, os.SEEK_CUR)


@CASES.add
def seek_in_nothing(at: At) -> object:
    with at.opened("f", os.O_RDWR | os.O_CREAT) as fd:
        outcomes = [told(os.lseek, fd, 0, whence) for whence in (os.SEEK_DATA, os.SEEK_HOLE, os.SEEK_END)]
        os.ftruncate(fd, 1 << 20)
        return outcomes, [
            told(os.lseek, fd, 0, whence) for whence in (os.SEEK_DATA, os.SEEK_HOLE, os.SEEK_END)
        ]


@CASES.each(
    {
        "all": (0, 0, 10000),
        "some": (100, 50, 300),
        "over the end": (9000, 0, 5000),
        "beyond": (20000, 0, 10),
        "to beyond": (0, 30000, 100),
        "nothing": (0, 0, 0),
    },
    ("another file", "itself"),
)
def copy_range(at: At, where: tuple[int, int, int], target: str) -> object:
    source_offset, target_offset, length = where
    at.file("from", b"0123456789" * 1000)
    at.file("to", b"old content")
    name = "to" if target == "another file" else "from"
    with at.opened("from", os.O_RDONLY) as source, at.opened(name, os.O_RDWR) as into:
        count = told(os.copy_file_range, source, into, length, source_offset, target_offset)
        return (
            count,
            shown(into)["size"],
            os.pread(into, 40, max(target_offset - 5, 0)),
            os.pread(into, 10, target_offset + length - 5),
        )


@CASES.add
def copy_range_with_offsets_of_the_handles(at: At) -> object:
    data = os.urandom(3 << 20)
    at.file("from", data)
    with at.opened("from", os.O_RDONLY) as source, at.opened("to", os.O_RDWR | os.O_CREAT) as target:
        total = 0
        while count := os.copy_file_range(source, target, 1 << 30):
            total += count
        return total, os.pread(target, 3 << 20, 0) == data, os.lseek(target, 0, os.SEEK_CUR)


@CASES.each(("read-only", "append", "directory", "pipe"))
def copy_range_into_what_takes_none(at: At, what: str) -> object:
    at.file("from")
    at.file("to")
    flags = {
        "read-only": os.O_RDONLY,
        "append": os.O_WRONLY | os.O_APPEND,
        "directory": os.O_RDONLY,
        "pipe": os.O_RDWR,
    }[what]
    if what == "pipe":
        os.mkfifo(at / "pipe")
    with at.opened("from", os.O_RDONLY) as source:
        name = {"directory": ".", "pipe": "pipe"}.get(what, "to")
        with at.opened(name, flags) as target:
            return told(os.copy_file_range, source, target, 4), told(os.copy_file_range, target, source, 4)
