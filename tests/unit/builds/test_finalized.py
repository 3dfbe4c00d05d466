"""Which finalized paths have changed: compared at the start of the next build, and only when that is wanted."""

from __future__ import annotations

import asyncio
import zlib
from pathlib import Path

import pytest

from outputd.builds.builds import Started
from outputd.builds.finalized import Finalized
from outputd.builds.output_base import Modified
from outputd.builds.staging import TreeReference
from outputd.digest import Digest
from outputd.errors import Corrupt
from tests.unit.builds.world import BASE, SHA256, World, request, world

A, B = (Digest.of(SHA256, data) for data in (b"a", b"bb"))


async def _build(w: World, build_id: str = "b1") -> None:
    """A build with four outputs, finalized as Bazel does."""
    await w.start(build_id)
    await w.stage(("d/a", A), ("d/b", B), ("d/e/c", A), build_id=build_id)
    w.symlink("link", "d/a")
    w.builds.finalize_artifacts(build_id, [(b"d/a", A), (b"d/b", B), (b"./d//e/c", A), (b"link", A)])
    await w.finalize(build_id, successful=True)


async def _next(w: World, build_id: str = "b2") -> Modified | None:
    return (await w.builds.start(request(build_id))).modified


def test_nothing_is_told_unless_it_is_asked_for(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await _build(w)
            w.unlink("d/a")
            assert await w.builds.start(request("b2")) == Started(BASE, None)

    asyncio.run(run())


def test_nothing_is_told_of_a_new_output_path(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, initial_contents=True) as w:
            assert await _next(w) is None

    asyncio.run(run())


@pytest.mark.parametrize("restarted", [False, True])
def test_what_changed_since_it_was_finalized(restarted: bool, tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, initial_contents=True) as w:
            await _build(w)
            assert await _next(w) == Modified("b1", [])
            w.unlink("d/a")
            w.unlink("d/b")
            w.write("d/b", b"other")
            w.unlink("link")
            w.symlink("link", "d/b")
            w.write("unrelated", b"x")
            await w.finalize("b2", successful=True)
            if not restarted:
                assert await _next(w, "b3") == Modified("b2", ["d/a", "d/b", "link"])
        if restarted:
            async with world(tmp_path, initial_contents=True) as w:
                assert await _next(w, "b3") == Modified("b2", ["d/a", "d/b", "link"])
                root = w.root()
                assert root.children is None  # found out without expanding anything
                # What is gone was told of; the rest stays different until it is finalized again.
                assert await _next(w, "b4") == Modified("b3", ["d/b", "link"])
                w.builds.finalize_artifacts("b4", [(b"d/b", Digest.of(SHA256, b"other"))])
                assert await _next(w, "b5") == Modified("b4", ["link"])

    asyncio.run(run())


def test_a_repeated_start_tells_the_same(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, initial_contents=True) as w:
            await _build(w)
            w.unlink("d/a")
            assert await _next(w) == Modified("b1", ["d/a"])
            assert await _next(w) == Modified("b1", ["d/a"])

    asyncio.run(run())


def test_what_the_cas_has_lost_has_changed(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, initial_contents=True) as w:
            await _build(w)
            w.cas.lost = {A}
            assert await _next(w) == Modified("b1", ["d/a", "d/e/c"])

    asyncio.run(run())


def test_a_path_below_what_is_no_directory_any_more_has_changed(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, initial_contents=True) as w:
            await _build(w)
            await w.start("b2")
            await w.stage(("d", TreeReference(A, None)), build_id="b2")  # and nobody has that Tree
            assert await _next(w, "b3") == Modified("b2", ["d/a", "d/b", "d/e/c"])

    asyncio.run(run())


def test_a_build_without_tracking_in_between_makes_it_unknown(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, initial_contents=True) as w:
            await _build(w)
        async with world(tmp_path) as w:
            await w.start("b2")
            w.builds.finalize_artifacts("b2", [(b"new", A)])
            await w.finalize("b2", successful=True)
        async with world(tmp_path, initial_contents=True) as w:
            assert await _next(w, "b3") is None

    asyncio.run(run())


def test_dropped_contents_are_not_derived_from_any_build(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, initial_contents=True) as w:
            await _build(w)
            assert (await w.builds.start(request("b2", instance_name="another"))).modified is None

    asyncio.run(run())


def test_too_many_changes_are_not_listed(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, initial_contents=True) as w:
            await _build(w)
            await w.start("b2")
            w.builds.finalize_artifacts("b2", [(str(index).encode(), A) for index in range(10_001)])
            assert await _next(w, "b3") is None

    asyncio.run(run())


def test_the_list_reads_what_it_wrote_and_refuses_the_rest(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, initial_contents=True) as w:
            await w.start()
            finalized = Finalized()
            for index in range(100):
                finalized.add(w.root(), f"some/path/{index}".encode(), A)
            data = finalized.encode()
            again = Finalized.decode(data)
            assert len(again) == 100
            assert again.encode() == data
            with pytest.raises(Corrupt, match="list of finalized paths"):
                Finalized.decode(data[:-10])
            with pytest.raises(Corrupt, match="list of finalized paths"):
                Finalized.decode(zlib.compress(zlib.decompress(data) + b"\1"))

    asyncio.run(run())
