"""The mount does what a plain directory of the same machine does, but for what differences.py lists."""

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
from tests.posix.table import cases

_REPOSITORY = Path(__file__).parents[2]
_NAMES = [name for name, _, _ in cases()]


class Outcomes:
    """Of every case, in a plain directory and in the mount."""

    def __init__(self, plain: dict[str, Any], mounted: dict[str, Any]) -> None:
        self.plain = plain
        self.mounted = mounted

    def differ(self, name: str) -> bool:
        return bool(self.plain[name] != self.mounted[name])


@pytest.fixture(scope="module")
def outcomes() -> Iterator[Outcomes]:
    # Not pytest's own directory, which other users may not enter.
    place = Path(tempfile.mkdtemp(prefix="outputd-posix-"))
    try:
        place.chmod(0o755)
        (place / "plain").mkdir()
        plain = _run([str(place / "plain")])
        with Mounted(place) as mounted:
            yield Outcomes(plain, _run([str(mounted.root), str(mounted.root), str(mounted.control)]))
    finally:
        shutil.rmtree(place)


def _run(arguments: list[str]) -> dict[str, Any]:
    """The table in a process of its own: a mount that hangs must not hang the tests with it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.posix.table", *arguments],
        cwd=_REPOSITORY,
        env=os.environ | {"PYTHONPATH": f"{_REPOSITORY / 'src'}:{_REPOSITORY}"},
        stdout=subprocess.PIPE,
        timeout=100,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _known(name: str) -> str | None:
    return next((pattern for pattern in DIFFERENCES if fnmatch.fnmatchcase(name, pattern)), None)


@pytest.mark.parametrize("name", _NAMES)
def test_case(name: str, outcomes: Outcomes) -> None:
    for outcome in (outcomes.plain[name], outcomes.mounted[name]):
        assert not (isinstance(outcome, dict) and "broken" in outcome), outcome["broken"]
    if _known(name) is None:
        assert outcomes.mounted[name] == outcomes.plain[name]


@pytest.mark.parametrize("pattern", DIFFERENCES)
def test_known_difference_is_there(pattern: str, outcomes: Outcomes) -> None:
    assert any(_known(name) == pattern and outcomes.differ(name) for name in _NAMES), "it is gone: strike it"


def test_harness_finds_a_difference(tmp_path: Path) -> None:
    """Shown a file system that is not ours, it sees that it is another one."""
    plain, odd = tmp_path / "plain", Path("/proc/self/task")
    plain.mkdir()
    assert _run([str(plain)])["names: taken already: file, file"] == ["EEXIST", ["other: file", "x: file"]]
    with pytest.raises(subprocess.CalledProcessError):
        _run([str(odd)])
