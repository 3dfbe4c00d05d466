"""Files without a name (O_TMPFILE): they may get one, once, in their volume, and are dropped when nobody knows them any more."""

from __future__ import annotations

import pytest

from outputd.tree.node import FILE_MODE, File, Local
from outputd.tree.status import Status
from tests.unit.tree.world import World


@pytest.fixture
def file(w: World) -> File:
    made = File(FILE_MODE, 1, Local(7))
    assert w.tree.create_nameless(w.root, made, uid=1000, gid=1000) is Status.OK
    w.tree.remember(made, w.root)
    return made


def test_it_gets_a_name_and_then_others(w: World, file: File) -> None:
    assert file.nlink == 0
    directory = w.mkdir(b"d")
    assert w.link(file, b"named", directory) is Status.OK
    assert (file.nlink, w.tree.lookup(directory, b"named")) == (1, file)
    assert w.link(file, b"again") is Status.OK
    assert file.nlink == 2
    assert w.tree.nameless == {}


def test_what_lost_its_last_name_does_not_come_back(w: World, file: File) -> None:
    w.link(file, b"named")
    w.unlink(b"named")
    assert w.link(file, b"again") is Status.ABSENT


def test_it_stays_in_its_volume(w: World, file: File) -> None:
    other = w.tree.add_volume(2, b"other", 1).root
    assert w.link(file, b"named", other) is Status.CROSS_DEVICE
    assert w.link(file, b"named") is Status.OK


def test_a_name_that_cannot_be_leaves_it_as_it_was(w: World, file: File) -> None:
    w.file(b"taken")
    assert w.link(file, b"taken") is Status.EXISTS
    assert w.link(file, b"free") is Status.OK


def test_it_is_dropped_with_the_last_reference(w: World, file: File) -> None:
    w.tree.forget(file.ino, 1)
    assert w.tree.dropped == [file]
    assert w.tree.nameless == {}


def test_it_is_made_only_where_a_name_could_be(w: World) -> None:
    directory = w.mkdir(b"d")
    w.tree.remove_directory(w.root, b"d", 2)
    made = File(FILE_MODE, 1, Local(8))
    assert w.tree.create_nameless(directory, made, uid=1000, gid=1000) is Status.ABSENT
    assert w.tree.create_nameless(w.tree.outputs, made, uid=1000, gid=1000) is Status.READ_ONLY
    assert w.tree.nameless == {}
