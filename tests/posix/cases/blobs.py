"""Files staged by digest behave as files that were written. Each case with small and large ones, the bytes here or elsewhere."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess

from tests.posix.at import NOBODY, At, Cases, libc, modes, shown, told

CASES = Cases("blob")

_LINE = b"the bytes of a blob, staged by digest\n"
TEXTS = {"small": _LINE * 300, "large": _LINE * 30_000}
"""The large one is beyond what the mount hands to the kernel to read itself."""


@CASES.add
def is_a_file(at: At) -> object:
    at.blob("f", at.text)
    return shown(at / "f"), os.stat(at / "f").st_blocks, at.content("f") == at.text.decode(), at.tree()


@CASES.add
def that_is_empty(at: At) -> object:
    at.blob("f", b"")
    with at.opened("f", os.O_RDWR) as fd:
        return shown(fd), os.read(fd, 9), told(os.write, fd, b"now it has some"), at.content("f")


@CASES.add
def read_in_pieces(at: At) -> object:
    at.blob("f", at.text)
    with at.opened("f", os.O_RDONLY) as fd:
        return [
            os.pread(fd, 50, offset) for offset in (5000, 0, len(at.text) - 10, len(at.text), 1 << 40)
        ], os.lseek(fd, -5, os.SEEK_END)


@CASES.each(
    {
        "write": os.O_WRONLY,
        "read and write": os.O_RDWR,
        "truncate": os.O_WRONLY | os.O_TRUNC,
        "append": os.O_WRONLY | os.O_APPEND,
        "create": os.O_WRONLY | os.O_CREAT,
        "exclusive": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
        "truncate without writing": os.O_RDONLY | os.O_TRUNC,
    }
)
def opened_to(at: At, flags: int) -> object:
    at.blob("f", at.text)

    def use() -> object:
        with at.opened("f", flags) as fd:
            return told(os.write, fd, b"WRITTEN"), shown(fd)

    return told(use), shown(at / "f"), at.content("f")[:20], at.content("f")[-20:]


@CASES.each(("0", "1", "100", "4096", "all", "one more", "much more"), ("by name", "by handle"))
def cut_to(at: At, what: str, how: str) -> object:
    sizes = {"all": len(at.text), "one more": len(at.text) + 1, "much more": 4 << 20}
    size = sizes[what] if what in sizes else int(what)
    at.blob("f", at.text)
    if how == "by name":
        os.truncate(at / "f", size)
    else:
        with at.opened("f", os.O_RDWR) as fd:
            os.ftruncate(fd, size)
    content = at.content("f")
    return (
        shown(at / "f"),
        content[: len(at.text)] == at.text.decode()[:size],
        content[len(at.text) :].strip("\0"),
        len(content),
    )


@CASES.add
def written_while_somebody_reads(at: At) -> object:
    at.blob("f", at.text)
    with at.opened("f", os.O_RDONLY) as reader:
        first = os.pread(reader, 9, 0)
        with at.opened("f", os.O_WRONLY) as writer:
            os.pwrite(writer, b"THE BYTES", 0)
            return first, os.pread(reader, 20, 0), os.pread(reader, 9, 5000) == at.text[5000:5009]


@CASES.each(("written", "truncated", "cut", "replaced"), ("one name", "two names"))
def changed_while_somebody_reads(at: At, how: str, names: str) -> object:
    """What those see who look afterwards."""
    at.blob("f", at.text)
    if names == "two names":
        os.link(at / "f", at / "g")

    def change() -> None:
        if how == "cut":
            os.truncate(at / "f", 100)
        elif how == "replaced":
            at.file("new", b"new")
            os.rename(at / "new", at / "f")
        else:
            with at.opened("f", os.O_WRONLY | (os.O_TRUNC if how == "truncated" else 0)) as fd:
                os.write(fd, b"CHANGED")

    with at.opened("f", os.O_RDONLY) as reader:
        os.pread(reader, 9, 0)
        outcome = told(change)
    return (
        outcome,
        at.content("f")[:120],
        shown(at / "f"),
        at.content("g")[:9] if names == "two names" else None,
    )


@CASES.add
def mapped(at: At) -> object:
    at.blob("f", at.text)
    with at.opened("f", os.O_RDONLY) as fd, mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as view:
        return (
            view[0:9],
            view[5000:5009],
            told(mmap.mmap, fd, 0, mmap.MAP_SHARED, mmap.PROT_WRITE),
            view.size(),
        )


@CASES.add
def mapped_to_write(at: At) -> object:
    at.blob("f", at.text)
    with at.opened("f", os.O_RDWR) as fd, mmap.mmap(fd, 0) as view:
        view[0:3] = b"MAP"
        view[5000:5003] = b"PED"
    return at.content("f")[:9], at.content("f")[4999:5005], shown(at / "f")["size"]


@CASES.add
def whose_bytes_are_another_name_s_too(at: At) -> object:
    """Two files of one digest stay two files."""
    at.blob("f", at.text)
    at.blob("g", at.text)
    with at.opened("f", os.O_RDWR) as fd:
        os.write(fd, b"CHANGED")
    return at.content("f")[:9], at.content("g")[:9], os.stat(at / "f").st_ino != os.stat(at / "g").st_ino


@CASES.each(modes(0o644, 0o000, 0o555, 0o4711))
def chmod(at: At, mode: int) -> object:
    at.blob("f", at.text)
    inode = os.stat(at / "f").st_ino
    os.chmod(at / "f", mode)
    return shown(at / "f"), os.stat(at / "f").st_ino == inode, at.content("f")[:9]


@CASES.add
def given_times_owner_and_attributes(at: At) -> object:
    at.blob("f", at.text)
    os.chown(at / "f", 1234, 2345)
    os.setxattr(at / "f", "user.x", b"kept")
    os.utime(at / "f", ns=(1_000_000_001, 2_000_000_002))
    seen = os.stat(at / "f")
    with at.opened("f", os.O_RDWR) as fd:
        os.write(fd, b"NEW")
    return shown(at / "f"), seen.st_atime_ns, seen.st_mtime_ns, os.getxattr(at / "f", "user.x")


@CASES.add
def keeps_its_mtime_when_read(at: At) -> object:
    at.blob("f", at.text)
    before = os.stat(at / "f")
    at.content("f")
    after = os.stat(at / "f")
    return (
        before.st_mtime_ns == after.st_mtime_ns,
        before.st_ctime_ns == after.st_ctime_ns,
        before.st_ino == after.st_ino,
    )


@CASES.add
def linked_renamed_and_removed(at: At) -> object:
    at.blob("f", at.text)
    os.mkdir(at / "d")
    os.link(at / "f", at / "d/g")
    os.rename(at / "f", at / "d/h")
    with at.opened("d/g", os.O_WRONLY) as fd:
        os.write(fd, b"BOTH")
    seen = shown(at / "d/g"), at.content("d/h")[:9]
    os.unlink(at / "d/g")
    return seen, at.content("d/h")[:9], shown(at / "d/h"), at.tree()


@CASES.add
def removed_while_open(at: At) -> object:
    at.blob("f", at.text)
    with at.opened("f", os.O_RDONLY) as reader:
        os.unlink(at / "f")
        return os.pread(reader, 9, 0), shown(reader), at.tree()


@CASES.add
def replaced_by_rename(at: At) -> object:
    at.blob("f", at.text)
    at.blob("g", b"the other blob")
    with at.opened("f", os.O_RDONLY) as old:
        os.rename(at / "g", at / "f")
        return os.pread(old, 9, 0), at.content("f"), at.tree()


@CASES.add
def staged_again_over_another(at: At) -> object:
    at.file("source", b"x")
    at.blob("f", at.text)
    first = at.content("f")[:9]
    os.unlink(at / "f")
    at.blob("f", b"staged again")
    return first, at.content("f"), shown(at / "f")["size"]


@CASES.add
def run_as_a_program(at: At) -> object:
    at.blob("script", b"#!/bin/sh\necho from a blob, with $1\n")
    with open("/bin/echo", "rb") as file:
        at.blob("program", file.read())
    return [
        subprocess.run([at / name, "arguments"], check=True, stdout=subprocess.PIPE).stdout.decode()
        for name in ("script", "program")
    ]


@CASES.add
def written_while_it_runs(at: At) -> object:
    with open("/bin/sleep", "rb") as file:
        at.blob("sleep", file.read())
    with subprocess.Popen([at / "sleep", "60"]) as running:
        busy = told(os.open, at / "sleep", os.O_WRONLY), told(os.truncate, at / "sleep", 0)
        running.kill()
    return busy, told(lambda: os.close(os.open(at / "sleep", os.O_WRONLY)))


@CASES.add
def copied_in_ranges(at: At) -> object:
    at.blob("f", at.text)
    at.blob("g", b"target " * 2000)
    with at.opened("f", os.O_RDONLY) as source, at.opened("g", os.O_RDWR) as target:
        count = told(os.copy_file_range, source, target, 5000, 10, 20)
        return count, os.pread(target, 30, 10), os.pread(target, 30, 5010), shown(target)["size"]


@CASES.add
def allocated_and_punched(at: At) -> object:
    at.blob("f", at.text)
    with at.opened("f", os.O_RDWR) as fd:
        punched = told(libc, "fallocate", fd, 3, 4096, 4096)
        grown = told(libc, "fallocate", fd, 0, 0, 20000)
        return punched, grown, shown(fd)["size"], os.pread(fd, 10, 4090), os.pread(fd, 10, 8190)


@CASES.each({"data": os.SEEK_DATA, "hole": os.SEEK_HOLE}, ("first", "5000", "last", "end"))
def sought_for_holes(at: At, whence: int, where: str) -> object:
    offset = {"first": 0, "5000": 5000, "last": len(at.text) - 1, "end": len(at.text)}[where]
    at.blob("f", at.text)
    with at.opened("f", os.O_RDONLY) as fd:
        return told(os.lseek, fd, offset, whence)


@CASES.add
def synced(at: At) -> object:
    at.blob("f", at.text)
    outcomes = []
    for flags in (os.O_RDONLY, os.O_RDWR):
        with at.opened("f", flags) as fd:
            outcomes += [told(os.fsync, fd), told(os.fdatasync, fd)]
    return outcomes


@CASES.add
def locked(at: At) -> object:
    at.blob("f", at.text)
    with at.opened("f", os.O_RDONLY) as one, at.opened("f", os.O_RDONLY) as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        return told(fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)


@CASES.each(("read", "write", "truncate", "chmod", "unlink"))
def by_another_user(at: At, how: str) -> object:
    at.blob("f", at.text)
    path = at / "f"
    action = {
        "read": lambda: len(at.content("f")),
        "write": lambda: os.open(path, os.O_WRONLY),
        "truncate": lambda: os.truncate(path, 0),
        "chmod": lambda: os.chmod(path, 0o777),
        "unlink": lambda: os.unlink(path),
    }[how]
    return at.in_child(action, user=NOBODY)
