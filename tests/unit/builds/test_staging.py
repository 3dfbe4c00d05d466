"""Staging: the creating walk, what it replaces and what it keeps, one error for each bad item, and what the kernel is told."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from outputd._proto import remote_execution_pb2 as reapi
from outputd.builds.staging import TreeReference
from outputd.digest import Digest
from outputd.errors import Invalid, NotFound, Precondition, Unavailable
from outputd.tree.node import EXECUTABLE_MODE, Directory, File, Local
from tests.unit.builds.world import NAMELESS, SHA256, World, seen, until, world

A = Digest.of(SHA256, b"a")
B = Digest.of(SHA256, b"bb")


def _tree(w: World, *, name: str = "leaf") -> tuple[Digest, Digest]:
    """A Tree that the CAS has, with one file in `sub`; the digests of the Tree and of its root."""
    leaf = reapi.Directory(files=[reapi.FileNode(name=name, digest=_proto(A))])
    root = reapi.Directory(
        directories=[
            reapi.DirectoryNode(name="sub", digest=_proto(Digest.of(SHA256, leaf.SerializeToString())))
        ]
    )
    tree = w.cas.add(reapi.Tree(root=root, children=[leaf]).SerializeToString())
    return tree, Digest.of(SHA256, root.SerializeToString())


def _proto(digest: Digest) -> reapi.Digest:
    return reapi.Digest(hash=digest.hash_hex, size_bytes=digest.size)


CREATED = {
    "file": "file",
    "a/b/c": "a/b/c",
    "./a//b/./d": "a/b/d",
    "a/../b": "b",
    "new/../a/x": "a/x",
    "ä/ö": "ä/ö",
}


def test_paths_that_are_created(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            assert await w.stage(*((path, A) for path in CREATED)) == [None] * len(CREATED)
            for found in CREATED.values():
                node = w.at(found)
                assert isinstance(node, File)
                assert node.content == A
                # Executable, for Bazel runs what it staged; writable, for a local action may truncate it.
                assert node.mode == stat.S_IFREG | 0o755

    asyncio.run(run())


def test_the_walk_makes_the_directory_that_it_leaves_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("a/../b", A))
            assert isinstance(w.at("a"), Directory)

    asyncio.run(run())


REFUSED = {
    "": "resolves to a directory",
    ".": "resolves to a directory",
    "a/": "resolves to a directory",
    "a/.": "resolves to a directory",
    "a/..": "resolves to a directory",
    "/a": "is absolute",
    "..": "climbs above",
    "../a": "climbs above",
    "a/../../b": "climbs above",
    "a\0b": "NUL",
    "a/" + "x" * 256: "longer than 255 bytes",
    "x" * 256 + "/a": "longer than 255 bytes",
}


def test_bad_paths_fail_alone(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            for path, reason in REFUSED.items():
                # In the middle of good ones, in the directory they have too.
                results = await w.stage(("a/one", A), (path, A), ("a/two", B))
                assert (path, results[0], results[2]) == (path, None, None)
                assert isinstance(results[1], Invalid)
                assert reason in str(results[1])
            assert await w.listing() == {"a/": None, "a/one": A, "a/two": B}

    asyncio.run(run())


def test_what_stands_in_the_way_is_replaced(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            w.symlink("link", "elsewhere")
            w.write("file", b"local")
            await w.ingest.settle()
            w.mkdir("directory")
            w.write("directory/x", b"local")
            assert (
                await w.stage(
                    ("link/a", A), ("file/b", A), ("directory", A), ("link/a", B), ("link/a/deeper", B)
                )
                == [None] * 5
            )
            assert await w.listing() == {
                "link/": None,
                "link/a/": None,
                "link/a/deeper": B,
                "file/": None,
                "file/b": A,
                "directory": A,
            }

    asyncio.run(run())


def test_a_directory_replaced_within_a_request_is_not_staged_into_any_more(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("d/e/one", A), ("d", A), ("d/e/two", B))
            assert await w.listing() == {"d/": None, "d/e/": None, "d/e/two": B}
            tree, root = _tree(w)
            await w.stage(("d/e/three", A), ("d/e", TreeReference(tree, root)), ("d/e/four", B))
            assert await w.listing() == {
                "d/": None,
                "d/e/": None,
                "d/e/four": B,
                "d/e/sub/": None,
                "d/e/sub/leaf": A,
            }

    asyncio.run(run())


def test_staging_the_same_again_changes_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("d/a", A), ("d/b", A), ("d/c", A))
            nodes = [w.at(path) for path in ("d/a", "d/b", "d/c")]
            assert all(isinstance(node, File) for node in nodes)
            kept, read_only, private = nodes
            assert kept is not None and read_only is not None and private is not None
            read_only.mode = stat.S_IFREG | 0o555  # Bazel's chmod of every output
            private.mode = stat.S_IFREG | 0o600
            times = kept.mtime
            changes = w.root().volume.changes
            await w.stage(("d/a", A), ("d/b", A))
            assert w.at("d/a") is kept
            assert kept.mtime == times
            assert w.at("d/b") is read_only
            assert w.root().volume.changes == changes
            await w.stage(("d/a", B), ("d/c", A))
            assert w.at("d/a") is not kept
            node = w.at("d/c")
            assert node is not private
            assert node is not None
            assert node.mode == EXECUTABLE_MODE

    asyncio.run(run())


def test_the_private_bytes_of_a_replaced_file_are_freed(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            file = w.write("out", b"local", close=False)
            assert len(w.private_files()) == 1
            await w.stage(("out", A))
            w.close(file)
            await until(lambda: not w.private_files())
            assert await w.listing() == {"out": A}

    asyncio.run(run())


def test_a_lazy_directory_is_brought_by_the_first_who_looks(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            tree, root = _tree(w)
            references = (TreeReference(tree, root), TreeReference(tree, None))
            assert await w.stage(*((f"t{i}", reference) for i, reference in enumerate(references))) == [
                None,
                None,
            ]
            assert w.cas.read_digests == []
            assert await w.listing() == {
                f"t{i}{rest}": content
                for i in range(2)
                for rest, content in (("/", None), ("/sub/", None), ("/sub/leaf", A))
            }

    asyncio.run(run())


def test_staging_below_a_lazy_directory_loads_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            tree, root = _tree(w)
            await w.stage(("t", TreeReference(tree, root)))
            assert await w.stage(("t/sub/more", B), ("t/sub/leaf", B)) == [None, None]
            assert await w.listing() == {"t/": None, "t/sub/": None, "t/sub/more": B, "t/sub/leaf": B}

    asyncio.run(run())


def test_a_lazy_directory_that_cannot_be_loaded_fails_its_items_and_is_asked_for_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            tree, root = _tree(w)
            await w.stage(("t", TreeReference(tree, root)))
            w.cas.down = Unavailable("no route to the CAS")
            results = await w.stage(*((f"t/sub/{i}", B) for i in range(50)), ("fine", A))
            assert {str(result) for result in results[:-1]} == {"no route to the CAS"}
            assert all(isinstance(result, Unavailable) for result in results[:-1])
            assert results[-1] is None
            assert len(w.cas.read_digests) == 1
            w.cas.down = None
            assert await w.stage(("t/sub/0", B)) == [None]

    asyncio.run(run())


def test_a_tree_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, max_tree_bytes=1000) as w:
            await w.start()
            large = Digest.make(SHA256, bytes(32), 1001)
            fits = Digest.make(SHA256, bytes(32), 1000)
            results = await w.stage(
                ("a", TreeReference(large, None)),
                ("b", TreeReference(fits, large)),
                ("c", TreeReference(fits, fits)),
            )
            assert [type(result) for result in results] == [Invalid, Invalid, type(None)]
            assert "outputs.max_tree_bytes allows, 1000 bytes" in str(results[0])

    asyncio.run(run())


def test_with_the_local_store_as_cas_an_absent_blob_is_known(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, local_only=True) as w:
            await w.start()
            w.cas.vouches = False
            w.store.put(A, b"a")
            tree, root = _tree(w)
            w.store.put(tree, w.cas.blobs[tree])
            gone = TreeReference(B, None)
            results = await w.stage(
                ("a", A),
                ("b", B),
                ("d/a", A),
                ("d/b", B),
                ("t", TreeReference(tree, root)),
                ("u", gone),
                ("v", TreeReference(None, root)),
            )
            kinds = [None if result is None else type(result) for result in results]
            assert kinds == [None, NotFound, None, NotFound, None, NotFound, NotFound]
            assert str(results[1]) == f"blob {B}: is not in the CAS"
            await w.load()  # the Tree's directories are kept from here on
            assert await w.stage(("v", TreeReference(None, root))) == [None]

    asyncio.run(run())


def test_with_a_remote_nobody_is_asked(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            w.cas.vouches = False
            assert await w.stage(("a", A)) == [None]
            assert w.cas.asked == []

    asyncio.run(run())


def test_the_kernel_is_told_of_what_it_may_remember_and_of_nothing_else(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("d/a", A), ("d/b", A), ("top/unseen/a", A))
            directory = w.at("d")
            assert isinstance(directory, Directory)
            seen(w, directory, w.root())
            directory.negatives = {b"absent"}
            w.kernel.told.clear()
            await w.stage(("d/a", B), ("d/absent", A), ("d/new", A), ("top/unseen/a", B), ("top/unseen/b", B))
            here = f"outputs/{w.root().name.decode()}/d"
            assert set(w.kernel.told) == {(here, b"a"), (here, None), (here, b"absent"), NAMELESS}

    asyncio.run(run())


def test_the_kernel_is_told_also_when_the_client_gives_up(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            tree, root = _tree(w)
            await w.stage(("a", A), ("t", TreeReference(tree, root)))
            seen(w, w.root())
            w.kernel.told.clear()
            w.cas.gate.clear()
            call = asyncio.create_task(w.stage(("a", B), ("t/x", A), ("late", A)))
            await until(lambda: w.cas.read_digests)
            assert w.tree.stale == []  # what it has changed so far is its own to tell, not somebody else's
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert (f"outputs/{w.root().name.decode()}", b"a") in w.kernel.told
            w.cas.gate.set()
            # What was staged is an ordinary file, the lazy directory is as it was, the rest never happened.
            assert await w.listing() == {"a": B, "t/": None, "t/sub/": None, "t/sub/leaf": A}

    asyncio.run(run())


def test_a_build_that_ends_meanwhile_takes_no_more(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            tree, root = _tree(w)
            await w.stage(("t", TreeReference(tree, root)))
            w.cas.gate.clear()
            call = asyncio.create_task(w.stage(("t/x", A)))
            await until(lambda: w.cas.read_digests)
            await w.builds.clean(w.root().name.decode())
            w.cas.gate.set()
            with pytest.raises(Precondition, match="build b1: it was ended"):
                await call

    asyncio.run(run())


def test_a_staged_file_can_be_truncated_in_place(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("out", A))
            node = w.at("out")
            assert isinstance(node, File)
            opened = w.content.open(node, writing=True, truncate=True)
            w.content.write(opened, 0, memoryview(b"local"), append=False)
            assert isinstance(node.content, Local)
            w.content.release(opened, writing=True)
            await w.ingest.settle()
            assert await w.listing() == {"out": Digest.of(SHA256, b"local")}

    asyncio.run(run())
