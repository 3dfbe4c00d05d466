"""Sealing and expanding: everything comes back, only what changed is sealed, and messages are those of any REv2 client."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction
from outputd.tree.expand import Listing, expand
from outputd.tree.merkle import Sealed, digest_message, is_utf8, seal
from outputd.tree.node import (
    DIRECTORY_MODE,
    EXECUTABLE_MODE,
    FILE_MODE,
    NO_RECORD,
    Directory,
    Extra,
    File,
    Local,
    Node,
    Special,
    Symlink,
)
from outputd.tree.rules import RENAME_EXCHANGE
from tests.unit.tree.kept import SHA256, check, collapsed, picture
from tests.unit.tree.saved import SavedWorld
from tests.unit.tree.world import EMPTY, OTHER, known

BLAKE = Digest.of(DigestFunction.BLAKE3, b"other")


@pytest.fixture
def w() -> SavedWorld:
    return SavedWorld()


def test_everything_comes_back(w: SavedWorld) -> None:
    w.file(b"staged/a", OTHER, EXECUTABLE_MODE)
    w.file(b"staged/b")
    w.file(b"modes/secret", OTHER, 0o100600)
    w.file(b"modes/setuid", OTHER, 0o104755)
    w.at(b"modes").mode = 0o042770
    dated = w.file(b"times/f")
    dated.mtime, dated.ctime = -5, 1 << 62
    dated.extra = Extra()
    dated.extra.atime = -(1 << 60)
    dated.extra.xattrs = {b"user.a": b"", b"user.\xff": b"\0" * 70_000}
    dated.extra.uid = 0
    w.file(b"bytes/\xff\xfe", OTHER)
    w.file(b"bytes/\xff.d/inside")
    w.place(b"bytes/\xfflink", Symlink(b"plain", 5))
    w.place(b"bytes/target", Symlink(b"\xff/../x", 6))
    w.place(b"links/symlink", Symlink("größe/..".encode(), 7))
    w.place(b"special/fifo", Special(0o010600, 8, 0))
    w.place(b"special/socket", Special(0o140755, 8, 0))
    w.place(b"special/device", Special(0o020666, 8, (1 << 63) + 3))
    w.file(b"hard/one", OTHER)
    w.link(b"hard/one", b"hard/two")
    w.link(b"hard/one", b"modes/three")
    w.file(b"local/new", Local(11, 4096))
    w.file(b"local/linked", Local(12, 1))
    w.link(b"local/linked", b"local/\xff")
    w.file(b"other function/f", BLAKE)
    w.place(b"empty", Directory(DIRECTORY_MODE, 9, w.volume))
    for path in (b"staged/a", b"links/symlink", b"modes", b"special/fifo"):
        w.tree.identify(w.node(path), w.at(path.rpartition(b"/")[0]))
    w.root.mode = 0o041755
    w.root.mtime = 123
    before = picture(w.kept, w.tree, w.root)
    attributes = (w.root.mode, w.root.mtime, w.root.ctime)
    w.reopen()
    assert w.root.children is None
    assert picture(w.kept, w.tree, w.root) == before
    assert (w.root.mode, w.root.mtime, w.root.ctime) == attributes
    check(w.volume)
    w.reopen()
    assert picture(w.kept, w.tree, w.root) == before


def test_nothing_but_what_is_looked_at_is_loaded(w: SavedWorld) -> None:
    for path in (b"a/b/c/file", b"a/x/file", b"y/file"):
        w.file(path)
    w.reopen()
    w.node(b"a/b/c")
    assert [directory.name for directory in w.kept.loaded] == [b"base", b"a", b"b"]


def test_only_what_changed_is_sealed(w: SavedWorld) -> None:
    for path in (b"a/b/c/file", b"a/x/file", b"y/file"):
        w.file(path)
    assert w.sealed_now() == 6
    assert w.sealed_now() == 0
    steps: list[tuple[Callable[[], object], int]] = [
        (lambda: w.file(b"a/b/c/file", OTHER), 4),
        (lambda: w.unlink(b"y/file"), 2),
        (lambda: w.tree.outdate_attributes(w.node(b"a/x/file")), 3),
        (lambda: w.tree.outdate_attributes(w.root), 0),
        (lambda: w.tree.identify(w.node(b"a/x"), w.at(b"a")), 2),
        (lambda: w.tree.rename(w.at(b"a"), b"b", w.root, b"y", RENAME_EXCHANGE, w.tick()), 2),
        (lambda: w.tree.rename(w.root, b"y", w.root, b"z", RENAME_EXCHANGE, w.tick()), 0),
        (lambda: w.place(b"closed", collapsed(w.volume, OTHER)), 1),
    ]
    for number, (change, count) in enumerate(steps):
        change()
        assert w.sealed_now() == count, number
    w.reopen()
    assert w.sealed_now() == 0
    w.file(b"a/x/new")
    assert w.sealed_now() == 3


def test_sealing_again_from_nothing_gives_the_same(w: SavedWorld) -> None:
    w.file(b"a/b/file", OTHER)
    w.file(b"c/local", Local(1, 2))
    w.link(b"a/b/file", b"c/linked")
    first = w.seal()
    w.tree.rename(w.at(b"c"), b"linked", w.root, b"moved", 0, w.tick())
    w.unlink(b"a/b/file")
    second = w.seal()
    assert second != first
    stack = [w.root]
    while stack:
        directory = stack.pop()
        directory.digest = directory.record = None
        assert directory.children is not None
        stack.extend(node for node in directory.children.values() if isinstance(node, Directory))
    assert w.seal() == second


# messages


@pytest.mark.parametrize("function", [f for f in DigestFunction if f.supported])
def test_messages_are_what_protobuf_writes(w: SavedWorld, function: DigestFunction) -> None:
    names = ["b", "a", "Z", "é", "a.b", "a-b", "n" * 200, "中", "\U0001f600", "\uffee"]
    expected = reapi.Directory()
    for name in sorted(names, key=str.encode):
        for size, kind in ((0, "empty"), (1, "x" * 300), (200_000, "long")):
            digest = Digest.of(function, b"x" * size)
            executable = kind == "empty"
            w.file((name + kind).encode(), digest, EXECUTABLE_MODE if executable else FILE_MODE)
            node = expected.files.add(name=name + kind, is_executable=executable)
            node.digest.hash, node.digest.size_bytes = digest.hash_hex, size
        w.place((name + "/below/x").encode(), File(FILE_MODE, 1, Digest.of(function, name.encode())))
        w.place((name + "-link").encode(), Symlink((name * 3).encode(), 1))
        expected.symlinks.add(name=name + "-link", target=name * 3)
    sealed = w.seal(function)
    for name in sorted(names, key=str.encode):
        digest = w.at(name.encode()).digest or EMPTY
        node_below = expected.directories.add(name=name)
        node_below.digest.hash, node_below.digest.size_bytes = digest.hash_hex, digest.size
    for entries in (expected.files, expected.symlinks):
        entries.sort(key=lambda entry: entry.name.encode())
    message = expected.SerializeToString(deterministic=True)
    assert sealed.digest == Digest.of(function, message)
    assert w.kept.directories[sealed.digest] == message


def test_an_empty_directory_is_the_empty_blob(w: SavedWorld) -> None:
    assert w.seal().digest == EMPTY
    assert w.kept.directories == {EMPTY: b""}


def test_equal_content_is_equal_whatever_its_attributes(w: SavedWorld) -> None:
    w.file(b"a/f", OTHER)
    w.file(b"b/f", OTHER, 0o100600)
    w.tree.identify(w.node(b"b/f"), w.at(b"b"))
    w.place(b"b/fifo", Special(0o010600, 1, 0))
    w.seal()
    a, b = w.at(b"a"), w.at(b"b")
    assert a.digest == b.digest and a.record != b.record


def test_the_executable_bit_is_content(w: SavedWorld) -> None:
    w.file(b"a/f", OTHER, 0o100700)
    w.file(b"b/f", OTHER, 0o100655)
    w.seal()
    assert w.at(b"a").digest != w.at(b"b").digest
    assert w.at(b"b").digest is not None


@pytest.mark.parametrize("size", [0, 1, 127, 128, 1 << 35, (1 << 63) - 1])
def test_digest_messages_are_what_protobuf_writes(size: int) -> None:
    digest = Digest.make(SHA256, bytes(range(32)), size)
    expected = reapi.Digest(hash=digest.hash_hex, size_bytes=size).SerializeToString(deterministic=True)
    assert digest_message(digest) == expected


def test_is_utf8_is_what_protobuf_takes() -> None:
    for name in (b"", b"a", "é中\U0001f600".encode()):
        assert is_utf8(name)
    for name in (b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"a\xe4", b"\xf4\x90\x80\x80"):
        assert not is_utf8(name)


# defaults


def test_a_staged_directory_costs_its_message_only(w: SavedWorld) -> None:
    directory = w.tree.descend(w.root, b"d", 5)
    w.tree.place(directory, b"file", File(FILE_MODE, 5, OTHER), 5)
    w.tree.place(directory, b"tool", File(EXECUTABLE_MODE, 5, OTHER), 5)
    w.tree.place(directory, b"link", Symlink(b"file", 5), 5)
    w.tree.place(directory, b"sub", collapsed(w.volume, OTHER, now=5), 5)
    sealed = w.seal()
    assert sealed.record == NO_RECORD and directory.record == NO_RECORD and w.kept.records == {}
    w.reopen()
    assert w.node(b"d/tool").mtime == w.node(b"d/tool").ctime == 5
    assert w.node(b"d/tool").mode == EXECUTABLE_MODE


@pytest.mark.parametrize(
    "change",
    [
        lambda node: setattr(node, "mode", 0o100640),
        lambda node: setattr(node, "mtime", 6),
        lambda node: setattr(node, "ctime", 6),
        lambda node: setattr(node, "ino", 99),
        lambda node: setattr(node, "extra", Extra()),
    ],
)
def test_anything_else_is_recorded(w: SavedWorld, change: Callable[[Node], None]) -> None:
    file = File(FILE_MODE, 5, OTHER)
    w.tree.place(w.root, b"f", file, 5)
    change(file)
    w.tree.outdate_attributes(file)
    before = picture(w.kept, w.tree, w.root)
    assert w.seal().record != NO_RECORD
    w.reopen()
    assert picture(w.kept, w.tree, w.root) == before


def test_another_time_of_a_directory_leaves_its_entries_theirs(w: SavedWorld) -> None:
    directory = w.tree.descend(w.root, b"d", 5)
    w.tree.place(directory, b"f", File(FILE_MODE, 5, OTHER), 5)
    w.seal()
    directory.mtime = 99
    w.tree.outdate_attributes(directory)
    w.reopen()
    assert (w.at(b"d").mtime, w.node(b"d/f").mtime) == (99, 5)


def test_two_digest_functions_in_one_tree(w: SavedWorld) -> None:
    w.file(b"old/f", OTHER)
    w.file(b"old/sub/f", OTHER)
    w.seal()
    w.file(b"new/f", BLAKE)
    before = picture(w.kept, w.tree, w.root)
    sealed = w.kept.seal(w.tree, w.volume, DigestFunction.BLAKE3)
    assert sealed.digest.function is DigestFunction.BLAKE3
    assert w.at(b"old").digest is not None and w.at(b"new").digest is not None
    w.tree, w.volume = w.kept.reopen(w.volume, sealed, 2)
    assert picture(w.kept, w.tree, w.root) == before


# Trees


def test_a_staged_tree_nobody_looked_into_stays_one(w: SavedWorld) -> None:
    w.place(b"d/by-tree", collapsed(w.volume, None, tree=BLAKE))
    w.place(b"d/by-both", collapsed(w.volume, EMPTY, tree=OTHER))
    w.place(b"d/\xff", collapsed(w.volume, EMPTY, tree=OTHER))
    w.place(b"plain/by-both", collapsed(w.volume, EMPTY, tree=OTHER, now=w.now))
    for _ in range(2):
        w.reopen()
        found = [w.at(path) for path in (b"d/by-tree", b"d/by-both", b"d/\xff", b"plain/by-both")]
        assert [d.tree for d in found] == [BLAKE, OTHER, OTHER, OTHER]
        assert [d.digest for d in found] == [None, EMPTY, EMPTY, EMPTY]
        assert all(d.children is None and d.record == NO_RECORD for d in found)
    expand(found[1], Listing([], [], []), None)
    assert found[1].tree is None


# local bytes


def test_a_local_file_leaves_the_digests_above_unknown(w: SavedWorld) -> None:
    file = w.file(b"a/b/local", Local(7, 3))
    w.file(b"a/c/blob")
    assert w.sealed_now() == 4
    assert known(w.root, w.at(b"a"), w.at(b"a/b"), w.at(b"a/c")) == [False, False, False, True]
    assert isinstance(file.content, Local)
    file.content.size = 9  # without a word, as passed-through writes do
    assert w.sealed_now() == 3
    w.reopen()
    node = w.node(b"a/b/local")
    assert isinstance(node, File) and isinstance(node.content, Local)
    assert (node.content.key, node.content.size) == (7, 9)
    # Nor are they known once it is loaded again.
    assert known(w.root, w.at(b"a"), w.at(b"a/b"), w.at(b"a/c")) == [False, False, False, True]
    node.content.size = 10
    w.tree.set_content(node, OTHER)
    w.reopen()
    w.node(b"a/b/local")
    assert known(w.root, w.at(b"a"), w.at(b"a/b")) == [True] * 3


# sealing while the tree changes


def test_what_changes_between_two_steps_is_sealed_again(w: SavedWorld) -> None:
    w.file(b"a/x", OTHER)
    w.file(b"b/local", Local(1, 1))
    w.file(b"c/d/y", OTHER)
    changes: list[Callable[[], object]] = [
        lambda: w.file(b"a/new"),
        lambda: w.file(b"b/new"),
        lambda: w.unlink(b"c/d/y"),
        lambda: w.tree.rename(w.root, b"a", w.at(b"c"), b"a", 0, w.tick()),
        lambda: w.file(b"b/new", OTHER),
        lambda: w.place(b"b", File(FILE_MODE, 1, EMPTY)),
    ]
    result: Sealed | None = None
    for step in seal(w.root, SHA256, w.kept):
        if isinstance(step, Sealed):
            result = step
        elif changes:
            changes.pop(0)()
    assert result is not None
    assert changes == []
    before = picture(w.kept, w.tree, w.root)
    tree, volume = w.kept.reopen(w.volume, result, 2)
    assert picture(w.kept, tree, volume.root) == before


@pytest.mark.parametrize("number", range(1, 5))
def test_what_was_sealed_and_cannot_last_is_sealed_again_after_a_change(w: SavedWorld, number: int) -> None:
    for i in range(2):
        w.file(b"d%d/e/local" % i, Local(i + 1, 1))
    result: Sealed | None = None
    for count, step in enumerate(seal(w.root, SHA256, w.kept), 1):
        if isinstance(step, Sealed):
            result = step
        elif count == number:
            for i in range(2):
                w.file(b"d%d/e/new" % i)
    assert result is not None
    before = picture(w.kept, w.tree, w.root)
    tree, volume = w.kept.reopen(w.volume, result, 2)
    assert picture(w.kept, tree, volume.root) == before


def test_changes_elsewhere_do_not_hold_sealing_up(w: SavedWorld) -> None:
    """Also where local files let nothing last: a busy tree must come to an end all the same."""
    for i in range(20):
        w.file(b"d%d/local" % i, Local(i + 1, 1))
    busy = w.file(b"busy/f")
    steps = 0
    for step in seal(w.root, SHA256, w.kept):
        steps += 1
        assert steps < 100
        if not isinstance(step, Sealed):
            w.tree.outdate_attributes(busy)
            w.tree.set_content(w.file(b"busy/f"), OTHER) if steps < 10 else None
    assert steps < 60


def test_a_pass_finds_what_another_has_sealed_meanwhile(w: SavedWorld) -> None:
    w.file(b"a/f")
    one, two = seal(w.root, SHA256, w.kept), seal(w.root, SHA256, w.kept)
    next(one)
    results = [step for steps in (two, one) for step in steps if isinstance(step, Sealed)]
    assert len(results) == 2 and results[0] == results[1]
