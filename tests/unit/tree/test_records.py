"""Attribute records: what they hold, and that anything else is refused as corrupt and changes nothing."""

from __future__ import annotations

import re
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outputd.digest import Digest, DigestFunction
from outputd.errors import Corrupt
from outputd.tree.expand import Listing, expand
from outputd.tree.node import FILE_MODE, NO_RECORD, Directory, Extra, File, Local, Special, Symlink, Volume
from outputd.tree.records import VERSION, Reader, encode_leftover, record_digest
from outputd.tree.tree import Tree
from tests.unit.tree.kept import SHA256, Kept, collapsed, listing

EMPTY = Digest.of(SHA256, b"")


def sample() -> tuple[Listing, bytes]:
    """A listing and its record in which everything occurs that a record can say."""
    tree = Tree(uid=1000, gid=1000, now=1)
    volume = tree.add_volume(1, b"base", 1)
    root = volume.root
    linked = File(FILE_MODE, 2, EMPTY)
    linked.extra = Extra()
    linked.extra.xattrs = {b"user.x": b"value"}
    linked.extra.atime = 5
    linked.extra.blocks = 9
    tree.place(root, b"linked", linked, 2)
    tree.link(linked, root, b"linked too", 3)
    tree.place(root, b"local", File(FILE_MODE, 3, Local(7, 8)), 3)
    tree.place(root, b"by both", collapsed(volume, EMPTY, tree=EMPTY), 3)
    tree.place(root, b"by tree", collapsed(volume, None, tree=EMPTY), 3)
    tree.place(root, b"plain", Directory(0o040700, 4, volume), 4)
    tree.place(root, b"\xff", Directory(0o040700, 4, volume), 4)
    tree.place(root, b"\xfe", File(FILE_MODE, 4, EMPTY), 4)
    tree.place(root, b"link", Symlink(b"target", 4), 4)
    tree.place(root, b"\xfd", Symlink(b"\xff", 4), 4)
    tree.place(root, b"fifo", Special(0o010644, 4, 0), 4)
    kept = Kept()
    sealed = kept.seal(tree, volume)
    return listing(SHA256, kept.directories[sealed.digest]), kept.records[sealed.record]


LISTING, RECORD = sample()
BODY = zlib.decompress(RECORD[1:])


def opened(record: bytes) -> Directory:
    directory = collapsed(Volume(1, 1, writable=True), EMPTY)
    expand(directory, LISTING, record)
    return directory


def test_what_few_nodes_have_comes_back() -> None:
    children = opened(RECORD).children
    assert children is not None
    linked = children[b"linked"]
    assert isinstance(linked, File) and linked.extra is not None
    assert (linked.extra.xattrs, linked.atime, linked.blocks, linked.nlink) == (
        {b"user.x": b"value"},
        5,
        9,
        2,
    )
    plain = children[b"\xfe"]
    assert isinstance(plain, File) and plain.blocks == 0


def refused(record: bytes) -> str:
    """What is said of a record that is none; nothing was changed then."""
    directory = collapsed(Volume(1, 1, writable=True), EMPTY)
    with pytest.raises(Corrupt) as caught:
        expand(directory, LISTING, record)
    assert directory.children is None and directory.digest == EMPTY and directory.record == NO_RECORD
    assert not directory.volume.linked and not directory.volume.unmet
    return str(caught.value)


def packed(body: bytes) -> bytes:
    return bytes((VERSION,)) + zlib.compress(body, 1)


def test_the_sample_is_read() -> None:
    children = opened(RECORD).children
    assert children is not None
    assert len(children) == 11
    assert packed(BODY) == RECORD


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"", "version none, expected 01"),
        (b"\x02" + RECORD[1:], "version 02, expected 01"),
        (RECORD[:1], "it is cut off"),
        (RECORD[:-1], "it is cut off"),
        (b"\x01garbage", "attribute record: Error"),
        (RECORD + b"x", "goes on behind its end"),
        (packed(b""), "ends after 0 bytes, expected at least 24"),
        (packed(BODY[:-1]), "ends after"),
        (packed(BODY + b"x"), "1 bytes left over"),
        (packed(struct.pack("<I", 9) + BODY[4:]), r"lists \(9, 2, 1\) entries, the message \(2, 2, 1\)"),
    ],
)
def test_what_is_no_record_is_refused(record: bytes, message: str) -> None:
    assert re.search(message, refused(record))


def leftover_record(*leftovers: bytes) -> bytes:
    return packed(struct.pack("<IIIIII", 0, 0, 0, 0, 0, len(leftovers)) + b"".join(leftovers))


def leftover(
    payload: bytes, *, name: bytes = b"x", mode: int = FILE_MODE, ino: int = 1, extra: bytes = b""
) -> bytes:
    common = struct.pack("<HQqqB", mode, ino, 1, 1, bool(extra))
    return struct.pack("<HI", len(name), len(payload)) + name + common + extra + payload


