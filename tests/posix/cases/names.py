"""Names: their bytes and lengths, making, removing, hard links, symlinks, devices, fifos and sockets."""

from __future__ import annotations

import os
import select
import socket
import stat

from tests.posix.at import NOBODY, At, Cases, kind, libc, shown, times_changed, told

CASES = Cases("names")


def _create(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


@CASES.each(
    {
        "plain": "plain",
        "255 bytes": "n" * 255,
        "256 bytes": "n" * 256,
        "1024 bytes": "n" * 1024,
        "1025 bytes": "n" * 1025,
        "4095 bytes": "n" * 4095,
        "255 bytes of UTF-8": "é" * 127 + "x",
        "UTF-8": "Grüße-日本",
        "not UTF-8": os.fsdecode(b"caf\xe9-\xff\xfe"),
        "control": "tab\tnewline\nbell\a",
        "blank": " ",
        "dots": "...",
        "leading dash": "-rf",
        "star": "*?[",
        "backslash": "a\\b",
        "dot": ".",
        "dot dot": "..",
    },
    ("file", "directory", "symlink", "link"),
)
def can_be(at: At, text: str, what: str) -> object:
    at.file("source")
    make = {
        "file": lambda: _create(at / text),
        "directory": lambda: os.mkdir(at / text),
        "symlink": lambda: os.symlink("target", at / text),
        "link": lambda: os.link(at / "source", at / text),
    }[what]
    return (
        told(make),
        sorted(os.fsencode(n).hex() for n in os.listdir(at.path)),
        told(lambda: kind(at / text)),
    )


@CASES.add
def that_differ_in_one_bit_are_two(at: At) -> object:
    for name in ("a", "A", "é", "e\u0301", "ß"):
        _create(at / name)
    return sorted(os.fsencode(n).hex() for n in os.listdir(at.path))


@CASES.add
def of_paths_up_to_path_max(at: At) -> object:
    here = os.open(at.path, os.O_PATH)
    deep = "/".join(["d" * 99] * 40) + "/"  # 4000 bytes
    at_depth = here
    for _ in range(40):
        os.mkdir("d" * 99, dir_fd=at_depth)
        below = os.open("d" * 99, os.O_PATH, dir_fd=at_depth)
        os.close(at_depth)
        at_depth = below
    os.close(at_depth)
    here = os.open(at.path, os.O_PATH)
    outcomes = [
        told(lambda size=size: os.close(os.open(deep + "f" * size, os.O_CREAT | os.O_RDWR, dir_fd=here)))
        for size in (10, 94, 95, 96, 97)
    ]
    os.close(here)
    return outcomes


@CASES.add
def with_too_long_a_component_on_the_way(at: At) -> object:
    return (
        told(os.stat, at / f"{'n' * 256}/x"),
        told(os.stat, at / "absent/x"),
        told(os.mkdir, at / "absent/x"),
    )


@CASES.add
def with_a_file_on_the_way(at: At) -> object:
    at.file("f")
    return [told(f, at / "f/x") for f in (os.stat, os.mkdir, os.unlink, os.rmdir, os.listdir, _create)]


@CASES.add
def of_directories_with_a_slash_behind(at: At) -> object:
    at.file("f")
    return [
        told(os.mkdir, at / "d/"),
        told(os.stat, at / "f/"),
        told(os.unlink, at / "f/"),
        told(_create, at / "new/"),
        told(os.rmdir, at / "d/"),
    ]


@CASES.each(
    (
        "nothing",
        "file",
        "directory",
        "full directory",
        "symlink",
        "dangling symlink",
        "fifo",
        "a directory's dot",
    ),
    ("unlink", "rmdir"),
)
def removed(at: At, what: str, how: str) -> object:
    at.directory("target")
    path = at / "target/." if what == "a directory's dot" else at.make(what, "x")
    return told(getattr(os, how), path), at.tree()


@CASES.each(
    ("file", "directory", "symlink", "dangling symlink", "fifo"),
    ("file", "directory", "symlink", "fifo", "link"),
)
def taken_already(at: At, there: str, wanted: str) -> object:
    at.file("target")
    path = at.make(there, "x")
    make = {
        "file": lambda: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)),
        "directory": lambda: os.mkdir(path),
        "symlink": lambda: os.symlink("y", path),
        "fifo": lambda: os.mkfifo(path),
        "link": lambda: os.link(at / "target", path),
    }[wanted]
    return told(make), at.tree()


# --- directories


@CASES.add
def of_directories_count_as_links(at: At) -> object:
    counts = [shown(at.path)["links"]]
    for step in (
        lambda: os.mkdir(at / "a"),
        lambda: os.mkdir(at / "a/b"),
        lambda: at.file("f"),
        lambda: os.mkdir(at / "c"),
        lambda: os.rename(at / "c", at / "a/c"),
        lambda: os.rmdir(at / "a/b"),
        lambda: os.rename(at / "a/c", at / "c"),
    ):
        step()
        counts.append([shown(at / name)["links"] for name in (".", "a")])
    return counts


