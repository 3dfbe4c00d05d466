"""When a store is over its marks, and by how much."""

from __future__ import annotations

import pytest

from outputd.store.base import Usage
from outputd.store.limits import Amount, Excess, Limits, excess

GIB = 1 << 30
TOTAL = 1000 * GIB


def usage(
    available: int = 500 * GIB,
    blobs: int = 10,
    size: int = GIB,
    free_files: int = 900,
    partial: tuple[int, int] = (0, 0),
) -> Usage:
    return Usage(TOTAL, available, available, 1000, free_files, blobs, size, 0, 0, *partial)


@pytest.mark.parametrize(
    ("limits", "found", "expected"),
    [
        (Limits(), usage(), (0, 0, 0)),
        # A tenth of the file system would be 100 GiB; ten are enough.
        (Limits(), usage(available=10 * GIB), (0, 0, 0)),
        (Limits(), usage(available=10 * GIB - 1), (int(2.5 * GIB) + 1, 0, 0)),
        (Limits(keep_free=Amount(percent=50)), usage(available=499 * GIB), (126 * GIB, 0, 0)),
        (Limits(keep_free=Amount(bytes=4)), usage(available=3), (2, 0, 0)),
        (Limits(keep_free=Amount()), usage(available=0), (0, 0, 0)),
        (Limits(high_mark=Amount(bytes=GIB)), usage(), (0, 0, 0)),
        (Limits(high_mark=Amount(bytes=1000)), usage(size=1001), (0, 101, 0)),
        (Limits(high_mark=Amount(bytes=1000), low_mark=Amount(bytes=500)), usage(size=1001), (0, 501, 0)),
        (Limits(high_mark=Amount(bytes=1000), low_mark=Amount(percent=100)), usage(size=1001), (0, 1, 0)),
        # What is here of partial blobs counts.
        (Limits(high_mark=Amount(bytes=1000)), usage(size=600, partial=(1, 400)), (0, 0, 0)),
        (Limits(high_mark=Amount(bytes=1000)), usage(size=600, partial=(1, 401)), (0, 101, 0)),
        (Limits(max_blobs=10), usage(partial=(1, 0)), (0, 0, 2)),
        # Not counted yet.
        (
            Limits(high_mark=Amount(bytes=1000), max_blobs=1),
            usage(blobs=-1, size=-1, partial=(9, 9000)),
            (0, 0, 0),
        ),
        (Limits(high_mark=Amount(bytes=1000), max_blobs=1), usage(blobs=-1, size=-1), (0, 0, 0)),
        (Limits(max_blobs=10), usage(), (0, 0, 0)),
        (Limits(max_blobs=9), usage(), (0, 0, 2)),
        (Limits(), usage(free_files=50), (0, 0, 0)),
        (Limits(), usage(free_files=49), (0, 0, 13)),
    ],
)
def test_excess(limits: Limits, found: Usage, expected: tuple[int, int, int]) -> None:
    assert excess(limits, found) == expected
    assert bool(excess(limits, found)) is (expected != (0, 0, 0))


def test_a_file_system_that_counts_no_inodes_has_enough() -> None:
    assert excess(Limits(), Usage(TOTAL, TOTAL, TOTAL, 0, 0, 1, 1, 0, 0, 0, 0)) == Excess()
