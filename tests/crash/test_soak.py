"""Build after build, and nothing that the daemon holds grows: memory, descriptors, threads, journals, private files.

Twenty seconds; `OUTPUTD_SOAK_SECONDS` says otherwise, and with `OUTPUTD_NIGHTLY=1` it is two hours.
"""

from __future__ import annotations

import os
from statistics import median

import pytest

from tests.crash.soak import JOURNALS, Held, soak
from tests.daemon_fixture import running

NIGHTLY = "OUTPUTD_NIGHTLY" in os.environ
SECONDS = float(os.environ.get("OUTPUTD_SOAK_SECONDS", 7200 if NIGHTLY else 20))
_SLACK = 8 << 20
"""Bytes of memory that may come and go."""


@pytest.mark.timeout(SECONDS * 2 + 300)
def test_nothing_grows() -> None:
    with running() as daemon:
        curve = list(soak(daemon, SECONDS, files=10_000 if SECONDS > 100 else 2_000))
    third = len(curve) // 3
    middle, last = curve[third : 2 * third], curve[2 * third :]
    shown = "\n".join(map(str, curve[:: max(1, len(curve) // 40)]))
    assert _typical(last, "resident") <= _typical(middle, "resident") * 1.05 + _SLACK, shown
    assert _typical(last, "descriptors") <= _typical(middle, "descriptors") + 2, shown
    assert _typical(last, "threads") <= _typical(middle, "threads") + 2, shown
    assert max(held.journals for held in curve) <= JOURNALS, shown
    assert max(held.private for held in curve) == 0, shown
    # What is saved grows with what is new in each build, as long as nothing is removed from state.db.
    first, end = curve[third], curve[-1]
    assert end.database - first.database <= (end.builds - first.builds) * (2 << 20), shown


def _typical(curve: list[Held], what: str) -> float:
    return median(float(getattr(held, what)) for held in curve)
