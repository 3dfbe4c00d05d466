"""What is freed: local bytes exactly once, when nobody can reach them any more; subtrees step by step."""

from __future__ import annotations

import pytest

from outputd.tree.node import (
    FILE_MODE,
    Directory,
    File,
    Local,
    Symlink,
)
from outputd.tree.rules import RENAME_EXCHANGE
from outputd.tree.status import Status
from tests.unit.tree.kept import check
from tests.unit.tree.world import EMPTY, World


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
