"""Modes, owners, times, and who may do what with them."""

from __future__ import annotations

import mmap
import os
import stat
import time
from functools import partial

from tests.posix.at import NOBODY, OTHERS, At, Cases, libc, modes, shown, times_changed, told

CASES = Cases("attributes")

_UTIME_NOW = (1 << 30) - 1
_UTIME_OMIT = (1 << 30) - 2
_MODES = modes(0o000, 0o400, 0o200, 0o100, 0o040, 0o020, 0o010, 0o004, 0o002, 0o001, 0o644, 0o755, 0o777)
_OWNERS = {"owner": (NOBODY, OTHERS), "group": (0, NOBODY), "other": (0, 0)}


# --- modes


@CASES.each(
    ("file", "directory", "fifo"),
    modes(0o0000, 0o0644, 0o0777, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777),
    {"root": 0, "user": NOBODY},
)
def chmod_keeps_every_bit(at: At, what: str, mode: int, user: int) -> object:
    path = at.make(what, "x")
    os.chown(path, NOBODY, NOBODY)
    return at.in_child(lambda: os.chmod(path, mode), user=user or None), shown(path)


@CASES.add
def chmod_of_a_group_that_is_not_mine_loses_setgid(at: At) -> object:
    at.file("f")
    os.chown(at / "f", NOBODY, OTHERS)
    outcome = at.in_child(lambda: os.chmod(at / "f", 0o2755), user=NOBODY)
    with_group = at.in_child(lambda: os.chmod(at / "f", 0o2751), user=NOBODY, groups=[OTHERS])
    return outcome, with_group, shown(at / "f")


@CASES.add
def chmod_of_what_is_not_mine(at: At) -> object:
    at.file("f", mode=0o666)
    at.directory("d", 0o777)
    return [at.in_child(partial(os.chmod, at / name, 0o777), user=NOBODY) for name in ("f", "d")]


@CASES.add
def chmod_through_a_handle_and_a_symlink(at: At) -> object:
    at.file("f")
    os.symlink("f", at / "link")
    with at.opened("f", os.O_RDONLY) as fd:
        os.fchmod(fd, 0o600)
        first = shown(at / "f")["mode"]
    os.chmod(at / "link", 0o640)
    return first, shown(at / "f")["mode"], shown(at / "link")["mode"]


# --- owners


@CASES.each(
    {"both": (1234, 2345), "user": (1234, -1), "group": (-1, 2345), "neither": (-1, -1)},
    modes(0o0644, 0o4755, 0o2755, 0o6711, 0o2644),
)
def chown_and_the_set_id_bits(at: At, owner: tuple[int, int], mode: int) -> object:
    at.file("f", mode=mode)
    os.mkdir(at / "d")
    os.chmod(at / "d", mode)
    return [told(os.chown, at / name, *owner) for name in ("f", "d")], shown(at / "f"), shown(at / "d")


@CASES.each(
    {
        "away": (1234, -1),
        "to my group": (-1, OTHERS),
        "to another group": (-1, 777),
        "to myself": (NOBODY, -1),
    },
    ("mine", "root's"),
)
def chown_by_a_user(at: At, owner: tuple[int, int], whose: str) -> object:
    at.file("f", mode=0o6755)
    if whose == "mine":
        os.chown(at / "f", NOBODY, NOBODY)
        os.chmod(at / "f", 0o6755)
    return at.in_child(lambda: os.chown(at / "f", *owner), user=NOBODY, groups=[OTHERS]), shown(at / "f")


@CASES.each(
    modes(0o4755, 0o2755, 0o6711, 0o2644, 0o6777),
    ("write", "truncate", "ftruncate", "open and truncate", "allocate", "copy"),
    {"root": 0, "user": NOBODY},
)
def changing_the_bytes_drops_the_set_id_bits(at: At, mode: int, how: str, user: int) -> object:
    path = at.file("f", b"bytes", 0o777)
    os.chown(path, NOBODY, NOBODY)
    os.chmod(path, mode)
    at.file("source", b"other", 0o644)

    def change() -> None:
        fd = os.open(path, os.O_RDWR | (os.O_TRUNC if how == "open and truncate" else 0))
        if how == "write":
            os.write(fd, b"BYTES")
        elif how == "ftruncate":
            os.ftruncate(fd, 3)
        elif how == "truncate":
            os.truncate(path, 3)
        elif how == "allocate":
            libc("fallocate", fd, 0, 0, 10000)
        elif how == "copy":
            source = os.open(at / "source", os.O_RDONLY)
            os.copy_file_range(source, fd, 5)
            os.close(source)
        os.close(fd)

    return at.in_child(change, user=user or None), shown(path)


