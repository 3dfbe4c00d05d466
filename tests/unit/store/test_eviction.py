"""Which blobs go, in which order, and which never."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.disk.disk import RealDisk
from outputd.store.disk_store import DiskStore
from outputd.store.eviction import Goal, Judge, Kind, plan, relieve, remove, survey
from outputd.store.limits import Excess
from outputd.store.marks import Marks

SHA256 = DigestFunction.SHA256
SIZE = 8192
DAY = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    store = DiskStore(str(tmp_path), RealDisk())
    yield store
    store.close()


def put(store: DiskStore, name: str, days: float, *, local_only: bool = False) -> Digest:
    """A blob that was used so many days ago for the last time."""
    data = name.encode().ljust(SIZE, b".")
    digest = Digest.of(SHA256, data)
    with store.writer(digest, local_only=local_only) as writer:
        writer.write(data)
        writer.commit()
    used = time.time() - days * DAY
    os.utime(store.layout.path(digest), (used, used))
    return digest


def gone(store: DiskStore, *digests: Digest) -> set[Digest]:
    """Those that are not here; to ask `missing` would be a use of the others."""
    return {digest for digest in digests if not store.is_here(digest)}


def judge(store: DiskStore, **changes: object) -> Judge:
    fields: dict[str, object] = {"began": time.time() + 10, "grace": store.grace, "trees": Marks()}
    return Judge(**(fields | changes))  # type: ignore[arg-type]


def evict(store: DiskStore, judge: Judge, goal: Goal) -> dict[Kind, int]:
    bound, going = plan(survey(store, judge), goal)
    gone = remove(store, judge, bound)
    assert {kind: amounts.blobs for kind, amounts in gone.items()} == {
        kind: amounts.blobs for kind, amounts in going.items()
    }
    return {kind: amounts.blobs for kind, amounts in gone.items() if amounts.blobs}


def test_kinds(store: DiskStore) -> None:
    trees, results = Marks(), Marks()
    cached = put(store, "cached", 1)
    garbage = put(store, "garbage", 1, local_only=True)
    young = put(store, "young", 0.1, local_only=True)
    needed = put(store, "needed", 1, local_only=True)
    result = put(store, "result", 1, local_only=True)
    opened = put(store, "opened", 1)
    trees.add(needed)
    results.add(result)
    by = judge(store, trees=trees, results=results, held={opened})
    kinds = {found.digest: by.kind(found) for fan in store.walk() for found in fan}
    assert kinds == {
        cached: Kind.CACHED,
        garbage: Kind.GARBAGE,
        young: Kind.KEPT,
        needed: Kind.KEPT,
        result: Kind.RESULTS,
        opened: Kind.HELD,
    }
    unknown = judge(store, trees=None)
    assert {unknown.kind(found) for fan in store.walk() for found in fan} == {Kind.CACHED, Kind.KEPT}


def test_the_least_recently_used_goes_first(store: DiskStore) -> None:
    blobs = [put(store, str(number), number) for number in range(10)]
    assert evict(store, judge(store), Goal(Excess(room=3 * SIZE))) == {Kind.CACHED: 3}
    assert gone(store, *blobs) == set(blobs[7:])
    assert evict(store, judge(store), Goal(Excess(files=2))) == {Kind.CACHED: 2}
    assert gone(store, *blobs) == set(blobs[5:])


def test_of_those_used_at_the_same_time_no_more_go_than_have_to(store: DiskStore) -> None:
    before = [put(store, f"before {number}", 2) for number in range(2)]
    same = [put(store, str(number), 1) for number in range(5)]
    for path in map(store.layout.path, same):
        os.utime(path, (1.7e9, 1.7e9))
    for path in map(store.layout.path, before):
        os.utime(path, (1.6e9, 1.6e9))
    assert evict(store, judge(store), Goal(Excess(files=4))) == {Kind.CACHED: 4}
    assert len(gone(store, *same)) == 2
    assert gone(store, *before) == set(before)


def test_garbage_goes_before_the_cached_and_results_last(store: DiskStore) -> None:
    results = Marks()
    garbage = [put(store, f"garbage {number}", 1 + number, local_only=True) for number in range(2)]
    cached = [put(store, f"cached {number}", 5 + number) for number in range(2)]
    result = put(store, "result", 9, local_only=True)
    results.add(result)
    by = judge(store, results=results)
    assert evict(store, by, Goal(Excess(room=1))) == {Kind.GARBAGE: 1}
    assert gone(store, *garbage) == {garbage[1]}
    assert evict(store, by, Goal(Excess(sizes=2 * SIZE))) == {Kind.GARBAGE: 1, Kind.CACHED: 1}
    assert gone(store, *cached) == {cached[1]}
    assert evict(store, by, Goal(Excess(files=9))) == {Kind.CACHED: 1, Kind.RESULTS: 1}
    assert not store.has(result)


def test_all_garbage_and_what_is_old_go_whatever_room_there_is(store: DiskStore) -> None:
    put(store, "garbage", 1, local_only=True)
    old, new = put(store, "old", 40), put(store, "new", 20)
    assert evict(store, judge(store), Goal(Excess(), garbage=True)) == {Kind.GARBAGE: 1}
    before = time.time() - 30 * DAY
    assert evict(store, judge(store), Goal(Excess(), cached_before=before)) == {Kind.CACHED: 1}
    assert gone(store, old, new) == {old}
    assert evict(store, judge(store), Goal(Excess())) == {}


def test_what_is_needed_since_the_marking_stays(store: DiskStore) -> None:
    adopted, asked, garbage = (
        put(store, name, 1, local_only=True) for name in ("adopted", "asked", "garbage")
    )
    time.sleep(0.15)  # ctimes cannot be set
    by = judge(store, began=time.time())
    bound, _ = plan(survey(store, by), Goal(Excess(), garbage=True))
    time.sleep(0.15)
    # Another local file with the same bytes; somebody who is told that the blob is here.
    path = f"{store.private}/1"
    with open(path, "wb") as file:
        file.write(b"adopted".ljust(SIZE, b"."))
    store.adopt(path, adopted)
    assert store.has(asked)
    remove(store, by, bound)
    assert gone(store, adopted, asked, garbage) == {garbage}


def test_what_is_used_between_the_look_and_the_deed_stays(store: DiskStore) -> None:
    used, unused = (put(store, name, 1, local_only=True) for name in ("used", "unused"))
    time.sleep(0.15)
    began = time.time()
    found = {found.digest: found for fan in store.walk() for found in fan}
    time.sleep(0.05)
    assert store.has(used)
    assert not store.evict(found[used], began)
    assert store.evict(found[unused], began)
    # And what was cached is not, if it has become the only copy.
    cached = put(store, "cached", 1)
    [before] = [found for fan in store.walk() for found in fan if found.digest == cached]
    os.unlink(before.path)
    put(store, "cached", 1, local_only=True)
    assert not store.evict(before, math.inf)


def test_who_has_an_evicted_blob_open_keeps_its_bytes(store: DiskStore) -> None:
    digest = put(store, "open", 1)
    fd = store.open(digest)
    assert fd is not None
    assert evict(store, judge(store), Goal(Excess(room=1))) == {Kind.CACHED: 1}
    assert os.pread(fd, 4, 0) == b"open"
    os.close(fd)
    assert not store.has(digest)


def test_the_counts_stay_true(store: DiskStore) -> None:
    for number in range(4):
        put(store, str(number), 1 + number, local_only=number % 2 == 0)
    store.count()
    evict(store, judge(store), Goal(Excess(), garbage=True))
    usage = store.usage()
    assert (usage.blobs, usage.blob_bytes) == (2, 2 * SIZE)
    assert (usage.local_only_blobs, usage.local_only_bytes) == (0, 0)


def test_relief_takes_what_can_be_fetched_again_and_nothing_else(store: DiskStore) -> None:
    held = put(store, "held", 3)
    mine = put(store, "mine", 3, local_only=True)
    cached = [put(store, str(number), 2) for number in range(3)]
    assert relieve(store, {held}, 1, 10.0) == 3 * SIZE
    assert gone(store, held, mine, *cached) == set(cached)
    assert relieve(store, {held}, 1, 10.0) == 0


def test_a_full_disk_is_relieved_and_the_write_done_again(tmp_path: Path) -> None:
    class FullDisk(RealDisk):
        full = True

        def write(self, fd: int, data: bytes | bytearray | memoryview) -> None:
            if self.full and len(data) > 4:
                super().write(fd, memoryview(data)[:4])  # as much as there was room for
                raise OSError(28, "No space left on device")
            super().write(fd, data)

    disk = FullDisk()
    disk.full = False
    store = DiskStore(str(tmp_path), disk)
    asked: list[int] = []

    def free(wanted: int) -> bool:
        asked.append(wanted)
        disk.full = False
        return True

    store.relief.offer(free)
    disk.full = True
    data = b"a blob that has no room"
    digest = Digest.of(SHA256, data)
    store.put(digest, data)
    assert store.read(digest) == data
    assert asked == [len(data)]
    store.close()


def test_marks_hold_what_was_put_in() -> None:
    marks = Marks()
    some = [Digest.of(SHA256, b"%d" % number) for number in range(2000)]
    for digest in some[:1000]:
        marks.add(digest)
    assert all(digest in marks for digest in some[:1000])
    assert sum(digest in marks for digest in some[1000:]) <= 1
    md5 = Digest.of(DigestFunction.MD5, b"short")
    assert md5 not in marks
    marks.add(md5)
    assert md5 in marks


def test_nothing_is_planned_without_a_goal(store: DiskStore) -> None:
    put(store, "cached", 400)
    bound, going = plan(survey(store, judge(store)), Goal(Excess(), cached_before=-math.inf))
    assert bound == {}
    assert sum(amounts.blobs for amounts in going.values()) == 0
