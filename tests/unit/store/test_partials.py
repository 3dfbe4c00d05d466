"""Blobs that are here in part: what a start finds of them, what room they take, and when they go."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.disk.disk import RealDisk
from outputd.store import partials
from outputd.store.disk_store import DiskStore
from outputd.store.eviction import Goal, Judge, Kind, plan, relieve, remove, survey
from outputd.store.limits import Excess
from outputd.store.marks import Marks
from outputd.store.partial import GRANULE

SHA256 = DigestFunction.SHA256
SIZE = 100 << 20
HERE = 1 << 20
"""Bytes that are here of each."""
DAY = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    store = DiskStore(str(tmp_path), RealDisk())
    yield store
    store.close()


def digest_of(name: str) -> Digest:
    return Digest.make(SHA256, Digest.of(SHA256, name.encode()).hash, SIZE)


def begun(store: DiskStore, name: str, days: float = 0.0) -> Digest:
    """One that was open so many days ago for the last time."""
    digest = digest_of(name)
    partial = store.partials.open(digest)
    partial.write(HERE, os.urandom(HERE))
    partial.fill(HERE, 2 * HERE)
    partial.save()
    partial.close()
    store.partials.closed(partial)
    used = time.time() - days * DAY
    for path in (partial.path, partial.map_path):
        os.utime(path, (used, used))
    return digest


def again(store: DiskStore, tmp_path: Path) -> DiskStore:
    """The next run."""
    store.close()
    return DiskStore(str(tmp_path), RealDisk())


def files(store: DiskStore) -> int:
    return len(os.listdir(store.layout.partial))


def judge(**changes: object) -> Judge:
    fields: dict[str, object] = {"began": time.time() + 10, "grace": 0.0, "trees": Marks()}
    return Judge(**(fields | changes))  # type: ignore[arg-type]


def test_the_next_run_goes_on_with_them(store: DiskStore, tmp_path: Path) -> None:
    digest = begun(store, "a", 3)
    next_run = again(store, tmp_path)
    [part] = next_run.partials.list()
    assert (part.digest, part.open) == (digest, False)
    assert HERE <= part.room < 2 * HERE
    assert abs(part.used - (time.time() - 3 * DAY)) < 60
    assert (next_run.usage().partial_blobs, next_run.usage().partial_bytes) == (1, part.room)
    partial = next_run.partials.open(digest)
    assert partial.has(HERE, HERE) and not partial.has(0, 1)
    assert next_run.partials.list()[0].open
    partial.close()
    next_run.partials.closed(partial)
    assert abs(next_run.partials.list()[0].used - time.time()) < 60


def test_a_start_removes_what_nobody_can_use(
    store: DiskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = begun(store, "whole")
    for name in ("no map", "no bytes", "odd map"):
        begun(store, name)
    paths = {name: store.partials._path(digest_of(name)) for name in ("no map", "no bytes", "odd map")}
    os.unlink(paths["no map"] + ".map")
    os.unlink(paths["no bytes"])
    Path(paths["odd map"] + ".map").write_bytes(b"something else")
    Path(store.layout.partial, "stranger").write_bytes(b"")
    Path(store.partials._path(whole) + ".map.new").write_bytes(b"half")
    store = again(store, tmp_path)
    assert [part.digest for part in store.partials.list()] == [whole]
    assert files(store) == 2
    monkeypatch.setattr(partials, "boot_id", lambda: b"another boot's i")
    store = again(store, tmp_path)
    assert (store.partials.list(), files(store)) == ([], 0)


def test_the_least_recently_used_goes_first_among_blobs_and_parts(store: DiskStore, tmp_path: Path) -> None:
    names = [begun(store, str(days), days) for days in (1, 3, 5)]
    store = again(store, tmp_path)  # knows the times from the files
    for days in (2, 4):
        data = b"%d" % days * (1 << 20)
        blob = Digest.of(SHA256, data)
        store.put(blob, data)
        used = time.time() - days * DAY
        os.utime(store.layout.path(blob), (used, used))
    opened = store.partials.open(names[2])
    by = judge()
    surveyed = survey(store, by)
    assert (surveyed.amounts[Kind.CACHED].blobs, surveyed.amounts[Kind.HELD].blobs) == (4, 1)
    bounds, going = plan(surveyed, Goal(Excess(room=2 * HERE)))
    assert going[Kind.CACHED].blobs == 2  # of four and three days; the one of five is open
    gone = remove(store, by, bounds)
    assert gone[Kind.CACHED] == going[Kind.CACHED]
    assert {part.digest for part in store.partials.list()} == {names[0], names[2]}
    assert files(store) == 4
    opened.close()
    store.partials.closed(opened)


def test_what_has_become_a_blob_otherwise_is_garbage(store: DiskStore) -> None:
    data = bytes(SIZE // 20)
    digest = Digest.of(SHA256, data)
    partial = store.partials.open(digest)
    partial.save()
    partial.close()
    store.partials.closed(partial)
    store.put(digest, data)
    surveyed = survey(store, judge())
    assert (surveyed.amounts[Kind.GARBAGE].blobs, surveyed.amounts[Kind.CACHED].blobs) == (1, 1)
    bounds, _ = plan(surveyed, Goal(Excess(), garbage=True))
    assert remove(store, judge(), bounds)[Kind.GARBAGE].blobs == 1
    assert (files(store), store.is_here(digest)) == (0, True)


def test_a_full_disk_takes_those_that_nobody_has_open(store: DiskStore) -> None:
    idle, pinned, busy = begun(store, "idle"), begun(store, "pinned"), digest_of("busy")
    opened = store.partials.open(busy)
    opened.write(0, bytes(HERE))
    assert relieve(store, {pinned}, 1, 5.0) >= HERE
    assert {part.digest for part in store.partials.list()} == {pinned, busy}
    assert not os.path.lexists(store.partials._path(idle))
    opened.close()
    store.partials.closed(opened)


def test_one_that_was_used_since_it_was_looked_at_stays(store: DiskStore) -> None:
    digest = begun(store, "a")
    [part] = store.partials.list()
    partial = store.partials.open(digest)
    assert store.partials.remove(digest, part.used) is None
    partial.close()
    store.partials.closed(partial)
    assert store.partials.remove(digest, part.used) is None
    assert store.partials.remove(digest) is not None
    assert (store.partials.remove(digest), files(store)) == (None, 0)


def test_a_writer_asks_for_room_once(store: DiskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = store.partials.open(digest_of("a"))
    asked: list[int] = []
    full = [True]

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if full[0]:
            raise OSError(errno.ENOSPC, "full")
        return len(data)

    def relief(size: int) -> bool:
        asked.append(size)
        full[0] = len(asked) > 1
        return True

    store.relief.offer(relief)
    monkeypatch.setattr(os, "pwrite", pwrite)
    partial.write(0, bytes(GRANULE))
    full[0] = True
    with pytest.raises(OSError, match="full"):
        partial.write(0, bytes(GRANULE))
    assert asked == [GRANULE, GRANULE]
    partial.close()
    store.partials.closed(partial)
