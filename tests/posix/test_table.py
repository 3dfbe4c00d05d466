"""A mount does what a plain directory of the same machine does, but for what differences.py lists."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.posix.differences import DIFFERENCES
from tests.posix.mounted import Mounted
from tests.posix.table import rows

_REPOSITORY = Path(__file__).parents[2]
_NAMES = [row.name for row in rows()]
_MOUNTS = {
    "others, passthrough": {"others": True, "passthrough": True},
    "alone, no passthrough": {"others": False, "passthrough": False},
}

Outcomes = dict[str, tuple[Any, bool]]
"""Of each case what it told, and whether another user had a part in it."""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    # Not pytest's own directory, which other users may not enter.
    place = Path(tempfile.mkdtemp(prefix="outputd-posix-"))
    try:
        place.chmod(0o755)
        yield place
    finally:
        shutil.rmtree(place)


@pytest.fixture(scope="module")
def plain(place: Path) -> Outcomes:
    directory = place / "plain"
    directory.mkdir()
    return _run([str(directory)])


@pytest.fixture(scope="module", params=_MOUNTS)
def mounted(request: pytest.FixtureRequest, place: Path) -> Outcomes:
    directory = place / request.param
    directory.mkdir(0o755)
    with Mounted(directory, **_MOUNTS[request.param]) as served:
        return _run([str(served.root), str(served.root), str(served.control)])


def _run(arguments: list[str]) -> Outcomes:
    """The table in a process of its own: a mount that hangs must not hang the tests with it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.posix.table", *arguments],
        cwd=_REPOSITORY,
        env=os.environ | {"PYTHONPATH": f"{_REPOSITORY / 'src'}:{_REPOSITORY}"},
        stdout=subprocess.PIPE,
        timeout=100,
        check=True,
    )
    outcomes: Outcomes = json.loads(done.stdout)
    return outcomes


def _known(name: str) -> str | None:
    return next((pattern for pattern in DIFFERENCES if fnmatch.fnmatchcase(name, pattern)), None)


def test_every_case_was_run(plain: Outcomes) -> None:
    assert list(plain) == _NAMES
    broken = {
        name: told["broken"]
        for name, (told, _) in plain.items()
        if isinstance(told, dict) and "broken" in told
    }
    assert not broken


def test_what_differs_is_known(plain: Outcomes, mounted: Outcomes, request: pytest.FixtureRequest) -> None:
    alone = "alone" in request.node.callspec.id
    different = {
        name: {"plain": plain[name][0], "mounted": told}
        for name, (told, by_others) in mounted.items()
        if told != plain[name][0] and _known(name) is None and not (alone and by_others)
    }
    assert not different


def test_what_is_known_differs(plain: Outcomes, mounted: Outcomes) -> None:
    differing = {_known(name) for name, (told, _) in mounted.items() if told != plain[name][0]}
    assert not DIFFERENCES.keys() - differing, (
        "no longer so: strike it from differences.py and from the documentation"
    )