@CASES.each(
    ("file", "directory", "symlink", "fifo", "nameless"), ("setgid", "plain"), {"root": 0, "user": NOBODY}
)
def owner_of_what_is_made(at: At, what: str, parent: str, user: int) -> object:
    at.directory("d")
    os.chown(at / "d", 0, OTHERS)
    os.chmod(at / "d", 0o2777 if parent == "setgid" else 0o777)
    path = at / "d/x"

    def make() -> object:
        os.umask(0o022)
        if what == "directory":
            os.mkdir(path, 0o2777)
        elif what == "symlink":
            os.symlink("y", path)
        elif what == "fifo":
            os.mkfifo(path, 0o2777)
        else:
            fd = os.open(
                path if what == "file" else at / "d",
                os.O_RDWR | (os.O_CREAT if what == "file" else os.O_TMPFILE),
                0o2777,
            )
            try:
                return shown(fd)
            finally:
                os.close(fd)
        return shown(path)

    return at.in_child(make, user=user or None)


# --- who may


@CASES.each(_MODES, _OWNERS)
def access_to_a_file(at: At, mode: int, owner: tuple[int, int]) -> object:
    path = at.file("f")
    os.chown(path, *owner)
    os.chmod(path, mode)

    def look() -> object:
        allowed = [os.access(path, right) for right in (os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.W_OK)]
        opened = [
            told(lambda flags=flags: os.close(os.open(path, flags)))
            for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
        ]
        return allowed, opened, told(os.truncate, path, 2), told(os.utime, path), told(os.utime, path, (1, 1))

    return at.in_child(look, user=NOBODY)


@CASES.each(_MODES, _OWNERS)
def access_to_a_directory(at: At, mode: int, owner: tuple[int, int]) -> object:
    path = at.directory("d")
    at.file("d/f")
    os.chown(path, *owner)
    os.chmod(path, mode)

    def look() -> object:
        return [
            [os.access(path, right) for right in (os.R_OK, os.W_OK, os.X_OK)],
            told(os.listdir, path),
            told(lambda: shown(at / "d/f")["kind"]),
            told(lambda: shown(at / "d/absent")["kind"]),
            told(os.mkdir, at / "d/new"),
            told(os.unlink, at / "d/f"),
            told(os.rename, at / "d/f", at / "d/g"),
            told(os.chdir, path),
        ]

    return at.in_child(look, user=NOBODY)


@CASES.each(
    ("file", "directory", "symlink"), ("mine", "root's"), ("mine", "root's"), ("unlink", "rename", "replace")
)
def removal_from_a_sticky_directory(at: At, what: str, whose: str, whose_directory: str, how: str) -> object:
    at.directory("d")
    path = at.make(what, "d/x")
    os.lchown(path, *((NOBODY, NOBODY) if whose == "mine" else (0, 0)))
    os.chown(at / "d", *((NOBODY, NOBODY) if whose_directory == "mine" else (0, 0)))
    os.chmod(at / "d", 0o1777)

    def remove() -> None:
        if how == "rename":
            os.rename(path, at / "d/y")
        elif how == "replace":
            os.close(os.open(at / "d/own", os.O_CREAT | os.O_WRONLY))
            os.rename(at / "d/own", path)
        elif what == "directory":
            os.rmdir(path)
        else:
            os.unlink(path)

    return at.in_child(remove, user=NOBODY), at.tree()


@CASES.add
def links_to_what_is_not_mine(at: At) -> object:
    at.file("theirs", mode=0o600)
    at.file("readable", mode=0o644)
    os.chmod(at.path, 0o777)
    return [
        at.in_child(partial(os.link, at / name, at / f"{name} too"), user=NOBODY)
        for name in ("theirs", "readable")
    ]