@CASES.add
def dot_and_dot_dot_lead_where_they_should(at: At) -> object:
    os.makedirs(at / "a/b")
    pairs = (("a/.", "a"), ("a/b/..", "a"), ("a/..", "."))
    return [os.stat(at / one).st_ino == os.stat(at / other).st_ino for one, other in pairs]


@CASES.add
def of_a_removed_directory_take_nothing_new(at: At) -> object:
    os.mkdir(at / "d")
    at.file("f")
    here = os.open(at / "d", os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir(at / "d")
    outcomes = [
        told(lambda: os.close(os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=here))),
        told(os.mkdir, "x", dir_fd=here),
        told(os.symlink, "y", "x", dir_fd=here),
        told(os.link, at / "f", "x", dst_dir_fd=here),
        told(os.rename, at / "f", "x", dst_dir_fd=here),
        told(os.stat, "x", dir_fd=here),
        told(os.listdir, here),
        shown(here),
    ]
    os.close(here)
    return outcomes


# --- hard links


@CASES.add
def of_one_file(at: At) -> object:
    at.file("a", b"shared")
    os.mkdir(at / "d")
    os.link(at / "a", at / "b")
    os.link(at / "b", at / "d/c")
    with at.opened("b", os.O_WRONLY) as fd:
        os.write(fd, b"SHARED BY ALL")
    os.chmod(at / "d/c", 0o600)
    same = len({os.stat(at / name).st_ino for name in ("a", "b", "d/c")}) == 1
    before = shown(at / "a")
    os.unlink(at / "a")
    return same, before, shown(at / "b"), at.content("d/c")


@CASES.add
def of_one_file_and_its_times(at: At) -> object:
    at.file("a")
    os.mkdir(at / "d")
    linked = times_changed(lambda: os.link(at / "a", at / "d/b"), at.path, at / "a", at / "d")
    return linked, times_changed(lambda: os.unlink(at / "d/b"), at.path, at / "a", at / "d")


@CASES.each(("directory", "symlink", "fifo", "socket", "nothing"))
def more_of_one(at: At, what: str) -> object:
    at.make(what, "x")
    outcome = told(os.link, at / "x", at / "y", follow_symlinks=False)
    return (
        outcome,
        at.tree(),
        told(lambda: shown(at / "y")),
        told(os.unlink, at / "x"),
        told(lambda: shown(at / "y")),
    )


@CASES.add
def of_an_open_file_that_lost_its_last(at: At) -> object:
    at.file("f")
    with at.opened("f", os.O_RDWR) as fd:
        os.unlink(at / "f")
        there = os.open(at.path, os.O_PATH)
        outcome = told(
            os.link, f"/proc/self/fd/{fd}", "back", src_dir_fd=there, dst_dir_fd=there, follow_symlinks=True
        )
        os.close(there)
        return outcome, shown(fd), at.tree()


@CASES.add
def removed_while_open(at: At) -> object:
    at.file("f", b"still here")
    with at.opened("f", os.O_RDWR) as fd, at.opened("f", os.O_RDONLY) as second:
        os.unlink(at / "f")
        os.pwrite(fd, b"and written", 20)
        os.ftruncate(fd, 25)
        os.fchmod(fd, 0o640)
        at.file("f", b"another")
        return os.pread(second, 99, 0), shown(fd), at.content("f"), shown(at / "f")


@CASES.add
def removed_while_held_by_path_only(at: At) -> object:
    at.file("f", b"still here")
    with at.opened("f", os.O_PATH) as held:
        os.unlink(at / "f")
        again = os.open(f"/proc/self/fd/{held}", os.O_RDWR)
        os.write(again, b"STILL")
        os.close(again)
        again = os.open(f"/proc/self/fd/{held}", os.O_RDONLY)
        read = os.read(again, 99)
        os.close(again)
        return read, shown(held)


# --- files without a name


def _tmpfile(at: At, flags: int = 0) -> int:
    return os.open(at.path, os.O_TMPFILE | os.O_RDWR | flags, 0o640)


@CASES.add
def given_to_what_had_none(at: At) -> object:
    fd = _tmpfile(at)
    os.write(fd, b"born nameless")
    before = shown(fd), at.tree()
    there = os.open(at.path, os.O_PATH)
    outcome = told(
        os.link, f"/proc/self/fd/{fd}", "named", src_dir_fd=there, dst_dir_fd=there, follow_symlinks=True
    )
    second = told(os.link, at / "named", at / "twice")
    after = shown(fd), shown(at / "named"), at.content("named")
    os.close(there)
    os.close(fd)
    return before, outcome, second, after, at.content("twice")


@CASES.add
def given_to_what_had_none_after_it_was_closed(at: At) -> object:
    fd = _tmpfile(at)
    os.write(fd, b"held by path")
    held = os.open(f"/proc/self/fd/{fd}", os.O_PATH)
    os.close(fd)
    there = os.open(at.path, os.O_PATH)
    outcome = told(
        os.link, f"/proc/self/fd/{held}", "named", src_dir_fd=there, dst_dir_fd=there, follow_symlinks=True
    )
    os.close(there)
    os.close(held)
    return outcome, told(at.content, "named")


