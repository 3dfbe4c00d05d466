"""Hard links over restarts: names that are met one by one lead to one node, and none is believed that is outdated."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from outputd.tree.node import (
    FILE_MODE,
    Directory,
    File,
    Local,
    Node,
)
from outputd.tree.status import Status
from tests.unit.tree.kept import check
from tests.unit.tree.saved import SavedWorld
from tests.unit.tree.world import EMPTY, OTHER


@pytest.fixture
def w() -> SavedWorld:
    return SavedWorld()


def linked_world(w: SavedWorld, paths: list[bytes]) -> File:
    file = w.file(paths[0], OTHER)
    for path in paths[1:]:
        w.place(path + b".beside", File(FILE_MODE, 1, EMPTY))
        w.link(paths[0], path)
    w.reopen()
    return file


def test_names_met_later_lead_to_the_same_node(w: SavedWorld) -> None:
    linked_world(w, [b"a/x", b"b/y", b"c/d/z"])
    first = w.node(b"b/y")
    assert first.nlink == 3
    assert w.node(b"a/x") is first and w.node(b"c/d/z") is first
    assert first.nlink == 3
    check(w.volume)
    assert w.sealed_now() == 0


CHANGES: list[Callable[[SavedWorld], object]] = [
    lambda w: w.unlink(b"a/x"),
    lambda w: w.link(b"a/x", b"new"),
    lambda w: w.tree.rename(w.at(b"a"), b"x", w.root, b"moved", 0, w.tick()),
    lambda w: w.place(b"a/x", File(FILE_MODE, 5, EMPTY)),
    lambda w: w.tree.place(w.root, b"a", File(FILE_MODE, 5, EMPTY), w.tick()),
    lambda w: w.tree.clear(w.at(b"a"), w.tick()),
    lambda w: change_attributes(w, b"a/x"),
    lambda w: w.tree.set_content(file_at(w, b"a/x"), EMPTY),
    lambda w: w.tree.set_content(file_at(w, b"a/x"), Local(5, 5)),
]


def file_at(w: SavedWorld, path: bytes) -> File:
    node = w.node(path)
    assert isinstance(node, File)
    return node


def change_attributes(w: SavedWorld, path: bytes) -> None:
    node = w.node(path)
    node.mode, node.ctime = 0o100600, w.tick()
    w.tree.outdate_attributes(node)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("others", [[b"b/y"], [b"b/y", b"c/d/z"], [b"b/c/d/y", b"b/c/z"]])
def test_a_change_through_one_name_is_true_of_all_after_the_next_restart(
    w: SavedWorld, change: Callable[[SavedWorld], object], others: list[bytes]
) -> None:
    linked_world(w, [b"a/x", *others])
    w.node(b"a/x")
    change(w)
    for node in w.tree.dropped:
        list(w.tree.dismantle(node))
    w.reopen()
    first = w.node(others[0])
    seen = (first.mode, first.ctime, first.nlink, first.content if isinstance(first, File) else None)
    w.kept.load_all(w.root)
    assert seen == (first.mode, first.ctime, first.nlink, first.content if isinstance(first, File) else None)
    names = [
        name
        for directory in directories(w.root)
        for name, node in (directory.children or {}).items()
        if node is first
    ]
    assert first.nlink == len(names) >= len(others)
    check(w.volume)


def directories(top: Directory) -> list[Directory]:
    found = [top]
    for directory in found:
        found.extend(node for node in (directory.children or {}).values() if isinstance(node, Directory))
    return found


def place_of(node: Node) -> tuple[Directory | None, bytes]:
    return node.parent, node.name


def test_a_node_whose_met_names_are_gone_is_found_by_the_next(w: SavedWorld) -> None:
    linked_world(w, [b"a/x", b"b/y"])
    node = w.node(b"a/x")
    w.tree.remember(node, w.at(b"a"))
    w.unlink(b"a/x")
    assert (node.nlink, place_of(node)[0]) == (1, None)
    assert w.node(b"b/y") is node
    assert place_of(node) == (w.at(b"b"), b"y")
    check(w.volume)
    w.unlink(b"b/y")
    assert node.nlink == 0 and not w.volume.linked


def test_a_node_whose_met_names_are_gone_can_be_linked_again(w: SavedWorld) -> None:
    linked_world(w, [b"a/x", b"b/y"])
    node = w.node(b"a/x")
    w.unlink(b"a/x")
    other = w.tree.add_volume(9, b"other", 1)
    assert w.tree.link(node, other.root, b"n", w.tick()) is Status.CROSS_DEVICE
    assert w.tree.link(node, w.root, b"n", w.tick()) is Status.OK
    assert node.nlink == 2 and node.parent is w.root
    assert w.node(b"b/y") is node
    check(w.volume)


@pytest.mark.parametrize("kernel_knows", [True, False])
def test_links_that_went_with_an_unseen_directory_are_not_counted_for_ever(
    w: SavedWorld, *, kernel_knows: bool
) -> None:
    w.file(b"a/x", Local(5, 1))
    w.link(b"a/x", b"b/y")
    w.link(b"a/x", b"b/z")
    w.reopen()
    node = w.node(b"a/x")
    ino = w.tree.remember(node, w.at(b"a"))
    w.tree.place(w.root, b"b", File(FILE_MODE, 1, EMPTY), w.tick())
    assert node.nlink == 3
    w.seal()
    assert node.nlink == 1 and not w.volume.linked and not w.volume.unmet
    check(w.volume)
    w.reopen()
    node = w.node(b"a/x")
    assert node.nlink == 1
    # And the bytes of one that has lost all its names are freed.
    w.link(b"a/x", b"c/y")
    w.reopen()
    node = w.node(b"a/x")
    ino = w.tree.remember(node, w.at(b"a"))
    if not kernel_knows:
        w.tree.forget(ino, 1)
    w.unlink(b"a/x")
    w.tree.place(w.root, b"c", File(FILE_MODE, 1, EMPTY), w.tick())
    assert w.tree.dropped == []
    w.seal()
    assert node.nlink == 0
    if kernel_knows:
        assert w.tree.dropped == []
        w.tree.forget(ino, 1)
    assert w.tree.dropped == [node]


def test_a_renewed_node_has_all_its_names_also_after_a_restart(w: SavedWorld) -> None:
    linked_world(w, [b"a/x", b"b/y", b"c/d/z"])
    old = w.node(b"a/x")
    assert isinstance(old, File)
    w.tree.remember(old, w.at(b"a"))
    assert w.kept.run(lambda: w.tree.renew(old)) is Status.OK
    new = w.node(b"a/x")
    assert new is w.node(b"b/y") is w.node(b"c/d/z") is not old
    assert (new.nlink, old.nlink) == (3, 0)
    assert w.volume.linked == {new.ino: new} and new.ino != old.ino
    check(w.volume)
    w.reopen()
    again = w.node(b"c/d/z")
    assert (again.nlink, again.ino) == (3, new.ino)
    assert again is w.node(b"a/x") is w.node(b"b/y")
    check(w.volume)


def test_a_renewed_node_gives_up_names_that_went_unseen(w: SavedWorld) -> None:
    linked_world(w, [b"a/x", b"b/y"])
    old = w.node(b"a/x")
    assert isinstance(old, File)
    w.tree.clear(w.at(b"b"), w.tick())
    assert w.kept.run(lambda: w.tree.renew(old)) is Status.OK
    new = w.node(b"a/x")
    assert (new is not old, new.nlink, old.nlink) == (True, 1, 0)
    check(w.volume)


def test_links_that_went_with_a_directory_cleared_unseen_are_not_counted_for_ever(w: SavedWorld) -> None:
    linked_world(w, [b"a/x", b"b/y"])
    node = w.node(b"a/x")
    w.tree.clear(w.at(b"b"), w.tick())
    w.seal()
    assert node.nlink == 1
    check(w.volume)


def test_only_directories_with_hard_links_are_loaded_before_sealing(w: SavedWorld) -> None:
    linked_world(w, [b"a/x", b"deep/er/y"])
    w.file(b"beside/f")
    w.file(b"deep/other/f")
    w.reopen()
    w.seal()
    assert w.kept.loaded == []
    w.unlink(b"a/x")
    loaded = [d.name for d in w.kept.loaded]
    assert loaded == [b"base", b"a"]
    w.seal()
    assert [d.name for d in w.kept.loaded] == [b"base", b"a", b"deep", b"er"]
