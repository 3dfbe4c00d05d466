"""rename(2) and renameat2(2): every kind onto every kind with every flag, and what a rename leaves as it was."""

from __future__ import annotations

import os

from tests.posix.at import At, Cases, libc, shown, times_changed, told

CASES = Cases("rename")

AT_FDCWD = -100
_FLAGS = {"plain": 0, "noreplace": 1, "exchange": 2}
_KINDS = (
    "nothing",
    "file",
    "directory",
    "full directory",
    "symlink",
    "fifo",
    "socket",
    "the other's link",
)


def renameat2(old: str, new: str, flags: int) -> int:
    return libc("renameat2", AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)


@CASES.each(_KINDS[:-1], _KINDS, _FLAGS)
def one_onto_the_other(at: At, old: str, new: str, flags: int) -> object:
    at.make(old, "old")
    if new == "the other's link":
        told(os.link, at / "old", at / "new", follow_symlinks=False)
    else:
        at.make(new, "new")
    return told(renameat2, at / "old", at / "new", flags), at.tree()


@CASES.each(("file", "full directory"), ("file", "directory", "full directory", "nothing"), _FLAGS)
def into_another_directory(at: At, old: str, new: str, flags: int) -> object:
    os.mkdir(at / "from")
    os.mkdir(at / "to")
    at.make(old, "from/old")
    at.make(new, "to/new")
    outcome = told(renameat2, at / "from/old", at / "to/new", flags)
    return outcome, at.tree(), [shown(at / name)["links"] for name in (".", "from", "to")]


@CASES.each((3, 4, 8, 1 << 20))
def flags_that_make_no_sense(at: At, flags: int) -> object:
    at.file("old")
    at.file("new")
    return told(renameat2, at / "old", at / "new", flags)


@CASES.add
def of_a_directory_into_itself(at: At) -> object:
    os.makedirs(at / "d/e/f")
    return [
        told(os.rename, at / "d", at / "d/e/f/g"),
        told(os.rename, at / "d", at / "d/g"),
        told(os.rename, at / "d/e/f", at / "d"),
        told(renameat2, at / "d", at / "d/e", 2),
        told(renameat2, at / "d/e", at / "d", 2),
        at.tree(),
    ]


@CASES.add
def of_a_name_onto_itself(at: At) -> object:
    at.file("f")
    os.mkdir(at / "d")
    return [told(os.rename, at / "f", at / "f"), told(os.rename, at / "d", at / "d"), at.tree()]


@CASES.add
def of_dot_and_dot_dot(at: At) -> object:
    os.mkdir(at / "d")
    return [
        told(os.rename, at / "d/.", at / "e"),
        told(os.rename, at / "d/..", at / "e"),
        told(os.rename, at / "d", at / "."),
    ]


@CASES.add
def with_a_slash_behind_it(at: At) -> object:
    at.file("f")
    os.mkdir(at / "d")
    return [
        told(os.rename, at / "f/", at / "g"),
        told(os.rename, at / "f", at / "g/"),
        told(os.rename, at / "d", at / "e/"),
        at.tree(),
    ]


@CASES.add
def through_a_file(at: At) -> object:
    at.file("f")
    return told(os.rename, at / "f/x", at / "y"), told(os.rename, at / "f", at / "f/x")


@CASES.add
def of_an_open_file_over_an_open_file(at: At) -> object:
    at.file("old", b"old bytes")
    at.file("new", b"new bytes")
    with at.opened("old", os.O_RDWR) as old, at.opened("new", os.O_RDWR) as new:
        os.rename(at / "old", at / "new")
        os.pwrite(new, b"NEW", 0)
        os.pwrite(old, b"OLD", 0)
        return os.pread(old, 99, 0), os.pread(new, 99, 0), at.content("new"), shown(old), shown(new)


@CASES.add
def keeps_the_inode(at: At) -> object:
    at.file("f")
    os.mkdir(at / "d")
    before = [os.stat(at / name).st_ino for name in ("f", "d")]
    os.rename(at / "f", at / "g")
    os.rename(at / "d", at / "e")
    os.rename(at / "g", at / "e/g")
    return before == [os.stat(at / name).st_ino for name in ("e/g", "e")]


@CASES.add
def changes_times(at: At) -> object:
    os.mkdir(at / "from")
    os.mkdir(at / "to")
    at.file("from/f")
    at.file("from/stays")
    changed = times_changed(
        lambda: os.rename(at / "from/f", at / "to/f"), at / "from", at / "to", at / "from/stays"
    )
    return changed, times_changed(
        lambda: os.rename(at / "to", at / "from/to"), at / "from", at / "from/stays"
    )


@CASES.add
def gives_the_moved_file_a_new_ctime(at: At) -> object:
    at.file("f")
    before = os.stat(at / "f").st_ctime_ns
    times_changed(lambda: os.rename(at / "f", at / "g"))
    return os.stat(at / "g").st_ctime_ns > before


@CASES.add
def of_a_directory_gives_it_another_dot_dot(at: At) -> object:
    os.makedirs(at / "a/moved")
    os.mkdir(at / "b")
    here = os.open(at / "a/moved", os.O_RDONLY | os.O_DIRECTORY)
    os.rename(at / "a/moved", at / "b/moved")
    above = os.stat("..", dir_fd=here).st_ino
    os.close(here)
    return above == os.stat(at / "b").st_ino, [shown(at / name)["links"] for name in ("a", "b", "b/moved")]


@CASES.add
def while_somebody_works_in_it(at: At) -> object:
    os.mkdir(at / "d")
    here = os.open(at / "d", os.O_RDONLY | os.O_DIRECTORY)
    os.rename(at / "d", at / "e")
    os.close(os.open("made after", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=here))
    os.close(here)
    return at.tree()


@CASES.add
def of_names_of_every_length(at: At) -> object:
    at.file("f")
    outcomes = [told(os.rename, at / "f", at / ("n" * size)) for size in (256, 1025, 4096)]
    return [
        *outcomes,
        told(os.rename, at / "f", at / ("n" * 255)),
        told(os.rename, at / ("m" * 256), at / "x"),
        at.tree(),
    ]


@CASES.add
def of_a_tree_keeps_what_is_in_it(at: At) -> object:
    os.makedirs(at / "a/b/c")
    at.file("a/b/c/f", b"deep")
    os.symlink("c/f", at / "a/b/link")
    os.rename(at / "a", at / "z")
    return at.tree(), at.content("z/b/c/f"), at.content("z/b/link")


@CASES.add
def exchanges_keep_both_inodes(at: At) -> object:
    at.file("f")
    at.directory("d")
    at.file("d/inner")
    before = {name: os.stat(at / name).st_ino for name in ("f", "d")}
    renameat2(at / "f", at / "d", 2)
    return before["f"] == os.stat(at / "d").st_ino, before["d"] == os.stat(at / "f").st_ino, at.tree()


@CASES.add
def of_one_of_two_links(at: At) -> object:
    at.file("a", b"same")
    os.link(at / "a", at / "b")
    os.mkdir(at / "d")
    return [
        told(os.rename, at / "a", at / "b"),
        at.tree(),
        told(os.rename, at / "a", at / "d/c"),
        at.tree(),
        [shown(at / name) for name in ("b", "d/c")],
        told(renameat2, at / "b", at / "d/c", 2),
    ]


@CASES.add
def replaces_one_of_two_links(at: At) -> object:
    at.file("a", b"kept")
    os.link(at / "a", at / "b")
    at.file("c", b"new")
    os.rename(at / "c", at / "b")
    return shown(at / "a"), shown(at / "b"), at.content("a"), at.content("b")
