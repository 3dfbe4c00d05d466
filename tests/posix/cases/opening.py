"""open(2): every kind with every flag, modes of what is made, programs and their files."""

from __future__ import annotations

import fcntl
import os
import subprocess

from tests.posix.at import NOBODY, At, Cases, modes, shown, told

CASES = Cases("open")

_FLAGS = {
    "read": os.O_RDONLY,
    "write": os.O_WRONLY,
    "both": os.O_RDWR,
    "neither": os.O_ACCMODE,
    "create": os.O_CREAT | os.O_WRONLY,
    "create read-only": os.O_CREAT | os.O_RDONLY,
    "exclusive": os.O_CREAT | os.O_EXCL | os.O_RDWR,
    "truncate": os.O_TRUNC | os.O_RDWR,
    "truncate read-only": os.O_TRUNC | os.O_RDONLY,
    "directory": os.O_DIRECTORY | os.O_RDONLY,
    "directory to write": os.O_DIRECTORY | os.O_WRONLY,
    "directory create": os.O_DIRECTORY | os.O_CREAT | os.O_RDONLY,
    "not followed": os.O_NOFOLLOW | os.O_RDONLY,
    "path": os.O_PATH,
    "path not followed": os.O_PATH | os.O_NOFOLLOW,
    "append": os.O_APPEND | os.O_WRONLY,
    "synchronous": os.O_SYNC | os.O_RDWR,
    "no atime": os.O_NOATIME | os.O_RDONLY,
}
_KINDS = (
    "nothing",
    "file",
    "directory",
    "symlink",
    "symlink to a directory",
    "dangling symlink",
    "fifo",
    "socket",
    "device",
)


@CASES.each(_KINDS, _FLAGS)
def opened(at: At, kind: str, flags: int) -> object:
    at.file("target")
    os.mkdir(at / "target directory")
    path = at.make(kind, "x")

    def outcome() -> object:
        fd = os.open(path, flags | os.O_NONBLOCK, 0o640)
        try:
            return shown(fd), told(os.read, fd, 9) if flags != os.O_PATH else None
        finally:
            os.close(fd)

    return told(outcome), at.tree()


@CASES.each(
    modes(0o000, 0o022, 0o077, 0o777),
    modes(0o777, 0o666, 0o4755, 0o2755, 0o1777, 0o7777),
    ("file", "directory", "fifo", "nameless"),
)
def modes_under_a_umask(at: At, umask: int, mode: int, what: str) -> object:
    path = at / "x"

    def make() -> object:
        os.umask(umask)
        if what == "directory":
            os.mkdir(path, mode)
        elif what == "fifo":
            os.mkfifo(path, mode)
        else:
            flags, where = (os.O_TMPFILE, at.path) if what == "nameless" else (os.O_CREAT, path)
            fd = os.open(where, flags | os.O_WRONLY, mode)
            seen = shown(fd)["mode"]
            os.close(fd)
            return seen
        return shown(path)["mode"]

    return at.in_child(make)


@CASES.add
def for_writing_what_nobody_may_write(at: At) -> object:
    """Who creates a file may write to it, whatever its mode."""
    os.chmod(at.path, 0o777)

    def make() -> object:
        fd = os.open(at / "f", os.O_CREAT | os.O_RDWR, 0o400)
        os.write(fd, b"written by its maker")
        os.close(fd)
        return told(os.open, at / "f", os.O_RDWR), told(os.open, at / "f", os.O_RDONLY) != "EACCES"

    return at.in_child(make, user=NOBODY), at.content("f")


@CASES.add
def twice_shares_bytes_not_offsets(at: At) -> object:
    at.file("f", b"0123456789")
    with at.opened("f", os.O_RDWR) as one, at.opened("f", os.O_RDWR) as two:
        os.read(one, 4)
        os.write(two, b"ab")
        copy = os.dup(one)
        rest = os.read(copy, 3)
        os.close(copy)
        return rest, os.read(one, 9), os.lseek(two, 0, os.SEEK_CUR)


@CASES.add
def to_append(at: At) -> object:
    at.file("f", b"first ")
    with at.opened("f", os.O_WRONLY | os.O_APPEND) as one, at.opened("f", os.O_RDWR) as two:
        os.write(one, b"second ")
        os.pwrite(two, b"FIRST", 0)
        os.write(two, b"third")  # at its own offset
        os.write(one, b"fourth ")
        os.pwrite(one, b"fifth", 0)  # Linux appends all the same
        return at.content("f"), os.lseek(one, 0, os.SEEK_CUR)


@CASES.add
def to_append_later(at: At) -> object:
    at.file("f", b"0123456789")
    with at.opened("f", os.O_RDWR) as fd:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        os.write(fd, b"appended")
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        os.pwrite(fd, b"in place", 0)
        return at.content("f"), fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_APPEND | os.O_ACCMODE)


@CASES.add
def by_a_program_that_runs(at: At) -> object:
    with open("/bin/true", "rb") as file:
        program = file.read()
    at.file("true", program, 0o755)
    at.file("cat", b"#!/bin/cat\nread by it\n", 0o755)
    at.file("no bit", b"#!/bin/cat\n", 0o644)
    at.file("no program", b"\0\1\2\3", 0o755)
    return [
        told(lambda: subprocess.run([at / "true"], check=True).returncode),
        told(lambda: subprocess.run([at / "cat"], check=True, stdout=subprocess.PIPE).stdout),
        told(lambda: subprocess.run([at / "no bit"], check=False).returncode),
        told(lambda: subprocess.run([at / "no program"], check=False).returncode),
    ]


@CASES.add
def for_writing_what_is_running(at: At) -> object:
    with open("/bin/sleep", "rb") as file:
        program = file.read()
    at.file("sleep", program, 0o755)
    with subprocess.Popen([at / "sleep", "60"]) as running:
        busy = [
            told(os.open, at / "sleep", os.O_WRONLY),
            told(os.open, at / "sleep", os.O_RDWR | os.O_TRUNC),
            told(os.truncate, at / "sleep", 0),
            told(os.rename, at / "sleep", at / "renamed"),
            told(os.unlink, at / "renamed"),
        ]
        running.kill()
    return busy


@CASES.add
def for_running_what_is_written(at: At) -> object:
    with open("/bin/true", "rb") as file:
        program = file.read()
    at.file("true", program, 0o755)
    with at.opened("true", os.O_WRONLY):
        busy = told(lambda: subprocess.run([at / "true"], check=False).returncode)
    return busy, told(lambda: subprocess.run([at / "true"], check=False).returncode)


@CASES.add
def of_what_was_replaced_by_another_kind(at: At) -> object:
    at.file("x")
    first = shown(at / "x")["kind"]
    os.unlink(at / "x")
    os.mkdir(at / "x")
    second = shown(at / "x")["kind"]
    os.rmdir(at / "x")
    os.symlink("y", at / "x")
    return first, second, shown(at / "x")["kind"], told(os.open, at / "x", os.O_RDONLY)


@CASES.add
def with_more_handles_than_one_would_think(at: At) -> object:
    at.file("f", b"shared by all")
    fds = [os.open(at / "f", os.O_RDWR) for _ in range(200)]
    os.pwrite(fds[0], b"SHARED", 0)
    read = {os.pread(fd, 99, 0) for fd in fds}
    for fd in fds:
        os.close(fd)
    return sorted(read)
