"""Collapsed directories get their children: from messages here, from the store, from inside a Tree; never from one that lies."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest
from outputd.drive.loader import decoding_directory
from outputd.errors import Corrupt, NotFound
from outputd.tree.expand import Listing
from outputd.tree.node import NO_RECORD, Directory, File, Symlink
from tests.unit.drive.world import SHA256, World, world

LEAF = Digest.of(SHA256, b"leaf")


def _digest(message: reapi.Directory | reapi.Tree) -> Digest:
    return Digest.of(SHA256, message.SerializeToString(deterministic=True))


def _proto(digest: Digest) -> reapi.Digest:
    return reapi.Digest(hash=digest.hash_hex, size_bytes=digest.size)


def _leaf_directory(name: str = "leaf") -> reapi.Directory:
    return reapi.Directory(files=[reapi.FileNode(name=name, digest=_proto(LEAF), is_executable=True)])


def _tree() -> reapi.Tree:
    child = _leaf_directory()
    root = reapi.Directory(
        directories=[reapi.DirectoryNode(name="sub", digest=_proto(_digest(child)))],
        symlinks=[reapi.SymlinkNode(name="link", target="../x")],
    )
    return reapi.Tree(root=root, children=[child])


def _stage(w: World, *, tree: Digest | None = None, digest: Digest | None = None) -> Directory:
    directory = Directory(0o40755, 7, w.volume)
    directory.children = None
    directory.tree = tree
    directory.digest = digest
    directory.record = NO_RECORD
    w.tree.place(w.root, b"staged", directory, 7)
    return directory


def _upload(w: World, message: reapi.Directory | reapi.Tree) -> Digest:
    digest = _digest(message)
    w.remote.blobs[digest] = message.SerializeToString(deterministic=True)
    return digest


def test_a_tree_is_read_once_and_its_directories_need_no_store_any_more(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            message = _tree()
            directory = _stage(w, tree=_upload(w, message))
            await asyncio.gather(w.loader.load(directory), w.loader.load(directory))
            assert directory.digest == _digest(message.root)
            sub = w.tree.children(directory)[b"sub"]
            link = w.tree.children(directory)[b"link"]
            assert isinstance(sub, Directory) and isinstance(link, Symlink)
            assert link.target == b"../x"
            w.remote.blobs.clear()
            leaf = await w.driver.run(lambda: w.tree.lookup(sub, b"leaf"))
            assert isinstance(leaf, File) and leaf.content == LEAF and leaf.mode == 0o100755
            assert len(w.remote.fetched) == 1

    asyncio.run(run())


def test_a_directory_digest_alone_is_enough_when_the_store_has_the_messages(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            message = _tree()
            _upload(w, message.children[0])
            directory = _stage(w, digest=_upload(w, message.root))
            await w.loader.load(directory)
            sub = w.tree.children(directory)[b"sub"]
            assert isinstance(sub, Directory)
            assert await w.driver.run(lambda: w.tree.lookup(sub, b"absent")) is None

    asyncio.run(run())


def test_a_root_digest_found_only_inside_its_tree_is_loaded_from_there(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            message = _tree()
            directory = _stage(w, tree=_upload(w, message), digest=_digest(message.root))
            await w.loader.load(directory)
            assert set(w.tree.children(directory)) == {b"sub", b"link"}

    asyncio.run(run())


def test_a_root_digest_that_is_not_the_trees_is_corrupt(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            directory = _stage(w, tree=_upload(w, _tree()), digest=Digest.of(SHA256, b"another"))
            with pytest.raises(Corrupt, match="root_directory_digest says"):
                await w.loader.load(directory)
            assert directory.children is None

    asyncio.run(run())


@pytest.mark.parametrize(
    "blob",
    [
        b"\xff\xff",
        b"",
        b"\x0a\x05ab",
        b"\x18\x01",
        b"\x0a\x00\x0a\x02\x0a\x00",
        b"\x12\x00",
        b"\x0a\xff\xff\xff\xff\xff\x7f",
    ],
    ids=["noise", "empty", "cut", "field 3", "two roots", "no root", "endless"],
)
def test_a_blob_that_is_no_tree_is_corrupt(tmp_path: Path, blob: bytes) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            digest = Digest.of(SHA256, blob)
            w.remote.blobs[digest] = blob
            directory = _stage(w, tree=digest)
            with pytest.raises(Corrupt, match=digest.hash_hex[:16]):
                await w.loader.load(directory)
            assert directory.children is None

    asyncio.run(run())


@pytest.mark.parametrize(
    "message",
    [
        _leaf_directory(".."),
        _leaf_directory("a/b"),
        _leaf_directory(""),
        _leaf_directory("x" * 256),
        reapi.Directory(files=[*_leaf_directory().files, *_leaf_directory().files]),
        reapi.Directory(files=_leaf_directory().files, symlinks=[reapi.SymlinkNode(name="leaf", target="x")]),
        reapi.Directory(files=[reapi.FileNode(name="x", digest=reapi.Digest(hash="zz", size_bytes=1))]),
        reapi.Directory(
            files=[reapi.FileNode(name="x", digest=reapi.Digest(hash=LEAF.hash_hex, size_bytes=-1))]
        ),
        reapi.Directory(directories=[reapi.DirectoryNode(name="x")]),
    ],
)
def test_a_directory_that_lies_is_corrupt_and_stays_collapsed(
    tmp_path: Path, message: reapi.Directory
) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            directory = _stage(w, digest=_upload(w, message))
            with pytest.raises(Corrupt):
                await w.loader.load(directory)
            assert directory.children is None

    asyncio.run(run())


def test_a_child_that_its_tree_does_not_hold_is_not_found_and_harms_nothing_else(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            message = _tree()
            del message.children[:]
            directory = _stage(w, tree=_upload(w, message))
            await w.loader.load(directory)
            sub = w.tree.children(directory)[b"sub"]
            assert isinstance(sub, Directory)
            with pytest.raises(NotFound):
                await w.loader.load(sub)

    asyncio.run(run())


def test_a_tree_above_the_limit_is_not_even_asked_for(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            directory = _stage(w, tree=Digest.make(SHA256, bytes(32), 1 << 40))
            with pytest.raises(Corrupt, match="max_tree_bytes"):
                await w.loader.load(directory)
            assert w.remote.fetched == []

    asyncio.run(run())


def _large_directory() -> reapi.Directory:
    return reapi.Directory(
        files=[
            reapi.FileNode(name=f"file {n}" * 20, digest=_proto(LEAF), is_executable=n % 2 == 0)
            for n in range(999)
        ],
        directories=[reapi.DirectoryNode(name=f"directory {n}", digest=_proto(LEAF)) for n in range(999)],
        symlinks=[reapi.SymlinkNode(name=f"link {n}", target="x" * n) for n in range(999)],
    )


def _decoded(message: bytes) -> tuple[Listing, int]:
    """The listing and the steps it took."""
    work = decoding_directory(LEAF, message)
    steps = 0
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value, steps
        steps += 1


@pytest.mark.parametrize("properties", [False, True])
def test_a_large_message_is_decoded_in_steps(properties: bool) -> None:
    message = _large_directory()
    if properties:
        message.node_properties.properties.add(name="x", value="y")
    listing, steps = _decoded(message.SerializeToString())
    assert steps > 20
    assert [name for name, _, _ in listing.files] == [f.name.encode() for f in message.files]
    assert [x for _, _, x in listing.files] == [f.is_executable for f in message.files]
    assert [name for name, _ in listing.directories] == [d.name.encode() for d in message.directories]
    assert listing.symlinks == [(s.name.encode(), s.target.encode()) for s in message.symlinks]


@pytest.mark.parametrize("cut", [1, 30_000, 100_000])
def test_a_large_message_that_is_cut_off_is_corrupt(cut: int) -> None:
    with pytest.raises(Corrupt):
        _decoded(_large_directory().SerializeToString()[:-cut])


@pytest.mark.parametrize("byte", [0x0A, 0x12, 0x80, 0xFF])
def test_a_large_message_of_rubbish_is_corrupt_and_soon_so(byte: int) -> None:
    with pytest.raises(Corrupt):
        _decoded(bytes((byte,)) * (1 << 20))