# --- times


@CASES.each(
    {
        "nanoseconds": ((1_234_567_890, 123_456_789), (987_654_321, 987_654_321)),
        "before 1970": ((-1, 5), (-100_000, 999_999_999)),
        "epoch": ((0, 0), (0, 0)),
        "after 2038": ((1 << 31, 1), (1 << 32, 2)),
        "far future": ((1 << 33, 1), ((1 << 33) + 5, 2)),
        "equal": ((1000, 1), (1000, 1)),
        "atime only": ((1000, 1), (0, _UTIME_OMIT)),
        "mtime only": ((0, _UTIME_OMIT), (1000, 1)),
        "neither": ((0, _UTIME_OMIT), (0, _UTIME_OMIT)),
        "nonsense": ((0, 1_000_000_000), (0, 0)),
    },
    ("file", "directory", "symlink", "fifo"),
)
def utimensat(at: At, times: tuple[tuple[int, int], tuple[int, int]], what: str) -> object:
    path = at.make(what, "x")
    os.utime(path, ns=(5_000_000_005, 6_000_000_006), follow_symlinks=False)
    words = b"".join(part.to_bytes(8, "little", signed=True) for pair in times for part in pair)
    outcome = told(libc, "utimensat", -100, os.fsencode(path), words, 0x100)
    seen = os.lstat(path)
    return outcome, seen.st_atime_ns, seen.st_mtime_ns


@CASES.add
def utimensat_now(at: At) -> object:
    at.file("f")
    os.utime(at / "f", (1, 1))
    before = time.time_ns() - 10_000_000
    os.utime(at / "f")
    now = os.stat(at / "f")
    words = b"".join(n.to_bytes(8, "little") for n in (0, _UTIME_OMIT, 0, _UTIME_NOW))
    os.utime(at / "f", ns=(7, 7))
    libc("utimensat", -100, os.fsencode(at / "f"), words, 0)
    mixed = os.stat(at / "f")
    return (
        now.st_atime_ns >= before,
        now.st_mtime_ns >= before,
        mixed.st_atime_ns,
        mixed.st_mtime_ns >= before,
    )


@CASES.each(
    {
        "read": lambda at, fd: os.pread(fd, 4, 0),
        "write": lambda at, fd: os.pwrite(fd, b"x", 0),
        "write nothing": lambda at, fd: os.write(fd, b""),
        "shorten": lambda at, fd: os.ftruncate(fd, 1),
        "lengthen": lambda at, fd: os.ftruncate(fd, 100),
        "same length": lambda at, fd: os.ftruncate(fd, 4),
        "same length by name": lambda at, fd: os.truncate(at / "f", 4),
        "other length by name": lambda at, fd: os.truncate(at / "f", 3),
        "open and truncate": lambda at, fd: os.close(os.open(at / "f", os.O_WRONLY | os.O_TRUNC)),
        "chmod": lambda at, fd: os.fchmod(fd, 0o600),
        "chown": lambda at, fd: os.fchown(fd, 5, 5),
        "set mtime": lambda at, fd: os.utime(fd, (1, 1)),
        "open": lambda at, fd: os.close(os.open(at / "f", os.O_RDWR)),
        "link": lambda at, fd: os.link(at / "f", at / "d/g"),
        "rename": lambda at, fd: os.rename(at / "other", at / "another"),
        "unlink": lambda at, fd: os.unlink(at / "other"),
        "replace": lambda at, fd: os.rename(at / "other", at / "d/inner"),
        "create": lambda at, fd: at.file("d/new"),
        "mkdir": lambda at, fd: os.mkdir(at / "d/sub"),
        "rmdir": lambda at, fd: os.rmdir(at / "empty"),
        "symlink": lambda at, fd: os.symlink("x", at / "d/link"),
        "mkfifo": lambda at, fd: os.mkfifo(at / "d/fifo"),
        "setxattr": lambda at, fd: os.setxattr(at / "f", "user.x", b"1"),
        "list": lambda at, fd: os.listdir(at / "d"),
        "fsync": lambda at, fd: os.fsync(fd),
        "punch a hole": lambda at, fd: libc("fallocate", fd, 3, 0, 2),
        "fail to create": lambda at, fd: told(os.mkdir, at / "d"),
        "fail to remove": lambda at, fd: told(os.rmdir, at / "d"),
    }
)
def times_that_change(at: At, action: object) -> object:
    at.file("f")
    at.file("other")
    os.mkdir(at / "d")
    os.mkdir(at / "empty")
    at.file("d/inner")
    assert callable(action)
    with at.opened("f", os.O_RDWR) as fd:
        return times_changed(lambda: action(at, fd), at.path, at / "f", at / "d")


