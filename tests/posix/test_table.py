"""A mount does what a plain directory of the same machine does, but for what differences.py lists."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
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

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

_REPOSITORY = Path(__file__).parents[2]
_NAMES = [row.name for row in rows()]
_MOUNTS = {
    "everything": {"others": True, "passthrough": True, "xattrs": True},
    "as by default": {"others": False, "passthrough": True, "xattrs": False},
    "as for a user": {"others": False, "passthrough": False, "xattrs": False},
}
_WITH_XATTRS = re.compile(
    r"xattr: |attributes: times that change: setxattr$|blob: given times owner and attributes "
)
"""Cases that differ where there are none."""

Outcomes = dict[str, tuple[Any, bool]]
"""Of each case what it told, and whether another user had a part in it."""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    # Not pytest's own directory, which other users may not enter.
    place = Path(tempfile.mkdtemp(prefix="outputd-posix-"))
    try:
        place.chmod(0o755)
        with _ext4(place) as top:
            yield top
    finally:
        shutil.rmtree(place)


@contextlib.contextmanager
def _ext4(place: Path) -> Iterator[Path]:
    """A place on ext4, which is what differences are written down for: this one, or one in an image, if it is on another."""
    found = subprocess.run(["stat", "-f", "-c", "%T", place], check=True, capture_output=True, text=True)
    if found.stdout.strip() == "ext2/ext3":  # what stat(1) calls all three
        yield place
        return
    image, top = place / "image", place / "ext4"
    with image.open("wb") as file:
        file.truncate(16 << 30)
    subprocess.run(["mkfs.ext4", "-q", image], check=True, timeout=60)
    top.mkdir()
    mounting = ["mount", "-o", "loop", str(image), str(top)]
    if subprocess.run(mounting, capture_output=True, timeout=60, check=False).returncode:
        pytest.skip(f"{place} is on {found.stdout.strip()}, and this machine has no loop devices for an ext4")
    try:
        yield top
    finally:
        subprocess.run(["umount", "-l", top], check=True, timeout=60)


@pytest.fixture(scope="module")
def plain(place: Path) -> Outcomes:
    directory = place / "plain"
    directory.mkdir()
    return _run([str(directory)])


@pytest.fixture(scope="module")
def mounted(place: Path) -> dict[str, Outcomes]:
    """Of each of _MOUNTS."""
    outcomes = {}
    for name, features in _MOUNTS.items():
        directory = place / name
        directory.mkdir(0o755)
        with Mounted(directory, **features) as served:
            outcomes[name] = _run([str(served.root), str(served.root), str(served.control)])
    return outcomes


def _run(arguments: list[str]) -> Outcomes:
    """The table in a process of its own: a mount that hangs must not hang the tests with it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.posix.table", *arguments],
        cwd=_REPOSITORY,
        env=os.environ | {"PYTHONPATH": f"{_REPOSITORY / 'src'}:{_REPOSITORY}"},
        stdout=subprocess.PIPE,
        timeout=200,
        check=True,
    )
    outcomes: Outcomes = json.loads(done.stdout)
    return outcomes


def _known(name: str) -> str | None:
    return next((pattern for pattern in DIFFERENCES if fnmatch.fnmatchcase(name, pattern)), None)


def _different(plain: Outcomes, mounted: Outcomes) -> dict[str, dict[str, Any]]:
    return {
        name: {"plain": told, "mounted": mounted[name][0]}
        for name, (told, _) in plain.items()
        if told != mounted[name][0]
    }


def test_every_case_was_run(plain: Outcomes) -> None:
    assert list(plain) == _NAMES
    broken = {
        name: told["broken"]
        for name, (told, _) in plain.items()
        if isinstance(told, dict) and "broken" in told
    }
    assert not broken


@pytest.mark.parametrize("mount", _MOUNTS)
def test_what_differs_is_known(mount: str, plain: Outcomes, mounted: dict[str, Outcomes]) -> None:
    different = _different(plain, mounted[mount])
    unknown = {name for name in different if _known(name) is None}
    if not _MOUNTS[mount]["others"]:
        unknown = {name for name in unknown if not plain[name][1]}
    if not _MOUNTS[mount]["xattrs"]:
        unknown = {name for name in unknown if not _WITH_XATTRS.match(name)}
    assert not {name: different[name] for name in sorted(unknown)}


def test_what_is_known_differs(plain: Outcomes, mounted: dict[str, Outcomes]) -> None:
    met = {_known(name) for outcomes in mounted.values() for name in _different(plain, outcomes)}
    assert not DIFFERENCES.keys() - met, "no longer so: strike it here and in docs/reference/file-system.md"


@pytest.mark.parametrize("pattern", DIFFERENCES)
def test_what_differs_is_told(pattern: str) -> None:
    page = (_REPOSITORY / "docs" / "reference" / "file-system.md").read_text()
    assert DIFFERENCES[pattern] in page


def test_a_difference_is_found() -> None:
    right: Outcomes = {"a": (["EEXIST", {"size": 4}], False), "b": (None, False)}
    wrong: Outcomes = {"a": (["EEXIST", {"size": 5}], False), "b": (None, True)}
    assert _different(right, wrong) == {
        "a": {"plain": ["EEXIST", {"size": 4}], "mounted": ["EEXIST", {"size": 5}]}
    }
