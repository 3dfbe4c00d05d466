"""Listings that cannot be a directory are refused, and nothing is changed."""

from __future__ import annotations

import pytest

from outputd.errors import Corrupt
from outputd.tree.expand import Listing, expand
from outputd.tree.node import (
    Volume,
)
from tests.unit.tree.kept import collapsed
from tests.unit.tree.world import EMPTY


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (Listing([(b"x", EMPTY, False), (b"x", EMPTY, False)], [], []), "stands in it twice"),
        (Listing([(b"x", EMPTY, False)], [(b"x", EMPTY)], []), "stands in it twice"),
        (Listing([], [(b"x", EMPTY)], [(b"x", b"t")]), "stands in it twice"),
        (Listing([(b"", EMPTY, False)], [], []), "cannot be the name"),
        (Listing([(b".", EMPTY, False)], [], []), "cannot be the name"),
        (Listing([], [(b"..", EMPTY)], []), "cannot be the name"),
        (Listing([], [], [(b"a/b", b"t")]), "cannot be the name"),
        (Listing([], [], [(b"a\0b", b"t")]), "cannot be the name"),
        (Listing([], [(b"n" * 256, EMPTY)], []), "cannot be the name"),
        (Listing([], [], [(b"l", b"")]), "has the target b''"),
        (Listing([], [], [(b"l", b"a\0b")]), "expected a path"),
    ],
)
def test_a_listing_that_is_no_directory_is_corrupt(entries: Listing, message: str) -> None:
    volume = Volume(1, 1, writable=True)
    directory = collapsed(volume, EMPTY)
    with pytest.raises(Corrupt, match=message):
        expand(directory, entries, None)
    assert directory.children is None and directory.digest == EMPTY and not volume.linked


def test_a_huge_listing_with_one_name_twice_is_refused_in_time() -> None:
    names = [b"%06d" % i for i in range(50_000)]
    entries = Listing([(name, EMPTY, False) for name in [*names, names[-1]]], [], [])
    with pytest.raises(Corrupt, match="049999"):
        expand(collapsed(Volume(1, 1, writable=True), EMPTY), entries, None)


def test_an_expanded_directory_is_not_expanded_again() -> None:
    volume = Volume(1, 1, writable=True)
    directory = collapsed(volume, EMPTY)
    expand(directory, Listing([(b"x", EMPTY, False)], [], []), None)
    children = directory.children
    expand(directory, Listing([], [], []), None)
    assert directory.children is children and directory.digest == EMPTY
