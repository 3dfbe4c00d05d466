"""The look-through at the start of a build: one question about everything, what is missing is gone, nothing else is touched."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from outputd._proto import remote_execution_pb2 as reapi
from outputd.builds.staging import TreeReference
from outputd.digest import Digest
from outputd.errors import Unavailable
from outputd.tree.node import Directory
from tests.unit.builds.world import BASE, NAMELESS, SHA256, World, seen, until, world

A, B, C, D = (Digest.of(SHA256, data) for data in (b"a", b"bb", b"ccc", b"dddd"))


def _proto(digest: Digest) -> reapi.Digest:
    return reapi.Digest(hash=digest.hash_hex, size_bytes=digest.size)


def _directory(
    w: World, files: dict[str, Digest], directories: dict[str, Digest] | None = None, *, uploaded: bool = True
) -> Digest:
    message = reapi.Directory(
        files=[reapi.FileNode(name=name, digest=_proto(digest)) for name, digest in sorted(files.items())],
        directories=[
            reapi.DirectoryNode(name=name, digest=_proto(digest))
            for name, digest in sorted((directories or {}).items())
        ],
    ).SerializeToString()
    return w.cas.add(message) if uploaded else Digest.of(SHA256, message)


def test_the_first_build_asks_nobody(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            w.cas.down = Unavailable("no route to the CAS")
            await w.start()
            assert w.cas.asked == []

    asyncio.run(run())


def test_missing_files_are_removed_and_the_kernel_is_told(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("d/a", A), ("d/b", B), ("e/a", A), ("c", C))
            w.write("local", b"here")
            w.symlink("link", "d/b")
            await w.finalize("b1", successful=True)
            directory = w.at("d")
            assert isinstance(directory, Directory)
            seen(w, directory)
            w.cas.lost = {A, C}
            await w.start("b2")
            local = Digest.of(SHA256, b"here")
            assert w.cas.asked == [{A, B, C, local}]
            assert await w.listing() == {"d/": None, "d/b": B, "e/": None, "local": local, "link": b"d/b"}
            assert set(w.kernel.told) == {(f"outputs/{BASE}/d", b"a"), (f"outputs/{BASE}/d", None), NAMELESS}

    asyncio.run(run())


def test_after_a_restart_only_what_lacks_something_is_expanded(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("x/d/a", A), ("x/d/b", B), ("x/e/b", B), ("y/b", B), ("y/z/c", C))
        async with world(tmp_path) as w:
            w.cas.lost = {A}
            await w.start("b2")
            assert w.cas.asked == [{A, B, C}]
            root = w.root()
            x, y = w.tree.lookup(root, b"x"), w.tree.lookup(root, b"y")
            assert isinstance(x, Directory) and isinstance(y, Directory)
            assert x.children is not None
            assert y.children is None
            e = w.tree.lookup(x, b"e")
            assert isinstance(e, Directory)
            assert e.children is None
            assert await w.listing() == {
                "x/": None,
                "x/d/": None,
                "x/d/b": B,
                "x/e/": None,
                "x/e/b": B,
                "y/": None,
                "y/b": B,
                "y/z/": None,
                "y/z/c": C,
            }

    asyncio.run(run())


def test_when_nothing_is_missing_nothing_is_expanded_and_nothing_changes(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("x/d/a", A), ("y/b", B))
        async with world(tmp_path) as w:
            changes = w.root().volume.changes
            await w.start("b2")
            assert w.cas.asked == [{A, B}]
            assert w.root().children is None
            assert w.root().volume.changes == changes

    asyncio.run(run())


@pytest.mark.parametrize("by", ["tree", "root", "both"])
def test_lazy_directories_are_looked_through(by: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            leaf = reapi.Directory(
                files=[reapi.FileNode(name="a", digest=_proto(A)), reapi.FileNode(name="b", digest=_proto(B))]
            )
            leaf_digest = w.cas.add(leaf.SerializeToString())
            root = reapi.Directory(directories=[reapi.DirectoryNode(name="sub", digest=_proto(leaf_digest))])
            root_digest = w.cas.add(root.SerializeToString())
            tree = w.cas.add(reapi.Tree(root=root, children=[leaf]).SerializeToString())
            reference = TreeReference(tree if by != "root" else None, root_digest if by != "tree" else None)
            await w.stage(("t", reference), ("u", reference))
            await w.finalize("b1", successful=True)
            w.cas.lost = {A}
            await w.start("b2")
            assert w.cas.asked == [{A, B}]
            assert w.cas.instances == {"main"}
            assert await w.listing() == {
                f"{top}{rest}": content
                for top in "tu"
                for rest, content in (("/", None), ("/sub/", None), ("/sub/b", B))
            }

    asyncio.run(run())


def test_a_lazy_directory_whose_message_is_gone_is_emptied(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            gone = _directory(w, {"a": A}, uploaded=False)
            not_one = w.cas.add(b"no Directory message")
            holder = _directory(w, {"b": B}, {"gone": gone})
            await w.stage(
                ("gone", TreeReference(None, gone)),
                ("tree", TreeReference(D, None)),
                ("garbage", TreeReference(None, not_one)),
                ("holder", TreeReference(None, holder)),
            )
            await w.finalize("b1", successful=True)
            await w.start("b2")
            assert await w.listing() == {
                "gone/": None,
                "tree/": None,
                "garbage/": None,
                "holder/": None,
                "holder/gone/": None,
                "holder/b": B,
            }
        async with world(tmp_path) as w:
            assert len(await w.listing()) == 6

    asyncio.run(run())


def test_a_tree_that_doubles_at_each_level_is_looked_through_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            digest = _directory(w, {"a": A})
            for _ in range(60):
                digest = _directory(w, {}, {"left": digest, "right": digest})
            await w.stage(("t", TreeReference(None, digest)))
            await w.finalize("b1", successful=True)
            await w.start("b2")
            assert w.cas.asked == [{A}]
            assert len(w.cas.read_digests) == 61

    asyncio.run(run())


def test_a_cas_that_does_not_answer_fails_the_start_and_a_retry_looks_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("a", A), ("b", B))
            await w.finalize("b1", successful=True)
            w.cas.down = Unavailable("no route to the CAS")
            with pytest.raises(Unavailable, match="no route"):
                await w.start("b2")
            assert await w.listing() == {"a": A, "b": B}
            w.cas.down = None
            w.cas.lost = {A}
            await w.start("b2")
            assert await w.listing() == {"b": B}
            # Once it has succeeded, a repeated start is only that.
            await w.start("b2")
            assert len(w.cas.asked) == 2

    asyncio.run(run())


def test_what_is_changed_while_the_cas_thinks_is_left_alone(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("d/a", A), ("d/b", A), ("gone/a", A))
            await w.finalize("b1", successful=True)
            w.cas.lost = {A}
            w.cas.gate.clear()
            start = asyncio.create_task(w.start("b2"))
            await until(lambda: w.cas.asked)
            w.unlink("d/a")
            w.write("d/a", b"here")
            w.unlink("gone/a")
            w.cas.gate.set()
            await start
            await w.ingest.settle()
            assert await w.listing() == {"d/": None, "d/a": Digest.of(SHA256, b"here"), "gone/": None}

    asyncio.run(run())


def test_what_is_replaced_while_a_large_directory_is_gone_through_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outputd.builds.pace._SLICE", 0.0)

    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(*((f"f{index:03}", A) for index in range(600)))
            await w.finalize("b1", successful=True)
            w.cas.lost = {A}
            start = asyncio.create_task(w.start("b2"))
            await until(lambda: w.at("f000") is None)
            w.unlink("f599")
            w.write("f599", b"here")
            await start
            await w.ingest.settle()
            assert await w.listing() == {"f599": Digest.of(SHA256, b"here")}

    asyncio.run(run())


def test_the_loop_is_free_while_a_large_tree_is_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outputd.builds.pace._SLICE", 0.0)  # as on a machine that is slow enough

    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            digests = [Digest.of(SHA256, str(index).encode()) for index in range(5000)]
            await w.stage(*((f"d{index % 10}/{index}", digest) for index, digest in enumerate(digests)))
            await w.finalize("b1", successful=True)
            w.cas.lost = set(digests[::2])
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0)
                    turns += 1

            counter = asyncio.create_task(count())
            await w.start("b2")
            counter.cancel()
            assert turns >= 20  # ten directories, each gone through twice
            assert sum(content is not None for content in (await w.listing()).values()) == 2500

    asyncio.run(run())
