"""Operations on the tree: what they do and refuse, identity, what the kernel must be told, and what is freed."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.tree.node import (
    DIRECTORY_MODE,
    EXECUTABLE_MODE,
    FILE_MODE,
    MAX_LINKS,
    Directory,
    Extra,
    File,
    Local,
    Node,
    Special,
    Symlink,
    Volume,
)
from outputd.tree.rules import RENAME_EXCHANGE, RENAME_NOREPLACE, check_name
from outputd.tree.status import NotLoaded, Status
from outputd.tree.tree import ROOT_INO, Tree
from tests.unit.tree import real
from tests.unit.tree.kept import check, collapsed

EMPTY = Digest.of(DigestFunction.SHA256, b"")
OTHER = Digest.of(DigestFunction.SHA256, b"other")


class World:
    """A tree with one volume, and a clock that moves with every operation."""

    def __init__(self) -> None:
        self.tree = Tree(uid=1000, gid=1000, now=1)
        self.volume = self.tree.add_volume(1, b"base", 1)
        self.root = self.volume.root
        self.now = 1
        self.tree.stale.clear()

    def tick(self) -> int:
        self.now += 1
        return self.now

    def file(
        self, name: bytes, directory: Directory | None = None, content: Digest | Local | None = None
    ) -> File:
        node = File(FILE_MODE, self.tick(), content if content is not None else EMPTY)
        assert self.enter(name, node, directory) is Status.OK
        return node

    def enter(self, name: bytes, node: Node, directory: Directory | None = None) -> Status:
        return self.tree.create(directory or self.root, name, node, uid=1000, gid=1000, now=self.tick())

    def mkdir(self, name: bytes, directory: Directory | None = None) -> Directory:
        made = self.tree.make_directory(
            directory or self.root, name, 0o755, uid=1000, gid=1000, now=self.tick()
        )
        assert isinstance(made, Directory)
        return made

    def link(self, node: Node, name: bytes, directory: Directory | None = None) -> Status:
        return self.tree.link(node, directory or self.root, name, self.tick())

    def unlink(self, name: bytes, directory: Directory | None = None) -> Status:
        return self.tree.unlink(directory or self.root, name, self.tick())

    def rename(
        self,
        old: bytes,
        new: bytes,
        flags: int = 0,
        *,
        source: Directory | None = None,
        target: Directory | None = None,
    ) -> Status:
        return self.tree.rename(source or self.root, old, target or self.root, new, flags, self.tick())

    def freed(self) -> list[int]:
        """Keys of the private files that drive may delete now, taking what was dropped."""
        dropped, self.tree.dropped = self.tree.dropped, []
        files = [file for node in dropped for file in self.tree.dismantle(node) if file is not None]
        return [file.content.key for file in files if isinstance(file.content, Local)]

    def remember(self, node: Node) -> int:
        assert node.parent is not None
        return self.tree.remember(node, node.parent)


@pytest.fixture
def w() -> World:
    return World()


# names


@pytest.mark.parametrize(
    ("name", "status"),
    [
        (b"x", Status.OK),
        (b"...", Status.OK),
        (b"\xff\n ", Status.OK),
        (b"n" * 255, Status.OK),
        (b"n" * 256, Status.NAME_TOO_LONG),
        (b"", Status.INVALID),
        (b".", Status.INVALID),
        (b"..", Status.INVALID),
        (b"a/b", Status.INVALID),
        (b"a\0b", Status.INVALID),
    ],
)
def test_names(w: World, name: bytes, status: Status) -> None:
    assert check_name(name) is status
    assert w.enter(name, File(FILE_MODE, 1, EMPTY)) is status
    made = w.tree.make_directory(w.mkdir(b"d"), name, 0o755, uid=0, gid=0, now=1)
    assert isinstance(made, Directory) if status is Status.OK else made is status
    w.file(b"f")
    if name != b"x":
        assert w.rename(b"f", name) is (Status.OK if status is Status.OK else status)


def test_create_refuses_a_taken_name_and_leaves_the_node_alone(w: World) -> None:
    w.file(b"x")
    node = File(FILE_MODE, 1, EMPTY)
    before = w.root.mtime
    assert w.tree.create(w.root, b"x", node, uid=5, gid=5, now=w.tick()) is Status.EXISTS
    assert node.parent is None and node.extra is None and w.root.mtime == before
    assert w.tree.make_directory(w.root, b"x", 0o755, uid=0, gid=0, now=1) is Status.EXISTS
    assert w.tree.children(w.root)[b"x"] is not node


def test_lookup_tells_absence_by_none(w: World) -> None:
    node = w.file(b"x")
    assert w.tree.lookup(w.root, b"x") is node
    assert w.tree.lookup(w.root, b"y") is None


def test_the_frame_and_the_outputs_directory_are_read_only(w: World) -> None:
    tree = w.tree
    for directory in (tree.root, tree.outputs):
        assert (
            tree.create(directory, b"x", File(FILE_MODE, 1, EMPTY), uid=0, gid=0, now=1) is Status.READ_ONLY
        )
        assert tree.make_directory(directory, b"x", 0o755, uid=0, gid=0, now=1) is Status.READ_ONLY
        assert tree.unlink(directory, b"outputs", 1) is Status.READ_ONLY
        assert tree.remove_directory(directory, b"base", 1) is Status.READ_ONLY
        assert tree.link(w.file(b"f%d" % id(directory)), directory, b"x", 1) is Status.READ_ONLY
        assert tree.rename(directory, b"base", w.root, b"x", 0, 1) is Status.READ_ONLY
        assert tree.rename(w.root, b"f", directory, b"x", 0, 1) is Status.READ_ONLY


def test_unlink_and_rmdir_refuse_what_posix_says(w: World) -> None:
    directory = w.mkdir(b"d")
    w.file(b"x", directory)
    assert w.unlink(b"d") is Status.IS_DIRECTORY
    assert w.unlink(b"missing") is Status.ABSENT
    assert w.tree.remove_directory(w.root, b"missing", 1) is Status.ABSENT
    assert w.tree.remove_directory(directory, b"x", 1) is Status.NOT_DIRECTORY
    assert w.tree.remove_directory(w.root, b"d", 1) is Status.NOT_EMPTY
    assert w.unlink(b"x", directory) is Status.OK
    assert w.tree.remove_directory(w.root, b"d", w.tick()) is Status.OK
    assert directory.nlink == 0 and directory.parent is None
    check(w.volume)


def test_a_removed_directory_takes_no_new_names(w: World) -> None:
    directory = w.mkdir(b"d")
    file = w.file(b"f")
    assert w.tree.remove_directory(w.root, b"d", 2) is Status.OK
    assert w.enter(b"x", File(FILE_MODE, 1, EMPTY), directory) is Status.ABSENT
    assert w.tree.make_directory(directory, b"x", 0o755, uid=0, gid=0, now=1) is Status.ABSENT
    assert w.link(file, b"x", directory) is Status.ABSENT
    assert w.rename(b"f", b"x", target=directory) is Status.ABSENT
    assert w.tree.lookup(w.root, b"f") is file


def test_a_removed_volume_takes_no_new_names(w: World) -> None:
    w.file(b"f")
    assert w.root.nlink == 2
    w.tree.remove_volume(w.volume, w.tick())
    assert w.root.nlink == 0
    assert w.enter(b"x", File(FILE_MODE, 1, EMPTY)) is Status.ABSENT
    w.freed()
    assert w.enter(b"x", File(FILE_MODE, 1, EMPTY)) is Status.ABSENT
    assert w.tree.outputs.children == {}
    dropped = len(w.tree.dropped)
    w.tree.remove_volume(w.volume, w.tick())
    assert len(w.tree.dropped) == dropped


def test_times_and_subdirectory_counts(w: World) -> None:
    directory = w.mkdir(b"d")
    assert (w.root.nlink, directory.nlink) == (3, 2)
    assert directory.mtime == directory.ctime == w.root.mtime == w.root.ctime == w.now
    file = w.file(b"f", directory)
    assert directory.mtime == w.now and w.root.mtime < w.now
    changed = directory.mtime
    assert w.tree.rename(directory, b"f", w.root, b"g", 0, w.tick()) is Status.OK
    assert file.ctime == directory.mtime == w.root.mtime == w.now > changed
    assert file.mtime < w.now
    assert w.rename(b"d", b"e") is Status.OK
    assert w.root.nlink == 3
    assert directory.mtime < w.now == directory.ctime
    assert w.tree.remove_directory(w.root, b"e", 9) is Status.OK
    assert w.root.nlink == 2


# owners


def said_owner(node: Node) -> tuple[int | None, int | None] | None:
    return None if node.extra is None else (node.extra.uid, node.extra.gid)


def test_the_owner_is_the_trees_unless_said(w: World) -> None:
    file = w.file(b"f")
    assert w.tree.owner(file) == (1000, 1000) and said_owner(file) is None
    w.tree.set_owner(file, 1000, None)
    assert said_owner(file) is None
    w.tree.set_owner(file, 7, None)
    assert w.tree.owner(file) == (7, 1000)
    w.tree.set_owner(file, None, 8)
    assert w.tree.owner(file) == (7, 8)
    w.tree.set_owner(file, 1000, 1000)
    assert w.tree.owner(file) == (1000, 1000)
    assert said_owner(file) == (None, None)


def test_a_new_entry_belongs_to_who_made_it_or_to_the_set_group_id_directory(w: World) -> None:
    node = File(FILE_MODE, 1, EMPTY)
    w.tree.create(w.root, b"f", node, uid=5, gid=6, now=1)
    assert w.tree.owner(node) == (5, 6)
    shared = w.mkdir(b"shared")
    w.tree.set_owner(shared, None, 42)
    shared.mode |= stat.S_ISGID
    below = w.tree.make_directory(shared, b"below", 0o700, uid=5, gid=6, now=1)
    assert isinstance(below, Directory)
    assert w.tree.owner(below) == (5, 42)
    assert below.mode == stat.S_IFDIR | stat.S_ISGID | 0o700
    inside = File(FILE_MODE, 1, EMPTY)
    w.tree.create(below, b"x", inside, uid=1000, gid=1000, now=1)
    assert w.tree.owner(inside) == (1000, 42)
    assert inside.mode == FILE_MODE


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


# what is not loaded


def test_what_needs_a_collapsed_directory_says_so_and_changes_nothing(w: World) -> None:
    closed = collapsed(w.volume, EMPTY)
    w.tree.place(w.root, b"closed", closed, 1)
    file = w.file(b"f")
    before = (w.root.mtime, dict(w.tree.children(w.root)), w.volume.changes)
    operations: list[Callable[[], object]] = [
        lambda: w.tree.lookup(closed, b"x"),
        lambda: w.tree.children(closed),
        lambda: w.tree.create(closed, b"x", File(FILE_MODE, 1, EMPTY), uid=0, gid=0, now=2),
        lambda: w.tree.make_directory(closed, b"x", 0o755, uid=0, gid=0, now=2),
        lambda: w.tree.link(file, closed, b"x", 2),
        lambda: w.tree.unlink(closed, b"x", 2),
        lambda: w.tree.remove_directory(w.root, b"closed", 2),
        lambda: w.tree.rename(w.root, b"f", closed, b"x", 0, 2),
        lambda: w.tree.rename(closed, b"x", w.root, b"f", 0, 2),
        lambda: w.tree.place(closed, b"x", File(FILE_MODE, 1, EMPTY), 2),
        lambda: w.tree.withdraw(closed, b"x", 2),
        lambda: w.tree.descend(closed, b"x", 2),
    ]
    for operation in operations:
        with pytest.raises(NotLoaded) as caught:
            operation()
        assert caught.value.directory is closed
    empty = w.mkdir(b"empty")
    with pytest.raises(NotLoaded):
        w.tree.rename(w.root, b"empty", w.root, b"closed", 0, 2)
    assert w.tree.remove_directory(w.root, b"empty", before[0]) is Status.OK
    assert empty.removed
    assert closed.children is None and closed.digest == EMPTY and closed.nlink == 1
    assert (dict(w.tree.children(w.root)), file.nlink) == (before[1], 1)


def test_a_collapsed_directory_is_renamed_and_replaced_unseen(w: World) -> None:
    closed = collapsed(w.volume, EMPTY)
    w.tree.place(w.root, b"closed", closed, 1)
    assert w.rename(b"closed", b"moved") is Status.OK
    assert w.tree.lookup(w.root, b"moved") is closed and closed.children is None
    w.tree.place(w.root, b"moved", File(FILE_MODE, 1, EMPTY), 2)
    assert closed.removed and w.root.subdirectories == 0


# identity


def test_inode_numbers_are_given_once_and_belong_to_the_volume(w: World) -> None:
    a, b = w.file(b"a"), w.file(b"b")
    assert a.ino == b.ino == 0
    first = w.tree.identify(a, w.root)
    assert first == w.tree.identify(a, w.root) != w.tree.identify(b, w.root)
    assert first >> 40 == 1
    other = w.tree.add_volume(2, b"other", 1)
    assert other.root.ino >> 40 == 2
    assert w.tree.identify(w.tree.outputs, w.tree.root) == ROOT_INO + 1


def test_the_kernels_references_are_counted(w: World) -> None:
    file = w.file(b"a")
    ino = w.remember(file)
    w.remember(file)
    assert w.tree.inodes[ino] is file and file.lookups == 2
    w.tree.forget(ino, 1)
    assert w.tree.inodes[ino] is file
    w.tree.forget(ino, 1)
    assert ino not in w.tree.inodes and file.lookups == 0 and file.ino == ino
    w.tree.forget(ino, 1)
    w.tree.forget(12345, 1)
    assert w.remember(file) == ino
    w.tree.forget(ROOT_INO, 1)
    assert w.tree.inodes[ROOT_INO] is w.tree.root


def test_a_volume_is_removed_from_view_at_once(w: World) -> None:
    w.remember(w.root)
    w.tree.outputs.lookups = 1
    w.tree.remove_volume(w.volume, w.tick())
    assert w.tree.lookup(w.tree.outputs, b"base") is None
    assert (w.tree.outputs, b"base") in w.tree.stale
    again = w.tree.add_volume(2, b"base", w.tick())
    assert again.root.ino != w.root.ino


# staging


def test_place_replaces_whatever_stands_there(w: World) -> None:
    full = w.mkdir(b"x")
    w.file(b"below", full)
    for node in (
        Symlink(b"t", 1),
        File(FILE_MODE, 1, EMPTY),
        Special(0o010600, 1, 0),
        collapsed(w.volume, EMPTY),
    ):
        old = w.tree.lookup(w.root, b"x")
        assert old is not None
        w.tree.place(w.root, b"x", node, w.tick())
        assert w.tree.lookup(w.root, b"x") is node and old.parent is None and old.nlink == 0
        check(w.volume)
    assert w.root.subdirectories == 1


def test_place_takes_one_name_of_a_hard_linked_file(w: World) -> None:
    file = w.file(b"a", content=Local(1))
    w.link(file, b"b")
    w.tree.place(w.root, b"a", File(FILE_MODE, 1, EMPTY), w.tick())
    assert file.nlink == 1 and w.tree.lookup(w.root, b"b") is file and file.parent is w.root
    assert w.freed() == []
    check(w.volume)


def test_descend_enters_makes_and_replaces(w: World) -> None:
    made = w.tree.descend(w.root, b"d", w.tick())
    assert w.tree.descend(w.root, b"d", w.tick()) is made
    assert made.mode == DIRECTORY_MODE
    for node in (File(FILE_MODE, 1, EMPTY), Symlink(b"d", 1)):
        w.enter(b"x", node)
        assert isinstance(w.tree.descend(w.root, b"x", w.tick()), Directory)
        assert node.parent is None
        w.tree.withdraw(w.root, b"x", w.tick())
    check(w.volume)


def test_withdraw_takes_anything_or_nothing(w: World) -> None:
    w.file(b"below", w.mkdir(b"d"), Local(1))
    w.tree.withdraw(w.root, b"d", w.tick())
    before = w.volume.changes
    w.tree.withdraw(w.root, b"missing", w.tick())
    assert w.volume.changes == before
    assert w.tree.children(w.root) == {} and w.freed() == [1]


def test_clear_empties_a_directory_loaded_or_not(w: World) -> None:
    kept = w.file(b"kept", content=Local(1))
    directory = w.mkdir(b"d")
    w.link(kept, b"a", directory)
    own = w.file(b"own", directory, Local(2))
    w.link(own, b"own-too", directory)
    w.file(b"deep", w.mkdir(b"below", directory), Local(3))
    w.tree.clear(directory, w.tick())
    assert directory.children == {} and directory.nlink == 2 and directory.mtime == w.now
    assert sorted(w.freed()) == [2, 3]
    assert kept.nlink == 1
    check(w.volume)
    closed = collapsed(w.volume, EMPTY, tree=OTHER)
    w.tree.place(w.root, b"closed", closed, 1)
    w.tree.clear(closed, w.tick())
    assert closed.children == {} and closed.digest is None and closed.tree is None
    assert w.freed() == []


# what the kernel must be told


def test_a_new_name_concerns_the_kernel_only_where_it_looks(w: World) -> None:
    w.tree.place(w.root, b"x", File(FILE_MODE, 1, EMPTY), w.tick())
    assert w.tree.stale == []
    w.remember(w.root)
    w.tree.place(w.root, b"y", File(FILE_MODE, 1, EMPTY), w.tick())
    assert w.tree.stale == [(w.root, None)]  # its times and its listing, but no name


def test_a_remembered_absence_is_taken_back(w: World) -> None:
    w.remember(w.root)
    w.root.negatives = {b"x", b"y"}
    w.tree.place(w.root, b"x", File(FILE_MODE, 1, EMPTY), w.tick())
    assert w.tree.stale == [(w.root, None), (w.root, b"x")]
    assert w.root.negatives == {b"y"}
    w.tree.stale.clear()
    w.tree.place(w.root, b"x", File(FILE_MODE, 1, OTHER), w.tick())
    assert w.tree.stale == [(w.root, None)]  # nobody has looked at the one before


def test_a_remembered_entry_that_is_replaced_is_taken_back(w: World) -> None:
    w.remember(w.root)
    w.remember(w.file(b"x"))
    w.remember(w.file(b"y"))
    for name in (b"x", b"y"):
        w.tree.place(w.root, name, File(FILE_MODE, 1, OTHER), w.tick())
    assert w.tree.stale == [(w.root, None), (w.root, b"x"), (w.root, b"y")]


def test_the_directory_is_named_again_after_another_one(w: World) -> None:
    directory = w.mkdir(b"d")
    w.remember(w.root)
    w.remember(directory)
    for place in (w.root, directory, w.root):
        w.tree.place(place, b"x", File(FILE_MODE, 1, OTHER), w.tick())
    assert w.tree.stale == [(w.root, None), (directory, None), (w.root, None)]


def test_clear_and_withdraw_take_back_what_the_kernel_knows(w: World) -> None:
    w.remember(w.root)
    w.remember(w.file(b"seen"))
    w.file(b"unseen")
    w.tree.clear(w.root, w.tick())
    assert w.tree.stale == [(w.root, None), (w.root, b"seen")]
    w.tree.stale.clear()
    w.remember(w.file(b"seen"))
    w.tree.withdraw(w.root, b"seen", w.tick())
    assert w.tree.stale == [(w.root, None), (w.root, b"seen")]


def test_a_directory_the_kernel_forgot_has_no_negatives(w: World) -> None:
    directory = w.mkdir(b"d")
    ino = w.remember(directory)
    directory.negatives = {b"x"}
    w.tree.forget(ino, 1)
    assert directory.negatives is None


# freeing


def test_a_local_file_is_freed_with_its_last_name(w: World) -> None:
    file = w.file(b"a", content=Local(1))
    w.link(file, b"b")
    w.unlink(b"a")
    assert w.freed() == []
    w.unlink(b"b")
    assert w.freed() == [1]
    assert w.freed() == []


def test_a_local_file_the_kernel_knows_is_freed_when_it_is_forgotten(w: World) -> None:
    file = w.file(b"a", content=Local(1))
    ino = w.remember(file)
    w.remember(file)
    w.unlink(b"a")
    assert w.freed() == []
    w.tree.forget(ino, 1)
    assert w.freed() == []
    w.tree.forget(ino, 1)
    assert w.freed() == [1]
    assert w.freed() == []


def test_blobs_are_not_freed(w: World) -> None:
    w.file(b"a")
    w.unlink(b"a")
    w.enter(b"s", Symlink(b"t", 1))
    w.unlink(b"s")
    assert w.tree.dropped == []


def test_what_a_rename_replaces_is_freed(w: World) -> None:
    w.file(b"a", content=Local(1))
    w.file(b"b", content=Local(2))
    assert w.rename(b"a", b"b") is Status.OK
    assert w.freed() == [2]
    w.file(b"c", content=Local(3))
    assert w.rename(b"b", b"c", RENAME_EXCHANGE) is Status.OK
    assert w.freed() == []


@pytest.mark.parametrize("forget_first", [True, False])
def test_a_replaced_subtree_is_taken_apart_once(w: World, *, forget_first: bool) -> None:
    top = w.mkdir(b"top")
    below = w.mkdir(b"below", top)
    w.file(b"plain", below, Local(1))
    seen = w.file(b"seen", below, Local(2))
    outside = w.file(b"outside", content=Local(3))
    w.link(outside, b"inside", below)
    inside = w.file(b"both", below, Local(4))
    w.link(inside, b"both-too", top)
    inos = [w.remember(node) for node in (top, below, seen)]
    w.tree.place(w.root, b"top", File(FILE_MODE, 1, EMPTY), w.tick())
    freed: list[int] = []
    if forget_first:
        for ino in inos:
            w.tree.forget(ino, 1)
        freed = w.freed()
    else:
        freed = w.freed()
        assert 2 not in freed
        for ino in inos:
            w.tree.forget(ino, 1)
        freed += w.freed()
    assert sorted(freed) == [1, 2, 4]
    assert outside.nlink == 1 and below.children == {} and below.removed
    assert w.freed() == []
    check(w.volume)


def test_a_removed_volume_is_taken_apart(w: World) -> None:
    w.file(b"a", content=Local(1))
    w.file(b"b", w.mkdir(b"d"), Local(2))
    w.tree.remove_volume(w.volume, w.tick())
    assert sorted(w.freed()) == [1, 2]


def test_taking_apart_can_be_interleaved_with_changes(w: World) -> None:
    top = w.mkdir(b"top")
    saved = w.file(b"saved", top, Local(1))
    for i in range(3):
        w.file(b"%d" % i, w.mkdir(b"d%d" % i, top), Local(10 + i))
    moved = w.tree.lookup(top, b"d1")
    assert isinstance(moved, Directory)
    w.remember(moved)
    w.tree.place(w.root, b"top", File(FILE_MODE, 1, EMPTY), w.tick())
    # Whoever still has a directory of the subtree open may move things out of it.
    assert w.link(saved, b"saved") is Status.OK
    assert w.rename(b"1", b"rescued", source=moved) is Status.OK
    freed = [file.content for node in w.tree.dropped for file in w.tree.dismantle(node) if file is not None]
    assert sorted(local.key for local in freed if isinstance(local, Local)) == [10, 12]
    assert saved.nlink == 1 and set(w.tree.children(w.root)) == {b"top", b"saved", b"rescued"}
    check(w.volume)


def test_taking_apart_yields_after_every_directory(w: World) -> None:
    top = w.mkdir(b"top")
    for i in range(5):
        w.mkdir(b"d%d" % i, top)
    w.tree.withdraw(w.root, b"top", w.tick())
    (dropped,) = w.tree.dropped
    assert list(w.tree.dismantle(dropped)) == [None] * 6


# what changes make unknown


def known(*directories: Directory) -> list[bool]:
    return [directory.digest is not None for directory in directories]


def test_a_change_makes_digests_unknown_up_to_the_root_only(w: World) -> None:
    a, b = w.mkdir(b"a"), w.mkdir(b"b")
    deep = w.mkdir(b"deep", a)
    file = w.file(b"f", deep)

    def settle() -> None:
        for directory in (w.root, a, b, deep):
            directory.digest, directory.record = EMPTY, b"record"

    steps: list[tuple[Callable[[], object], list[bool], list[bool]]] = [
        (lambda: w.file(b"g", deep), [False, False, True, False], [False, False, True, False]),
        (lambda: w.unlink(b"g", deep), [False, False, True, False], [False, False, True, False]),
        (lambda: w.tree.set_content(file, OTHER), [False, False, True, False], [False, False, True, False]),
        (lambda: w.tree.outdate_attributes(file), [True] * 4, [False, False, True, False]),
        (lambda: w.tree.identify(file, deep), [True] * 4, [False, False, True, False]),
        (lambda: w.tree.identify(file, deep), [True] * 4, [True] * 4),
        (lambda: w.tree.outdate_attributes(deep), [True] * 4, [False, False, True, True]),
        (lambda: w.link(file, b"f", b), [False, True, False, True], [False] * 4),
        (lambda: w.tree.outdate_attributes(file), [True] * 4, [False] * 4),
        (lambda: w.rename(b"f", b"g", source=b, target=b), [False, True, False, True], [False] * 4),
        (lambda: w.unlink(b"g", b), [False, True, False, True], [False] * 4),
        (lambda: w.tree.clear(b, w.tick()), [False, True, False, True], [False, True, False, True]),
    ]
    for number, (change, digests, records) in enumerate(steps):
        settle()
        before = w.volume.changes
        change()
        changed = not (all(digests) and all(records))
        assert (w.volume.changes > before) is changed, number
        assert known(w.root, a, b, deep) == digests, number
        assert [directory.record is not None for directory in (w.root, a, b, deep)] == records, number


def test_times_of_a_directory_are_the_default_of_its_entries(w: World) -> None:
    """So where the entries have no times recorded, their record is outdated with the directory's own times."""
    directory = w.mkdir(b"d")
    for holder in (w.root, directory):
        holder.digest, holder.record = EMPTY, b""
    w.tree.outdate_attributes(directory)
    assert directory.record is None and w.root.record is None
    closed = collapsed(w.volume, EMPTY)
    w.tree.place(w.root, b"closed", closed, 1)
    w.tree.outdate_attributes(closed)
    assert closed.record == b""


