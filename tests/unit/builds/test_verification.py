"""Verifying: every file in one count, losses by path, equal directories once, nothing moved or expanded."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing
from pathlib import Path

import pytest

from outputd._proto import remote_execution_pb2 as reapi
from outputd.builds.staging import TreeReference
from outputd.builds.verification import Tally, Verification
from outputd.digest import Digest
from outputd.errors import NotFound, Unavailable
from tests.unit.builds.world import SHA256, World, world

A, B, C = (Digest.of(SHA256, data) for data in (b"a", b"bb", b"ccc"))


async def verified(w: World, path: bytes = b"", *, content: bool = False) -> Tally:
    async with aclosing(Verification(w.loader, w.cas).of(w.root(), path, content=content)) as tallies:
        async for tally in tallies:
            result = tally
    return result


def counts(tally: Tally) -> dict[str, tuple[int, int]]:
    found = {name: getattr(tally, name) for name in ("both", "remote", "here", "gone", "damaged")}
    return {name: (count.files, count.bytes) for name, count in found.items() if count.files}


async def four_kinds(w: World) -> Digest:
    """A build with a file of each kind, and what the one in both places is."""
    both = w.cas.add(b"in both places")
    await w.start()
    await w.stage(("d/remote", A), ("d/both", both), ("gone/x", B), ("gone/again", B))
    await w.cas.fetch(both)
    w.write("made", b"made here")
    await w.finalize("b1")
    w.cas.lost = {B, Digest.of(SHA256, b"made here")}
    return both


def test_four_kinds(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await four_kinds(w)
            open_file = w.write("open", b"12345", close=False)
            tally = await verified(w)
            assert counts(tally) == {"both": (1, 14), "remote": (1, 1), "here": (2, 14), "gone": (2, 4)}
            assert (tally.directories, tally.unloadable, tally.whole) == (3, 0, False)
            assert {(loss.path, loss.digest) for loss in tally.losses} == {(b"gone/x", B), (b"gone/again", B)}
            w.close(open_file)
        async with world(tmp_path) as w:
            w.cas.lost = {B, Digest.of(SHA256, b"made here")}
            tally = await verified(w)
            assert counts(tally)["gone"] == (2, 4)
            assert w.root().children is None
            assert w.cas.read_digests == []

    asyncio.run(run())


def test_a_part_of_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await four_kinds(w)
            assert counts(await verified(w, b"d")) == {"both": (1, 14), "remote": (1, 1)}
            assert counts(await verified(w, b"/gone/x")) == {"gone": (1, 2)}
            for path in (b"absent", b"made/below"):
                with pytest.raises(NotFound, match="there is nothing"):
                    await verified(w, path)

    asyncio.run(run())


def test_content_is_hashed_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            both = await four_kinds(w)
            made = Digest.of(SHA256, b"made here")
            for digest in (both, made):
                path = w.store.layout.path(digest)
                os.chmod(path, 0o644)
                Path(path).write_bytes(bytes(digest.size))
            assert counts(await verified(w))["both"] == (1, 14)
            tally = await verified(w, content=True)
            assert counts(tally) == {"remote": (2, 15), "gone": (3, 13), "damaged": (2, 23)}
            assert any("damaged" in loss.reason for loss in tally.losses if loss.path == b"made")

    asyncio.run(run())
    monkeypatch.setattr("outputd.builds.verification._HASHED_AT_ONCE", 4)
    tmp_path = tmp_path / "again"
    tmp_path.mkdir()
    asyncio.run(run())


def test_messages_that_are_gone_and_trees_that_double(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            leaf = reapi.Directory(
                files=[reapi.FileNode(name="a", digest=reapi.Digest(hash=A.hash_hex, size_bytes=A.size))]
            )
            digest = w.cas.add(leaf.SerializeToString())
            for _ in range(60):
                child = reapi.Digest(hash=digest.hash_hex, size_bytes=digest.size)
                both = [reapi.DirectoryNode(name=name, digest=child) for name in ("left", "right")]
                digest = w.cas.add(reapi.Directory(directories=both).SerializeToString())
            await w.stage(("t", TreeReference(None, digest)), ("gone", TreeReference(None, C)))
            tally = await verified(w)
            assert (tally.directories, tally.unloadable, tally.whole) == (63, 1, False)
            assert counts(tally) == {"remote": (1, 1)}
            assert [(loss.path, loss.digest) for loss in tally.losses] == [(b"gone", C)]

    asyncio.run(run())


def test_a_remote_that_does_not_answer(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await four_kinds(w)
            w.cas.down = Unavailable("no route to the CAS")
            with pytest.raises(Unavailable):
                await verified(w)

    asyncio.run(run())
