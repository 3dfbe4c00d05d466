"""Between builds: leases are renewed near their end, losses are told, nothing is taken away."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from outputd.builds.output_base import OutputBase
from outputd.builds.refresh import Refresh
from outputd.digest import Digest
from outputd.errors import Unavailable
from tests.unit.builds.world import SECOND, SHA256, World, world

LEASE = 1000
ITEMS = [(f"d{d}/f{f}", Digest.of(SHA256, b"%d/%d" % (d, f))) for d in range(4) for f in range(5)]


def refresh_of(w: World) -> Refresh:
    return Refresh(w.builds.live, w.presence, w.leases, LEASE * SECOND, now=w.now)


def asked(w: World) -> int:
    count = sum(map(len, w.cas.asked))
    w.cas.asked.clear()
    return count


async def built(w: World) -> OutputBase:
    await w.start()
    await w.stage(*ITEMS)
    await w.finalize("b1")
    (base,) = w.builds.live()
    return base


def test_what_a_build_has_staged_is_asked_for_when_it_has_ended(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, lease=LEASE, always_asked=0) as w:
            base = await built(w)
            refresh = refresh_of(w)
            await refresh.look()
            assert asked(w) == 20
            assert base.obtainable.lease is not None
            assert base.obtainable.lease.blobs == 20
            await w.start("b2")
            assert asked(w) == 0

    asyncio.run(run())


def test_leases_are_renewed_near_their_end_and_not_before(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, lease=LEASE, always_asked=0) as w:
            base = await built(w)
            refresh = refresh_of(w)
            await refresh.look()
            asked(w)
            w.later = 700 * SECOND
            await refresh.look()
            assert asked(w) == 0
            assert 745 * SECOND < base.obtainable.next - (w.now() - w.later) < 755 * SECOND
            w.later = 800 * SECOND
            await refresh.look()
            assert asked(w) == 20
            await refresh.look()
            assert asked(w) == 0
        async with world(tmp_path, lease=LEASE, always_asked=0) as w:
            w.later = 1400 * SECOND
            refresh = refresh_of(w)
            await refresh.look()
            assert asked(w) == 0  # a restart is no reason to ask
            w.later = 1600 * SECOND
            await refresh.look()
            assert asked(w) == 20
            assert w.root().children is None

    asyncio.run(run())


def test_only_those_in_the_second_half_of_their_time_are_renewed(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, lease=LEASE, always_asked=10) as w:
            await built(w)
            refresh = refresh_of(w)
            await refresh.look()
            w.later = 600 * SECOND
            await w.start("b2")
            await w.finalize("b2")
            asked(w)
            await refresh.look()
            assert asked(w) == 10  # a build has ended: what it has staged is asked for, and what is due soon
            w.later = 1200 * SECOND
            await refresh.look()
            assert asked(w) == 0
            w.later = 1400 * SECOND
            await refresh.look()
            assert asked(w) == 20

    asyncio.run(run())


def test_a_loss_is_told_and_left_for_the_next_build(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with world(tmp_path, lease=LEASE, always_asked=0) as w:
            base = await built(w)
            refresh = refresh_of(w)
            await refresh.look()
            w.cas.lost = {ITEMS[0][1], ITEMS[7][1]}
            w.later = 800 * SECOND
            await refresh.look()
            assert (base.obtainable.missing, base.obtainable.lease) == (2, None)
            assert len([path for path in await w.listing() if not path.endswith("/")]) == 20
            assert "has lost 2 blobs" in caplog.text
            await w.start("b2")
            assert len([path for path in await w.listing() if not path.endswith("/")]) == 18
            assert (base.obtainable.missing, base.obtainable.dropped_files) == (0, 2)

    asyncio.run(run())


def test_a_remote_that_does_not_answer_is_tried_again_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with world(tmp_path, lease=LEASE, always_asked=0) as w:
            await built(w)
            refresh = refresh_of(w)
            caplog.set_level(logging.INFO)
            w.cas.down = Unavailable("no route to the CAS")
            for _ in range(3):
                await refresh.look()
                w.later += 30 * SECOND
            assert len(w.cas.asked) == 2
            assert caplog.text.count("cannot be renewed") == 1
            w.cas.down = None
            w.later += 61 * SECOND
            asked(w)
            await refresh.look()
            assert asked(w) == 20

    asyncio.run(run())


def test_an_empty_output_path_is_not_asked_for(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, lease=LEASE) as w:
            await w.start()
            w.symlink("link", "target")
            await w.finalize("b1")
            refresh = refresh_of(w)
            for _ in range(3):
                await refresh.look()
            (base,) = w.builds.live()
            assert w.cas.asked == []
            assert base.obtainable.next > w.now()

    asyncio.run(run())


def test_leases_of_trees_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, lease=LEASE, always_asked=0) as w:
            base = await built(w)
            refresh = refresh_of(w)
            await refresh.look()
            held = w.presence.known(base.volume.root)
            assert held is not None
            key = base.volume.root
            await w.builds.clean(base.id)
            w.later = 5 * LEASE * SECOND
            await refresh.look()
            assert w.presence.known(key) is None

    asyncio.run(run())
