"""Extended attributes: namespaces, flags, limits."""

from __future__ import annotations

import pytest

from outputd.tree.node import FILE_MODE, File
from outputd.tree.status import Status
from outputd.tree.xattrs import CREATE, REPLACE, get_xattr, remove_xattr, set_xattr, xattr_names
from tests.unit.tree.world import EMPTY


@pytest.fixture
def file() -> File:
    return File(FILE_MODE, 1, EMPTY)


def test_set_read_listed_and_removed(file: File) -> None:
    assert xattr_names(file) == []
    assert set_xattr(file, b"user.b", b"\0\xff", 0) is Status.OK
    assert set_xattr(file, b"user.a", b"", 0) is Status.OK
    assert xattr_names(file) == [b"user.b", b"user.a"]
    assert (get_xattr(file, b"user.b"), get_xattr(file, b"user.a")) == (b"\0\xff", b"")
    assert remove_xattr(file, b"user.b") is Status.OK
    assert get_xattr(file, b"user.b") is None
    assert remove_xattr(file, b"user.b") is Status.NO_ATTRIBUTE


@pytest.mark.parametrize(
    ("flags", "before", "outcome"),
    [
        (0, b"old", Status.OK),
        (0, None, Status.OK),
        (CREATE, b"old", Status.EXISTS),
        (CREATE, None, Status.OK),
        (REPLACE, b"old", Status.OK),
        (REPLACE, None, Status.NO_ATTRIBUTE),
        (4, None, Status.INVALID),
    ],
)
def test_flags(file: File, flags: int, before: bytes | None, outcome: Status) -> None:
    if before is not None:
        set_xattr(file, b"user.x", before, 0)
    assert set_xattr(file, b"user.x", b"new", flags) is outcome
    assert get_xattr(file, b"user.x") == (b"new" if outcome is Status.OK else before)


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        (b"user.", Status.INVALID),
        (b"security.capability", Status.UNSUPPORTED),
        (b"trusted.x", Status.UNSUPPORTED),
        (b"user", Status.UNSUPPORTED),
    ],
)
def test_names_that_are_not_kept(file: File, name: bytes, outcome: Status) -> None:
    assert set_xattr(file, name, b"", 0) is outcome
    assert remove_xattr(file, name) is outcome
    assert file.extra is None


def test_one_node_holds_about_a_block_of_them(file: File) -> None:
    assert set_xattr(file, b"user.a", b"v" * 3978, 0) is Status.OK
    assert set_xattr(file, b"user.a", b"v" * 3979, 0) is Status.NO_ROOM
    assert set_xattr(file, b"user.b", b"", 0) is Status.NO_ROOM
    assert get_xattr(file, b"user.a") == b"v" * 3978
    assert set_xattr(file, b"user.a", b"v", 0) is Status.OK
    assert set_xattr(file, b"user.b", b"", 0) is Status.OK
