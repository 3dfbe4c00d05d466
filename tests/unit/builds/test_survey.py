"""What a survey may remember of a tree that changes under it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

from outputd.builds.survey import Collapsed, Survey
from outputd.digest import Digest
from tests.unit.builds.world import SHA256, World, world

A, B, C = (Digest.of(SHA256, data) for data in (b"a", b"bb", b"ccc"))


async def surveyed(w: World, changed: str) -> set[Digest]:
    """Survey `f` and `d/f`, changing a path once the root was looked into; the blobs that were asked for."""
    survey = Survey(w.root(), w.loader, w.leases, now=w.now(), trusted=0)
    asked: set[Digest] = set()
    async with aclosing(survey.units(0)) as units:
        async for unit in units:
            survey.answered([unit], (), ())
            if changed and not asked:
                await w.stage((changed, C), build_id="b2")
            asked |= unit.digests()
    await survey.conclude()
    return asked


def test_a_directory_that_changes_meanwhile_has_no_lease_by_what_it_was(tmp_path: Path) -> None:
    async def run() -> None:
        for number, changed in enumerate(("", "d/f")):
            base = tmp_path / str(number)
            base.mkdir()
            async with world(base) as w:
                await w.start()
                await w.stage(("f", A), ("d/f", B))
                await w.finalize("b1")
                key = Collapsed.of(w.root()).key
                assert key is not None
                await w.start("b2")
                w.leases.drop("main", [key])
                w.presence.doubt(w.at("d"))  # type: ignore[arg-type]
                w.presence.doubt(w.root())
                asked = await surveyed(w, changed)
                assert asked == ({A, C} if changed else {A, B})
                assert (key in w.leases.get("main", [key])) is not bool(changed)

    asyncio.run(run())


def test_what_is_only_cached_here_has_no_lease(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, always_asked=0) as w:
            await w.start()
            held = w.cas.add(b"held")
            await w.stage(("d/held", held), ("e/a", A))
            await w.cas.fetch(held)
            await w.finalize("b1")
            w.cas.lost = {held}
            await w.start("b2")
            await w.finalize("b2")
            w.cas.asked.clear()
            await w.start("b3")
            assert w.cas.asked[0] == {held}

    asyncio.run(run())