def test_attributes_of_the_root_count_as_a_change(w: World) -> None:
    before = w.volume.changes
    w.tree.outdate_attributes(w.root)
    assert w.volume.changes > before
    w.root.children = None
    before = w.volume.changes
    w.tree.outdate_attributes(w.root)
    assert w.volume.changes > before


def test_dropping_a_hard_link_outdates_the_names_that_stay(w: World) -> None:
    kept, gone = w.mkdir(b"kept"), w.mkdir(b"gone")
    file = w.file(b"a", kept)
    w.link(file, b"b", gone)
    w.tree.withdraw(w.root, b"gone", w.tick())
    kept.digest, kept.record = EMPTY, b"record"
    w.freed()
    assert file.nlink == 1 and kept.record is None


def test_every_kind_of_node_shows_its_size_and_mode() -> None:
    volume = Volume(1, 1, writable=True)
    assert File(EXECUTABLE_MODE, 1, OTHER).size == 5
    assert File(FILE_MODE, 1, Local(1, 7)).size == 7
    assert Symlink(b"abc", 1).mode == 0o120777
    assert [
        node.nlink
        for node in (File(FILE_MODE, 1, EMPTY), Symlink(b"t", 1), Directory(DIRECTORY_MODE, 1, volume))
    ] == [0, 0, 0]
    assert volume.root.nlink == 2
    inos = [Volume(number, 1, writable=True).next_ino for number in range(3)]
    assert all(b - a == 1 << 40 for a, b in itertools.pairwise(inos))