@CASES.each(("by handle", "by name"), ("written", "mapped", "cut", "copied into"), ("at once", "after"))
def times_set_while_open(at: At, how: str, change: str, moment: str) -> object:
    """They stay when the file is closed, but for a write that comes after them."""
    at.file("source", b"x" * 100_000)
    with at.opened("f", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"x" * 200_000)

        def once_more() -> None:
            if change == "written":
                os.pwrite(fd, b"y", 7)
            elif change == "mapped":
                with mmap.mmap(fd, 100) as view:
                    view[0:1] = b"y"
            elif change == "cut":
                os.ftruncate(fd, 10)
            else:
                with at.opened("source", os.O_RDONLY) as source:
                    os.copy_file_range(source, fd, 100_000, 0, 5)

        if moment == "at once":
            once_more()
        os.utime(fd if how == "by handle" else at / "f", ns=(1_000_000_001, 2_000_000_002))
        if moment == "after":
            time.sleep(0.01)
            once_more()
        open_still = os.fstat(fd).st_mtime_ns
        os.rename(at / "f", at / "g")
        ctime = os.fstat(fd).st_ctime_ns
    seen = os.stat(at / "g")
    return (
        moment == "after" or seen.st_atime_ns,
        seen.st_mtime_ns == 2_000_000_002,
        open_still == seen.st_mtime_ns,
        ctime <= seen.st_ctime_ns,
    )


@CASES.add
def times_go_forward(at: At) -> object:
    before = time.time_ns() - 10_000_000
    at.file("f")
    born = os.stat(at / "f")
    after = time.time_ns() + 10_000_000
    within = [before <= t <= after for t in (born.st_atime_ns, born.st_mtime_ns, born.st_ctime_ns)]
    os.utime(at / "f", ns=(1, 1))
    return within, before <= os.stat(at / "f").st_ctime_ns, os.stat(at / "f").st_mtime_ns


@CASES.add
def times_survive_a_rename_and_a_link(at: At) -> object:
    at.file("f")
    os.utime(at / "f", ns=(1_000_000_001, 2_000_000_002))
    os.rename(at / "f", at / "g")
    os.link(at / "g", at / "h")
    return [(s.st_atime_ns, s.st_mtime_ns) for s in (os.stat(at / "g"), os.stat(at / "h"))]


@CASES.add
def inode_numbers_tell_files_apart(at: At) -> object:
    for number in range(50):
        at.file(f"f{number}", b"the same bytes in each")
    numbers = {os.stat(at / f"f{number}").st_ino for number in range(50)}
    listed = {entry.inode() for entry in os.scandir(at.path)}
    return len(numbers), numbers == listed, os.stat(at.path).st_dev == os.stat(at / "f0").st_dev


@CASES.add
def device_and_block_size(at: At) -> object:
    at.file("f", b"x" * 5000)
    seen = os.stat(at / "f")
    return seen.st_blksize, stat.S_ISREG(seen.st_mode)


@CASES.each(("read", "list", "write", "set and written"))
def atime_after(at: At, what: str) -> object:
    at.file("f")
    os.mkdir(at / "d")
    if what == "set and written":
        os.utime(at / "f", ns=(1_000_000_001, 2_000_000_002))
    before = os.stat(at / "f").st_atime_ns, os.stat(at / "d").st_atime_ns
    time.sleep(0.011)
    if what == "read":
        at.content("f")
    elif what == "list":
        os.listdir(at / "d")
    else:
        with at.opened("f", os.O_WRONLY) as fd:
            os.write(fd, b"x")
    after = os.stat(at / "f").st_atime_ns, os.stat(at / "d").st_atime_ns
    return [old == new for old, new in zip(before, after, strict=True)]
