"""Operations on the tree: what they do and refuse, owners, identity, staging."""

from __future__ import annotations

import itertools
import stat
from collections.abc import Callable

import pytest

from outputd.tree.node import (
    DIRECTORY_MODE,
    EXECUTABLE_MODE,
    FILE_MODE,
    Directory,
    File,
    Local,
    Node,
    Special,
    Symlink,
    Volume,
)
from outputd.tree.rules import check_name
from outputd.tree.status import NotLoaded, Status
from outputd.tree.top import ROOT_INO
from tests.unit.tree.kept import check, collapsed
from tests.unit.tree.world import EMPTY, OTHER, World, known

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


def test_a_renewed_file_has_its_name_on_another_node(w: World) -> None:
    file = w.file(b"a", content=OTHER)
    file.mode = 0o100700
    w.link(file, b"b")
    w.unlink(b"b")  # what once had links is still like any other
    w.tree.set_owner(file, 5, 6)
    assert file.extra is not None
    file.extra.xattrs = {b"user.x": b"1"}
    ino = w.remember(file)
    w.remember(w.root)
    w.root.digest, w.root.record = EMPTY, b"record"
    assert w.tree.renew(file) is Status.OK
    node = w.tree.lookup(w.root, b"a")
    assert isinstance(node, File) and node is not file
    assert (node.mode, node.mtime, node.ctime, node.content) == (0o100700, file.mtime, file.ctime, OTHER)
    assert w.tree.owner(node) == (5, 6)
    assert node.extra is not None and node.extra.xattrs == {b"user.x": b"1"}
    assert node.extra.xattrs is not file.extra.xattrs
    assert w.remember(node) != ino
    assert (node.nlink, file.nlink, w.tree.inodes[ino]) == (1, 0, file)
    assert w.tree.stale == [(w.root, None), (w.root, b"a"), (file, None)]
    assert known(w.root) == [True] and not w.root.record
    check(w.volume)
    w.link(node, b"b")
    assert (node.nlink, file.nlink) == (2, 0)
    w.tree.stale.clear()
    assert w.tree.renew(node) is Status.OK
    again = w.tree.lookup(w.root, b"a")
    assert isinstance(again, File) and again is w.tree.lookup(w.root, b"b") is not node
    assert (again.nlink, node.nlink) == (2, 0) and w.volume.linked == {again.ino: again}
    assert w.tree.stale == [(w.root, None), (w.root, b"a"), (w.root, b"b"), (node, None)]
    assert w.unlink(b"a") is w.unlink(b"b") is Status.OK
    assert again.nlink == 0 and not w.volume.linked
    assert w.tree.renew(file) is Status.ABSENT
    check(w.volume)


def test_a_nameless_file_gets_its_first_name_once(w: World) -> None:
    directory = w.mkdir(b"d")
    file = File(FILE_MODE, w.tick(), Local(1))
    assert w.tree.create_nameless(directory, file, uid=5, gid=1000) is Status.OK
    ino = w.tree.remember(file, directory)
    assert (file.nlink, w.tree.owner(file)) == (0, (5, 1000))
    other = w.tree.add_volume(2, b"other", 1)
    assert w.link(file, b"x", other.root) is Status.CROSS_DEVICE
    assert w.link(file, b"d") is Status.EXISTS
    assert w.link(file, b"x") is Status.OK
    assert (file.nlink, file.parent, file.ctime) == (1, w.root, w.now)
    assert w.link(file, b"y") is Status.OK
    assert file.nlink == 2
    check(w.volume)
    w.unlink(b"x")
    w.unlink(b"y")
    assert w.link(file, b"z") is Status.ABSENT
    assert w.freed() == []
    w.tree.forget(ino, 1)
    assert w.freed() == [1] and w.tree.nameless == {}


def test_a_nameless_file_is_freed_when_the_kernel_forgets_it(w: World) -> None:
    file = File(FILE_MODE, 1, Local(1))
    assert w.tree.create_nameless(w.root, file, uid=1000, gid=1000) is Status.OK
    ino = w.tree.remember(file, w.root)
    w.tree.forget(ino, 1)
    assert w.freed() == [1] and w.tree.nameless == {}
    removed = w.mkdir(b"d")
    w.tree.remove_directory(w.root, b"d", 1)
    assert w.tree.create_nameless(removed, file, uid=0, gid=0) is Status.ABSENT
    assert w.tree.create_nameless(w.tree.root, file, uid=0, gid=0) is Status.READ_ONLY
    assert w.tree.nameless == {}


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
