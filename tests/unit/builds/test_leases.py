"""Leases: kept over a restart, dropped after a power cut, never in the way when they cannot be read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from outputd.builds.leases import Lease, Leases, files_key, subtree_key
from outputd.digest import Digest, DigestFunction
from outputd.disk.disk import RealDisk
from outputd.store.remote import RemoteStore
from outputd.store.routing import Route, Routes

DISK = RealDisk()
A, B, C = b"a", b"b", b"c"


def opened(path: Path, boot: str = "boot 1", place: Callable[[str], str] = str) -> Leases:
    return Leases(str(path), place, DISK, boot=lambda: boot)


def test_keys_tell_content_attributes_and_trees_apart() -> None:
    long, short = (Digest.of(f, b"x") for f in (DigestFunction.SHA512, DigestFunction.SHA256))
    record = bytes(32)
    keys = [
        files_key(short),
        subtree_key(short, b"", None),
        subtree_key(short, record, None),
        subtree_key(long, b"", None),
        subtree_key(None, b"", short),
        subtree_key(None, record, short),
    ]
    assert len(set(keys)) == len(keys)
    assert subtree_key(short, None, None) is None
    assert subtree_key(None, b"", None) is None
    assert subtree_key(short, b"", long) == subtree_key(short, b"", None)


def test_they_are_read_at_once_and_outlive_an_ordered_restart(tmp_path: Path) -> None:
    async def run() -> None:
        leases = opened(tmp_path)
        leases.put("main", {A: Lease(1, 2), B: Lease(3, 4)})
        leases.drop("main", [B])
        leases.put("other", {A: Lease(5, 6)})
        assert leases.get("main", [A, B, C]) == {A: Lease(1, 2)}
        await leases.flush()
        assert leases.get("main", [A, B, C]) == {A: Lease(1, 2)}
        leases.drop("main", [A])
        assert leases.get("main", [A]) == {}
        leases.put("main", {A: Lease(7, 8)})
        await leases.close()
        again = opened(tmp_path, boot="boot 2")
        assert again.get("main", [A]) == {A: Lease(7, 8)}
        assert again.get("other", [A]) == {A: Lease(5, 6)}
        await again.close()

    asyncio.run(run())


def test_more_keys_than_one_query_takes(tmp_path: Path) -> None:
    async def run() -> None:
        leases = opened(tmp_path)
        many = {b"%d" % number: Lease(number, 1) for number in range(1201)}
        leases.put("", many)
        await leases.flush()
        assert leases.get("", list(many)) == many
        await leases.forget_before(1000)
        assert sorted(leases.get("", list(many))) == sorted(b"%d" % number for number in range(1000, 1201))
        await leases.close()

    asyncio.run(run())


def test_a_crash_keeps_them_and_a_power_cut_does_not(tmp_path: Path) -> None:
    async def run() -> None:
        crashed = opened(tmp_path)
        crashed.put("", {A: Lease(1, 1)})
        await crashed.flush()
        survivor = opened(tmp_path)  # while the other one was never closed
        assert survivor.get("", [A]) == {A: Lease(1, 1)}
        after_the_cut = opened(tmp_path, boot="boot 2")
        assert after_the_cut.get("", [A]) == {}
        for leases in (crashed, survivor, after_the_cut):
            await leases.close()

    asyncio.run(run())


def test_they_are_of_a_place_whatever_it_is_called(tmp_path: Path) -> None:
    def routes(second: str) -> Callable[[str], str]:
        stores = [RemoteStore("unix:/nobody", "main") for _ in range(2)]
        return Routes(
            [
                Route("", stores[0], None, "grpc://one", "main"),
                Route("team", stores[1], "", second),
            ]
        ).place

    async def run() -> None:
        leases = opened(tmp_path, place=routes("grpc://two"))
        leases.put("main", {A: Lease(1, 1)})
        leases.put("team/main", {B: Lease(2, 2)})
        assert leases.get("", [A, B]) == {A: Lease(1, 1)}
        assert leases.get("team/main", [A, B]) == {B: Lease(2, 2)}
        assert leases.get("team", [A, B]) == leases.get("other", [A, B]) == {}
        leases.drop("team/main", [A])
        await leases.close()
        moved = opened(tmp_path, place=routes("grpc://elsewhere"))
        assert moved.get("main", [A]) == {A: Lease(1, 1)}
        assert moved.get("team/main", [A, B]) == {}
        await moved.close()

    asyncio.run(run())


def test_those_of_an_earlier_outputd_are_gone(tmp_path: Path) -> None:
    old = [tmp_path / f"leases-0123456789abcdef.db{suffix}" for suffix in ("", "-wal", "-shm")]
    for path in (*old, tmp_path / "leases-mine.db"):
        path.write_bytes(b"")
    asyncio.run(opened(tmp_path).close())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["leases-mine.db", "leases.db"]


@pytest.mark.parametrize("damage", ["garbage", "format", "foreign"])
def test_what_cannot_be_read_is_begun_anew(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import sqlite3

    async def run() -> None:
        leases = opened(tmp_path)
        leases.put("", {A: Lease(1, 1)})
        await leases.close()
        (path,) = tmp_path.glob("leases.db")
        if damage == "garbage":
            path.write_bytes(b"garbage" * 1000)
        else:
            connection = sqlite3.connect(path)
            connection.execute("PRAGMA user_version=99" if damage == "format" else "DROP TABLE running")
            connection.commit()
            connection.close()
        again = opened(tmp_path)
        assert again.get("", [A]) == {}
        again.put("", {A: Lease(2, 2)})
        await again.close()
        assert "begun anew" in caplog.text

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())


def test_a_full_disk_costs_nothing_but_the_leases(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        leases = opened(tmp_path)
        leases._writing_connection.execute("PRAGMA query_only=1")
        leases.put("", {A: Lease(1, 1)})
        await leases.flush()
        assert leases.get("", [A]) == {}
        leases._writing_connection.execute("PRAGMA query_only=0")
        await leases.close()

    asyncio.run(run())
    assert "cannot be kept" in caplog.text
