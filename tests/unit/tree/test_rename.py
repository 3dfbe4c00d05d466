"""Hard links and renames: what they do and refuse, the kernel being the judge of every pair of entries."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from outputd.tree.node import (
    FILE_MODE,
    MAX_LINKS,
    Directory,
    Extra,
    File,
    Node,
    Special,
    Symlink,
)
from outputd.tree.rules import RENAME_EXCHANGE, RENAME_NOREPLACE
from outputd.tree.status import Status
from tests.unit.tree import real
from tests.unit.tree.kept import check
from tests.unit.tree.world import EMPTY, OTHER, World

# hard links


@pytest.mark.parametrize(
    "make", [lambda: File(FILE_MODE, 1, EMPTY), lambda: Symlink(b"t", 1), lambda: Special(0o010600, 1, 0)]
)
def test_links_and_their_count(w: World, make: Callable[[], Node]) -> None:
    node = make()
    directory = w.mkdir(b"d")
    assert w.enter(b"a", node) is Status.OK
    assert node.nlink == 1
    assert w.link(node, b"b", directory) is Status.OK
    assert w.link(node, b"c") is Status.OK
    assert node.nlink == 3 and node.ctime == w.now
    assert w.tree.lookup(directory, b"b") is w.tree.lookup(w.root, b"c") is node
    check(w.volume)
    for left, (name, place) in ((2, (b"a", w.root)), (1, (b"c", w.root)), (0, (b"b", directory))):
        assert w.unlink(name, place) is Status.OK
        assert node.nlink == left and node.ctime == w.now
        check(w.volume)
    assert node.parent is None and not w.volume.linked


def test_link_refuses_what_posix_says(w: World) -> None:
    file = w.file(b"f")
    directory = w.mkdir(b"d")
    assert w.link(directory, b"x") is Status.NOT_PERMITTED
    assert w.link(file, b"d") is Status.EXISTS
    assert w.link(file, b"f") is Status.EXISTS
    other = w.tree.add_volume(2, b"other", 1)
    assert w.link(file, b"x", other.root) is Status.CROSS_DEVICE
    assert w.unlink(b"f") is Status.OK
    assert w.link(file, b"x") is Status.ABSENT
    assert file.extra is None and other.root.children == {} and b"x" not in w.tree.children(w.root)


def test_there_is_a_limit_to_links(w: World) -> None:
    file = w.file(b"f")
    file.extra = Extra()
    file.extra.nlink = MAX_LINKS
    assert w.link(file, b"x") is Status.TOO_MANY_LINKS
    assert file.nlink == MAX_LINKS


def test_attributes_set_on_an_unlinked_node_do_not_give_it_a_link(w: World) -> None:
    file = w.file(b"f")
    w.unlink(b"f")
    w.tree.set_owner(file, 7, 7)
    w.tree.outdate_attributes(file)
    assert file.nlink == 0


def test_renaming_a_hard_link_moves_that_name_only(w: World) -> None:
    directory = w.mkdir(b"d")
    file = w.file(b"a")
    w.link(file, b"b")
    w.link(file, b"c")
    for old in (b"a", b"b", b"c"):
        assert w.rename(old, b"to-" + old, target=directory) is Status.OK
        assert file.nlink == 3
        check(w.volume)
    assert set(w.tree.children(directory)) == {b"to-a", b"to-b", b"to-c"}
    assert w.rename(b"to-a", b"to-b", source=directory, target=directory) is Status.OK
    assert set(w.tree.children(directory)) == {b"to-a", b"to-b", b"to-c"}


# rename, against the kernel

KINDS = ("missing", "file", "empty", "full", "symlink", "fifo")
FLAGS = (0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_NOREPLACE | RENAME_EXCHANGE)
PATHS = [
    *(f"{place}/{kind}" for place in "ab" for kind in KINDS),
    "a/hard",
    "b/hard",
    "a/full/below",
    "a/full/new",
    "a",
]


def plant(w: World, base: bytes) -> None:
    """The same entries in the tree and in a real directory."""
    linked = w.file(b"linked", content=OTHER)
    real.create(base + b"/linked", b"linked")
    for place in (b"a", b"b"):
        directory = w.mkdir(place)
        at = base + b"/" + place + b"/"
        os.mkdir(at)
        w.file(b"file", directory)
        real.create(at + b"file", b"")
        w.mkdir(b"empty", directory)
        os.mkdir(at + b"empty")
        w.mkdir(b"below", w.mkdir(b"full", directory))
        os.makedirs(at + b"full/below")
        w.enter(b"symlink", Symlink(b"nowhere", 1), directory)
        os.symlink(b"nowhere", at + b"symlink")
        w.enter(b"fifo", Special(0o010644, 1, 0), directory)
        os.mkfifo(at + b"fifo")
        w.link(linked, b"hard", directory)
        os.link(base + b"/linked", at + b"hard")


def picture(directory: Directory, path: str = "") -> dict[str, tuple[int, int]]:
    """Type and link count by path."""
    assert directory.children is not None
    seen: dict[str, tuple[int, int]] = {}
    for name, node in directory.children.items():
        assert isinstance(node, Node)
        seen[path + name.decode()] = (
            stat.S_IFMT(node.mode),
            0 if isinstance(node, Directory) else node.nlink,
        )
        if isinstance(node, Directory):
            seen |= picture(node, path + name.decode() + "/")
    return seen


def real_picture(base: str, path: str = "") -> dict[str, tuple[int, int]]:
    seen: dict[str, tuple[int, int]] = {}
    for entry in os.scandir(f"{base}/{path}"):
        found = entry.stat(follow_symlinks=False)
        is_directory = entry.is_dir(follow_symlinks=False)
        seen[path + entry.name] = (stat.S_IFMT(found.st_mode), 0 if is_directory else found.st_nlink)
        if is_directory:
            seen |= real_picture(base, path + entry.name + "/")
    return seen


def split(w: World, path: str) -> tuple[Directory, bytes]:
    *parents, name = path.encode().split(b"/")
    directory = w.root
    for parent in parents:
        node = w.tree.lookup(directory, parent)
        assert isinstance(node, Directory)
        directory = node
    return directory, name


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("old", PATHS)
def test_rename_is_posix(old: str, flags: int, tmp_path: Path) -> None:
    for number, new in enumerate(PATHS):
        w = World()
        base = f"{tmp_path}/{number}"
        os.mkdir(base)
        plant(w, base.encode())
        assert picture(w.root) == real_picture(base)
        expected = real.rename(f"{base}/{old}".encode(), f"{base}/{new}".encode(), flags)
        source, old_name = split(w, old)
        target, new_name = split(w, new)
        status = w.tree.rename(source, old_name, target, new_name, flags, w.tick())
        assert status is expected, (old, new, flags)
        assert picture(w.root) == real_picture(base), (old, new, flags)
        check(w.volume)


def test_rename_knows_no_other_flags(w: World) -> None:
    w.file(b"f")
    for flags in (4, 8, 1 << 31, 4 | RENAME_EXCHANGE):
        assert w.rename(b"f", b"g", flags) is Status.INVALID
    assert set(w.tree.children(w.root)) == {b"f"}


def test_rename_stays_within_a_volume(w: World) -> None:
    w.file(b"f")
    other = w.tree.add_volume(2, b"other", 1)
    assert w.rename(b"f", b"f", target=other.root) is Status.CROSS_DEVICE
    assert other.root.children == {} and set(w.tree.children(w.root)) == {b"f"}