@CASES.add
def refused_to_what_was_to_have_none(at: At) -> object:
    fd = _tmpfile(at, os.O_EXCL)
    there = os.open(at.path, os.O_PATH)
    outcome = told(
        os.link, f"/proc/self/fd/{fd}", "named", src_dir_fd=there, dst_dir_fd=there, follow_symlinks=True
    )
    os.close(there)
    os.close(fd)
    return outcome, at.tree()


@CASES.add
def of_nothing_need_a_directory_to_write_in(at: At) -> object:
    at.file("f")
    at.directory("d", 0o555)
    read_only = told(os.open, at.path, os.O_TMPFILE | os.O_RDONLY)
    return (
        read_only,
        told(os.open, at / "f", os.O_TMPFILE | os.O_RDWR),
        at.in_child(lambda: os.open(at / "d", os.O_TMPFILE | os.O_RDWR), user=NOBODY),
    )


# --- symlinks


@CASES.each(
    {
        "plain": "target",
        "one byte": "t",
        "odd path": "a//b/./../c/",
        "absolute": "/nowhere/at/all",
        "not UTF-8": os.fsdecode(b"\xff\xfe/caf\xe9"),
        "59 bytes": "t" * 59,
        "60 bytes": "t" * 60,
        "255 bytes": "t" * 255,
        "4095 bytes": "/".join(["t" * 127] * 32)[:4095],
        "4096 bytes": "t" * 4096,
        "empty": "",
        "newline": "a\nb",
    }
)
def symlink_targets_are_kept(at: At, target: str) -> object:
    outcome = told(os.symlink, target, at / "link")
    kept = told(lambda: os.readlink(os.fsencode(at / "link")).hex())
    return outcome, kept == os.fsencode(target).hex() or kept, told(lambda: shown(at / "link"))


@CASES.add
def symlinks_are_followed_or_not(at: At) -> object:
    at.file("f", b"through")
    os.symlink("f", at / "link")
    os.symlink("loop b", at / "loop a")
    os.symlink("loop a", at / "loop b")
    os.symlink(".", at / "here")
    return [
        at.content("link"),
        told(os.stat, at / "loop a"),
        told(os.open, at / "link", os.O_RDONLY | os.O_NOFOLLOW),
        at.content("here/here/here/link"),
        told(os.stat, at / ("here/" * 41 + "f")),
        told(os.readlink, at / "f"),
        told(os.rename, at / "link", at / "link2"),
        os.readlink(at / "link2"),
        told(os.unlink, at / "link2"),
        at.content("f"),
    ]


@CASES.add
def symlinks_have_owner_and_times_of_their_own(at: At) -> object:
    at.file("f")
    os.symlink("f", at / "link")
    os.chown(at / "link", 1234, 2345, follow_symlinks=False)
    os.utime(at / "link", ns=(1_000_000_001, 2_000_000_002), follow_symlinks=False)
    seen = os.lstat(at / "link")
    return (
        shown(at / "link"),
        seen.st_mtime_ns,
        seen.st_atime_ns,
        shown(at / "f")["owner"],
        told(libc, "fchmodat", -100, os.fsencode(at / "link"), 0o600, 0x100),
    )


# --- fifos, sockets, devices


@CASES.add
def of_fifos_carry_bytes(at: At) -> object:
    os.mkfifo(at / "pipe", 0o600)
    reader = os.open(at / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(at / "pipe", os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"through the pipe")
    ready = [fd == reader for fd in select.select([reader], [], [], 5)[0]]
    read = os.read(reader, 99)
    os.close(writer)
    os.close(reader)
    return ready, read, shown(at / "pipe"), told(os.open, at / "pipe", os.O_WRONLY | os.O_NONBLOCK)


@CASES.add
def of_sockets_can_be_connected_to(at: At) -> object:
    here = os.open(at.path, os.O_PATH)
    where = f"/proc/self/fd/{here}/socket"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(where)
        before = told(client.connect, where)
        server.listen()
        client.connect(where)
        peer, _ = server.accept()
        client.sendall(b"hello")
        heard = peer.recv(99)
        peer.close()
        again = told(socket.socket(socket.AF_UNIX).bind, where)
    os.close(here)
    with socket.socket(socket.AF_UNIX) as late:
        return before, heard, again, shown(at / "socket"), told(late.connect, os.path.relpath(at / "socket"))


@CASES.each(
    {
        "file": stat.S_IFREG,
        "fifo": stat.S_IFIFO,
        "socket": stat.S_IFSOCK,
        "character": stat.S_IFCHR,
        "block": stat.S_IFBLK,
    },
    {"root": 0, "user": NOBODY},
)
def made_by_mknod(at: At, what: int, user: int) -> object:
    os.chmod(at.path, 0o777)
    outcome = at.in_child(lambda: os.mknod(at / "node", what | 0o640, os.makedev(7, 200)), user=user or None)
    return outcome, told(lambda: shown(at / "node"))


@CASES.add
def of_directories_are_not_made_by_mknod(at: At) -> object:
    return told(os.mknod, at / "d", stat.S_IFDIR | 0o755), told(os.mknod, at / "l", stat.S_IFLNK | 0o777)
