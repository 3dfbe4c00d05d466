"""Leases: kept over a restart, dropped after a power cut, never in the way when they cannot be read."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from outputd.builds.leases import Lease, Leases, files_key, subtree_key
from outputd.digest import Digest, DigestFunction
from outputd.disk.disk import RealDisk

DISK = RealDisk()
A, B, C = b"a", b"b", b"c"


def opened(path: Path, remote: str = "grpc://one", boot: str = "boot 1") -> Leases:
    return Leases(str(path), remote, DISK, boot=lambda: boot)


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


def test_each_remote_has_its_own(tmp_path: Path) -> None:
    async def run() -> None:
        one, two = opened(tmp_path), opened(tmp_path, "grpc://two")
        one.put("", {A: Lease(1, 1)})
        await one.flush()
        assert two.get("", [A]) == {}
        await one.close()
        await two.close()

    asyncio.run(run())


@pytest.mark.parametrize("damage", ["garbage", "format", "foreign"])
def test_what_cannot_be_read_is_begun_anew(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import sqlite3

    async def run() -> None:
        leases = opened(tmp_path)
        leases.put("", {A: Lease(1, 1)})
        await leases.close()
        (path,) = tmp_path.glob("leases-*.db")
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
