"""Reading ahead among files of one directory: when it begins, how much it brings, and what it leaves alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

from outputd.tree.node import File
from tests.unit.drive.world import World, world
from tests.unit.store.worlds import until


async def read(w: World, file: File) -> bytes:
    opened = w.content.open(file, writing=False)
    try:
        return bytes(await w.driver.run(lambda: w.content.read(opened, 0, 1 << 20)))
    finally:
        w.content.release(opened, writing=False)


async def settled(w: World) -> None:
    """Until nothing is read ahead."""
    await asyncio.sleep(0)
    await until(lambda: not any(walk.ahead for walk in w.content.read_ahead._walks.values()))


def test_who_reads_one_file_after_the_other_finds_the_next_ones_here(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await asyncio.sleep(0)  # the background tasks begin
            files = [w.staged(b"%04d" % index, b"bytes %d" % index) for index in range(400)]
            for index, file in enumerate(files):
                assert await read(w, file) == b"bytes %d" % index
                await settled(w)
            assert len(w.remote.fetched) < 12
            assert w.remote.batches[:4] == [16, 32, 64, 128]

    asyncio.run(run())


def test_two_files_are_no_walk(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await asyncio.sleep(0)  # the background tasks begin
            files = [w.staged(b"%04d" % index, b"bytes %d" % index) for index in range(100)]
            for file in files[:2]:
                await read(w, file)
            await settled(w)
            assert w.remote.batches == []

    asyncio.run(run())


def test_large_files_are_neither_a_sign_nor_brought(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await asyncio.sleep(0)  # the background tasks begin
            large = [w.staged(b"large %d" % index, bytes([index]) * (300 << 10)) for index in range(5)]
            for file in large:
                await read(w, file)
            assert w.remote.batches == []
            small = [w.staged(b"small %d" % index, b"bytes %d" % index) for index in range(4)]
            for file in small[:3]:
                await read(w, file)
            await settled(w)
            assert w.remote.batches == [1]  # the others are here

    asyncio.run(run())
