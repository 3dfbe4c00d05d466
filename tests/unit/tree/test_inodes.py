"""Nodes that the kernel knows from an earlier process: found when they are asked for, or met when their directory comes."""

from __future__ import annotations

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.tree.expand import Listing, expand
from outputd.tree.inodes import Identity
from outputd.tree.node import Directory, Node, pack, packable
from outputd.tree.status import NotLoaded
from outputd.tree.tree import Tree

EMPTY = Digest.of(DigestFunction.SHA256, b"")
NOW = packable(10**18)


class Known:
    """A tree whose output path `base` is collapsed, and holds `d/f`; the kernel knows all four."""

    def __init__(self) -> None:
        self.tree = Tree(uid=0, gid=0, now=NOW)
        self.inodes = self.tree.inodes
        self.outputs = self.tree.identify(self.tree.outputs, self.tree.root)
        self.top = self.tree.add_volume(5, b"base", NOW).root
        self.top.children = None
        self.inodes.awaited = {
            self.outputs: Identity(1, b"outputs", 1),
            self.top.ino: Identity(self.outputs, b"base", 2, {b"absent"}),
            100: Identity(self.top.ino, b"d", 3),
            101: Identity(100, b"f", 4),
        }
        self.inodes.meet_below(self.tree.root)

    def load(self, directory: Directory) -> None:
        """What a loader does; the numbers stand in for those of a record."""
        if directory is self.top:
            expand(directory, Listing([], [(b"d", EMPTY)], []), None)
            below = self.node(directory, b"d")
            below.ino = 100
        else:
            expand(directory, Listing([(b"f", EMPTY, False)], [], []), None)
            packed = pack(0o100644, NOW, EMPTY, 101)
            assert packed is not None and directory.children is not None
            directory.children[b"f"] = packed
        self.inodes.meet(directory)

    def node(self, directory: Directory, name: bytes) -> Node:
        node = self.tree.lookup(directory, name)
        assert node is not None
        return node


def test_what_is_in_memory_is_met_at_once() -> None:
    known = Known()
    assert known.inodes[known.top.ino] is known.top
    assert (known.top.lookups, known.top.negatives) == (2, {b"absent"})
    assert set(known.inodes.awaited) == {100, 101}


def test_who_is_asked_for_says_what_is_to_be_loaded() -> None:
    known = Known()
    with pytest.raises(NotLoaded) as need:
        known.inodes[101]
    assert need.value.directory is known.top
    known.load(known.top)
    with pytest.raises(NotLoaded) as need:
        known.inodes[101]
    assert need.value.directory is known.node(known.top, b"d")
    known.load(need.value.directory)
    file = known.inodes[101]
    assert (file.name, file.lookups) == (b"f", 4)
    assert known.node(need.value.directory, b"f") is file
    assert known.inodes.awaited == {}


def test_a_directory_that_is_expanded_tells_of_itself() -> None:
    known = Known()
    record_of_d = known.inodes.awaited
    expand(known.top, Listing([], [(b"d", EMPTY)], []), None)
    assert set(record_of_d) == {100, 101}  # without a record it is another node


def test_who_is_not_there_any_more_is_unknown() -> None:
    known = Known()
    expand(known.top, Listing([], [(b"d", EMPTY)], []), None)
    for ino in (100, 101, 102):
        with pytest.raises(KeyError):
            known.inodes[ino]


def test_a_node_in_memory_that_was_not_met_is_found_by_its_name() -> None:
    known = Known()
    known.load(known.top)
    below = known.node(known.top, b"d")
    assert isinstance(below, Directory)
    expand(below, Listing([(b"f", EMPTY, False)], [], []), None)
    packed = pack(0o100644, NOW, EMPTY, 101)
    assert packed is not None and below.children is not None
    below.children[b"f"] = packed
    assert known.inodes[101] is known.node(below, b"f")


def test_references_are_given_back_by_number() -> None:
    known = Known()
    known.tree.forget(101, 3)
    known.tree.forget(100, 3)
    known.load(known.top)
    below = known.node(known.top, b"d")
    assert below.lookups == 0
    assert isinstance(below, Directory)
    known.load(below)
    assert set(known.inodes.listed) == {101}  # one reference is no reason to be a node
    assert known.inodes[101].lookups == 1
    known.tree.forget(101, 1)
    with pytest.raises(KeyError):
        known.inodes[101]
    assert isinstance((below.children or {})[b"f"], bytes)
    known.tree.forget(999, 1)


def test_nothing_is_asked_of_one_that_nobody_awaits() -> None:
    tree = Tree(uid=0, gid=0, now=NOW)
    with pytest.raises(KeyError):
        tree.inodes[7]
