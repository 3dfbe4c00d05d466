"""What the kernel must be told after changes that did not come from it: what it may remember, and nothing else."""

from __future__ import annotations

from outputd.tree.node import (
    FILE_MODE,
    File,
)
from tests.unit.tree.world import EMPTY, OTHER, World


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
    x, y = w.file(b"x"), w.file(b"y")
    w.remember(x)
    w.remember(y)
    for name in (b"x", b"y"):
        w.tree.place(w.root, name, File(FILE_MODE, 1, OTHER), w.tick())
    assert w.tree.stale == [(x, None), (w.root, None), (y, None), (w.root, b"x"), (w.root, b"y")]


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
    seen = w.file(b"seen")
    w.remember(seen)
    w.tree.withdraw(w.root, b"seen", w.tick())
    assert w.tree.stale == [(seen, None), (w.root, None), (w.root, b"seen")]


def test_a_directory_the_kernel_forgot_has_no_negatives(w: World) -> None:
    directory = w.mkdir(b"d")
    ino = w.remember(directory)
    directory.negatives = {b"x"}
    w.tree.forget(ino, 1)
    assert directory.negatives is None