HALF_DIGEST = bytes(EMPTY)[:-1]
LINKS = struct.pack("<BqIIII", 0, 0, 0, 0, 3, 0)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (leftover(b"f" + HALF_DIGEST), "is no digest"),
        (leftover(b"f"), "is no digest"),
        (leftover(b"f\xff" + bytes(EMPTY)[1:]), "is no digest"),
        (leftover(b"f\x01\x80" + bytes(EMPTY)[2:]), "is no digest"),
        (leftover(b"l" + bytes(15)), "kind b'l' with 15 bytes"),
        (leftover(b"n" + bytes(7), mode=0o010644), "kind b'n' with 7 bytes"),
        (leftover(b"s", mode=0o120777), "kind b's' with 0 bytes"),
        (leftover(b"q"), "kind b'q'"),
        (leftover(b""), "kind b''"),
        (leftover(b"d" + bytes(32), mode=0o040755), "kind b'd'"),
        (leftover(b"d" + bytes(32) + b"\x05" + bytes(EMPTY), mode=0o040755), "is no digest"),
        (leftover(b"f" + EMPTY, mode=0o040755), "mode 40755 for a File"),
        (leftover(b"n" + bytes(8)), "mode 100644 for a Special"),
        (leftover(b"s" + b"t", mode=0o100777), "mode 100777 for a Symlink"),
        (leftover(b"f" + EMPTY, name=b".."), "cannot be the name"),
        (leftover(b"f" + EMPTY, name=b""), "cannot be the name"),
        (leftover(b"f" + EMPTY, ino=0, extra=LINKS), "3 hard links of a node that can have one only"),
        (leftover(b"d" + bytes(33) + EMPTY, mode=0o040755, extra=LINKS), "3 hard links of a node"),
    ],
)
def test_a_leftover_that_cannot_be_is_refused(entry: bytes, message: str) -> None:
    directory = collapsed(Volume(1, 1, writable=True), EMPTY)
    with pytest.raises(Corrupt) as caught:
        expand(directory, Listing([], [], []), leftover_record(entry))
    assert message in str(caught.value)
    assert directory.children is None


def test_two_leftovers_of_one_name_are_refused() -> None:
    entry = leftover(b"f" + EMPTY)
    expand(collapsed(Volume(1, 1, writable=True), EMPTY), Listing([], [], []), leftover_record(entry))
    with pytest.raises(Corrupt, match="the same name"):
        expand(
            collapsed(Volume(1, 1, writable=True), EMPTY), Listing([], [], []), leftover_record(entry, entry)
        )
    with pytest.raises(Corrupt, match="stands in it twice"):
        expand(
            collapsed(Volume(1, 1, writable=True), EMPTY),
            Listing([], [], [(b"x", b"t")]),
            packed(
                struct.pack("<IIIIII", 0, 0, 1, 0, 0, 1) + struct.pack("<HQqq", 0o120777, 1, 1, 1) + entry
            ),
        )


def test_attributes_and_trees_of_entries_that_are_not_there_are_refused() -> None:
    head = struct.Struct("<IIIIII")
    counts = head.unpack_from(BODY)
    assert counts == (2, 2, 1, 2, 1, 6)
    columns = 5 * (2 + 8 + 8 + 8) + 2 * 32 + 2
    first = head.size + columns
    wrong = bytearray(BODY)
    wrong[first : first + 4] = struct.pack("<I", 5)
    assert "attributes of entry 5, there are 5" in refused(packed(bytes(wrong)))
    trees = BODY.index(bytes((49 - 8,)) + EMPTY, first) - 4
    wrong = bytearray(BODY)
    wrong[trees : trees + 4] = struct.pack("<I", 2)
    assert "Tree of directory 2, there are 2" in refused(packed(bytes(wrong)))


def test_a_saved_root_is_one_leftover() -> None:
    volume = Volume(1, 1, writable=True)
    volume.root.mode = 0o040711
    saved = encode_leftover(b"", volume.root, EMPTY, b"r" * 32)
    name, root = Reader(saved).leftover(Volume(2, 1, writable=True))
    assert isinstance(root, Directory)
    assert (name, root.mode, root.digest, root.record, root.children) == (
        b"",
        0o040711,
        EMPTY,
        b"r" * 32,
        None,
    )


def test_records_are_named_by_what_is_in_them() -> None:
    assert len(record_digest(RECORD)) == 32
    assert record_digest(RECORD) != record_digest(RECORD + b"x")


def test_every_digest_function_comes_back() -> None:
    for function in DigestFunction:
        digest = Digest.make(function, b"h" * function.hash_length, 5)
        volume = Volume(1, 1, writable=True)
        _, node = Reader(encode_leftover(b"\xff", File(FILE_MODE, 1, digest))).leftover(volume)
        assert isinstance(node, File) and node.content == digest


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(BODY)), st.integers(0, 12), st.binary(max_size=12)),
        min_size=1,
        max_size=3,
    )
)
def test_any_bytes_are_read_or_refused(changes: list[tuple[int, int, bytes]]) -> None:
    body = bytearray(BODY)
    for at, removed, inserted in changes:
        body[at : at + removed] = inserted
    directory = collapsed(Volume(1, 1, writable=True), EMPTY)
    try:
        expand(directory, LISTING, packed(bytes(body)))
    except Corrupt:
        assert directory.children is None and not directory.volume.linked


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_raw_bytes_are_refused(record: bytes) -> None:
    refused(record)
