"""Files without a node: they say what a node says, become one when somebody asks for it, and are one no longer when nobody does."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outputd.digest import Digest, DigestFunction
from outputd.tree.identity import identify_all, remember_all
from outputd.tree.node import (
    EXECUTABLE_MODE,
    FILE_MODE,
    GRANULE,
    Directory,
    File,
    Local,
    PackedFile,
    blob_of,
    pack,
    packable,
    packed_attributes,
    packed_content,
    packed_ino,
    packed_size,
    unpacked,
)
from outputd.tree.status import Status
from tests.unit.tree.kept import check, picture
from tests.unit.tree.saved import SavedWorld
from tests.unit.tree.world import EMPTY, OTHER, World

NOW = 3 * GRANULE
MODES = st.sampled_from([EXECUTABLE_MODE, FILE_MODE])
FUNCTIONS = st.sampled_from([function for function in DigestFunction if function.supported])


def staged(w: World, *names: bytes, directory: Directory | None = None) -> None:
    for name in names:
        packed = pack(EXECUTABLE_MODE, NOW, EMPTY)
        assert packed is not None
        w.tree.place(directory or w.root, name, packed, w.tick())


def child(w: World, name: bytes) -> object:
    return w.tree.children(w.root)[name]


@given(
    mode=MODES,
    mtime=st.integers(0, (1 << 63) - 1).map(packable),
    function=FUNCTIONS,
    data=st.binary(max_size=3),
    size=st.integers(0, (1 << 63) - 1),
    ino=st.integers(0, (1 << 64) - 1),
)
def test_everything_that_can_be_packed_comes_back(
    mode: int, mtime: int, function: DigestFunction, data: bytes, size: int, ino: int
) -> None:
    digest = Digest.make(function, Digest.of(function, data).hash, size)
    packed = pack(mode, mtime, digest, ino)
    assert packed is not None
    assert (packed_content(packed), packed_size(packed), packed_ino(packed)) == (digest, size, ino)
    assert packed_attributes(packed) == (mode, mtime) and blob_of(packed) == digest
    file = unpacked(packed)
    assert (file.mode, file.mtime, file.ctime, file.content, file.ino) == (mode, mtime, mtime, digest, ino)


@pytest.mark.parametrize(
    ("mode", "mtime"),
    [(EXECUTABLE_MODE | 0o020, NOW), (EXECUTABLE_MODE, NOW + 1), (FILE_MODE, -GRANULE), (FILE_MODE, 1 << 63)],
)
def test_what_cannot_be_said_is_not_packed(mode: int, mtime: int) -> None:
    assert pack(mode, mtime, EMPTY) is None


def test_a_time_that_can_be_packed_is_the_last_one_before() -> None:
    assert [packable(now) for now in (-5, 0, NOW - 1, NOW, NOW + 1)] == [0, 0, NOW - GRANULE, NOW, NOW]
    assert pack(FILE_MODE, packable(1 << 70), EMPTY) is not None


def test_neither_a_packed_file_nor_a_directory_of_them_is_collected_garbage(w: World) -> None:
    staged(w, b"a", b"b")
    gc.collect()
    assert not gc.is_tracked(child(w, b"a")) and not gc.is_tracked(w.tree.children(w.root))


def test_looking_a_name_up_makes_the_node_and_changes_nothing(w: World) -> None:
    staged(w, b"a")
    changes = w.volume.changes
    file = w.tree.lookup(w.root, b"a")
    assert isinstance(file, File) and file is child(w, b"a") is w.tree.lookup(w.root, b"a")
    assert (file.parent, file.name, file.nlink, w.volume.changes) == (w.root, b"a", 1, changes)
    check(w.volume)


def test_a_forgotten_node_is_packed_again_and_keeps_its_number(w: World) -> None:
    staged(w, b"a")
    file = w.tree.lookup(w.root, b"a")
    assert isinstance(file, File)
    ino = w.remember(file)
    w.tree.forget(ino, 1)
    packed = child(w, b"a")
    assert isinstance(packed, bytes) and packed_ino(PackedFile(packed)) == ino
    assert file.nlink == 0  # whoever still has it must not take it for the file
    again = w.tree.lookup(w.root, b"a")
    assert isinstance(again, File) and (again.ino, again.mtime, again.content) == (ino, NOW, EMPTY)


@pytest.mark.parametrize("change", ["mode", "mtime", "content", "extra", "name"])
def test_a_node_that_says_more_stays_when_it_is_forgotten(w: World, change: str) -> None:
    staged(w, b"a")
    file = w.tree.lookup(w.root, b"a")
    assert isinstance(file, File)
    ino = w.remember(file)
    if change == "mode":
        file.mode |= 0o022
    elif change == "mtime":
        file.mtime += GRANULE
    elif change == "content":
        w.tree.set_content(file, Local(1))
    elif change == "extra":
        w.tree.set_owner(file, 1, 1)
    else:
        assert w.link(file, b"b") is Status.OK
        file.ctime = file.mtime
    w.tree.forget(ino, 1)
    assert child(w, b"a") is file and file.nlink
    check(w.volume)


def test_a_listing_counts_references_without_nodes(w: World) -> None:
    staged(w, b"a", b"b")
    inos, found = remember_all(w.root, [b"b", b"a"])
    assert all(isinstance(each, bytes) for each in found) and len(w.tree.inodes) == 1
    assert identify_all(w.root, [b"b", b"a"])[0] == inos
    file = w.tree.inodes[inos[0]]
    assert (file.name, file.ino, file.lookups) == (b"b", inos[0], 1) and file is child(w, b"b")
    w.tree.forget(inos[0], 1)
    w.tree.forget(inos[1], 1)
    assert not w.tree.inodes.listed and isinstance(child(w, b"b"), bytes)
    with pytest.raises(KeyError):
        w.tree.inodes[inos[1]]
    assert remember_all(w.root, [b"b", b"a"])[0] == inos


def test_a_second_listing_counts_again(w: World) -> None:
    staged(w, b"a")
    (ino,), _ = remember_all(w.root, [b"a"])
    _, (file,) = remember_all(w.root, [b"a"])
    assert isinstance(file, File) and file.lookups == 2 and w.tree.inodes[ino] is file
    remember_all(w.root, [b"a"])
    assert file.lookups == 3
    w.tree.forget(ino, 3)
    assert isinstance(child(w, b"a"), bytes)


@pytest.mark.parametrize("how", ["place", "withdraw", "unlink", "clear", "rename"])
def test_what_a_listing_has_told_of_is_there_for_the_kernel_when_its_name_is_gone(w: World, how: str) -> None:
    w.remember(w.root)
    staged(w, b"a")
    (ino,), _ = remember_all(w.root, [b"a"])
    w.tree.stale.clear()
    if how == "place":
        w.tree.place(w.root, b"a", File(FILE_MODE, 9, OTHER), w.tick())
    elif how == "withdraw":
        w.tree.withdraw(w.root, b"a", w.tick())
    elif how == "unlink":
        assert w.unlink(b"a") is Status.OK
    elif how == "clear":
        w.tree.clear(w.root, w.tick())
        w.freed()
    else:
        w.file(b"b")
        assert w.rename(b"b", b"a") is Status.OK
    file = w.tree.inodes[ino]
    assert isinstance(file, File) and (file.nlink, file.lookups, file.content) == (0, 1, EMPTY)
    assert ((w.root, b"a") in w.tree.stale) is (how in ("place", "withdraw", "clear"))
    w.tree.forget(ino, 1)
    assert ino not in w.tree.inodes
    check(w.volume)


def test_a_subtree_that_is_taken_apart_leaves_nodes_for_what_was_listed(w: World) -> None:
    top = w.mkdir(b"top")
    w.remember(top)
    staged(w, b"a", b"b", directory=top)
    (ino,), _ = remember_all(top, [b"a"])
    w.tree.withdraw(w.root, b"top", w.tick())
    assert w.freed() == []
    assert w.tree.inodes[ino].nlink == 0 and not w.tree.inodes.listed


def test_staged_times_and_numbers_come_back_over_a_restart() -> None:
    w = SavedWorld()
    for number, name in enumerate([b"d/a", b"d/b", b"d/c"], 1):
        packed = pack(EXECUTABLE_MODE, number * GRANULE, EMPTY)
        assert packed is not None
        directory, last = w.parent(name)
        w.tree.place(directory, last, packed, w.tick())
    remember_all(w.at(b"d"), [b"b"])
    before = picture(w.kept, w.tree, w.root)
    w.reopen()
    assert picture(w.kept, w.tree, w.root) == before
    children = w.tree.children(w.at(b"d"))
    assert all(isinstance(each, bytes) for each in children.values())
    assert [packed_ino(each) > 0 for each in children.values() if isinstance(each, bytes)] == [
        False,
        True,
        False,
    ]
