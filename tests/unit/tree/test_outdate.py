"""What changes make unknown: digests and records up to the root, and no others."""

from __future__ import annotations

from collections.abc import Callable

from tests.unit.tree.kept import collapsed
from tests.unit.tree.world import EMPTY, OTHER, World, known


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
