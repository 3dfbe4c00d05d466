"""Sealing a large directory goes in steps; what changes between two of them is not missed, nor does it keep it from ending."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from outputd.tree import merkle
from outputd.tree.merkle import Sealed, seal
from outputd.tree.node import EXECUTABLE_MODE, FILE_MODE, GRANULE, Directory, File, Node, Symlink, pack
from tests.unit.tree.kept import SHA256, canonical, picture
from tests.unit.tree.saved import SavedWorld
from tests.unit.tree.world import EMPTY, OTHER

COUNT = 2000


@pytest.fixture
def w() -> SavedWorld:
    """One directory with very many entries of all kinds, not in the order of their names."""
    made = SavedWorld()
    for number in range(COUNT):
        name = b"%d" % (number * 7919 % COUNT)
        if number % 50 == 0:
            made.place(name, Directory(0o040755, GRANULE, made.volume))
            made.file(name + b"/inside")
        elif number % 7 == 0:
            made.place(name, Symlink(b"to " + name, GRANULE))
        elif number % 3 == 0:
            made.file(name, OTHER)
        else:
            packed = pack(EXECUTABLE_MODE, GRANULE, EMPTY)
            assert packed is not None
            made.tree.place(made.root, name, packed, made.tick())
    made.file(b"\xff no UTF-8")
    return made


def sealed(w: SavedWorld, between: Callable[[int], None] = lambda step: None) -> tuple[Sealed, int]:
    """The seal and how many steps it took; `between` is called after each."""
    for number, step in enumerate(seal(w.root, SHA256, w.kept), 1):
        if isinstance(step, Sealed):
            return step, number
        between(number)
    raise AssertionError("no result")


def test_many_steps_seal_what_one_step_does(w: SavedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    in_steps, steps = sealed(w)
    assert steps > COUNT / merkle._SLICE
    message = w.kept.directories[in_steps.digest]
    assert canonical(message) == message
    w.root.digest = w.root.record = None
    monkeypatch.setattr(merkle, "_SLICE", 10 * COUNT)
    assert sealed(w) == (in_steps, 1)


def place(w: SavedWorld) -> None:
    w.file(b"new")


def remove(w: SavedWorld) -> None:
    w.tree.withdraw(w.root, b"1", w.tick())


def touch(w: SavedWorld) -> None:
    node = w.node(b"1")
    node.mtime = 77
    w.tree.outdate_attributes(node)


def touch_the_directory(w: SavedWorld) -> None:
    w.root.mtime = 77
    w.tree.outdate_attributes(w.root)


def change_below(w: SavedWorld) -> None:
    w.file(b"0/new")


def make_below(w: SavedWorld) -> None:
    w.file(b"made/new")


def look(w: SavedWorld) -> None:
    w.tree.remember(w.node(b"2"), w.root)


@pytest.mark.parametrize(
    "change", [place, remove, touch, touch_the_directory, change_below, make_below, look]
)
@pytest.mark.parametrize("after", [45, 50, 60, 70])
def test_a_change_between_two_steps_is_not_missed(
    w: SavedWorld, change: Callable[[SavedWorld], None], after: int
) -> None:
    result, steps = sealed(w, lambda step: change(w) if step == after else None)
    assert steps > after  # the first forty are the subdirectories
    tree, again = w.kept.reopen(w.volume, result)
    assert picture(w.kept, tree, again.root) == picture(w.kept, w.tree, w.root)
    assert again.root.mtime == w.root.mtime


def test_changes_without_end_do_not_keep_it_from_ending(w: SavedWorld) -> None:
    result, _ = sealed(w, lambda step: place(w))
    tree, again = w.kept.reopen(w.volume, result)
    assert b"new" in picture(w.kept, tree, again.root)


def test_times_that_are_the_directorys_need_no_record(w: SavedWorld) -> None:
    root = w.root
    w.tree.clear(root, GRANULE)
    for number in range(COUNT):
        node: Node = File(FILE_MODE, GRANULE, EMPTY)
        w.tree.place(root, b"%d" % number, node, GRANULE)
    assert sealed(w)[0].record == b""
    root.digest = root.record = None
    assert sealed(w, lambda step: touch_the_directory(w) if step == 3 else None)[0].record != b""
