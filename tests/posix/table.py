"""The POSIX table: every case, run in one directory, its outcome told as plain data. What is right a plain directory says.

Run as a program in any directory, of any file system: `python -m tests.posix.table DIRECTORY [BELOW CONTROL]` prints a JSON
object, case by case. With CONTROL, the socket of a mount (mounted.py), blobs are staged there, at paths below BELOW; without,
they are written.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType
from typing import NamedTuple

from tests.posix.at import At, plain, told
from tests.posix.cases import attributes, blobs, content, listing, locks, names, opening, renames, xattrs
from tests.posix.mounted import stage

_MODULES: list[ModuleType] = [names, renames, opening, attributes, content, listing, xattrs, locks]
_TIME_LIMIT = 60


class Row(NamedTuple):
    name: str
    case: Callable[[At], object]
    here: bool | None
    """Whether the bytes of its blobs lie here or elsewhere; None if it has none."""
    text: bytes


def rows() -> Iterator[Row]:
    """The table."""
    for module in _MODULES:
        for name, case in module.CASES.all.items():
            yield Row(name, case, None, b"")
    for name, case in blobs.CASES.all.items():
        for size, text in blobs.TEXTS.items():
            for here in (True, False):
                yield Row(f"{name} ({size}, {'here' if here else 'elsewhere'})", case, here, text)


def run(directory: str, below: str | None, control: str | None) -> dict[str, object]:
    """Of each row the outcome, and whether another user had a part in it."""
    signal.signal(signal.SIGALRM, _overdue)
    os.umask(0o022)
    outcomes: dict[str, object] = {}
    for number, row in enumerate(rows()):
        path = f"{directory}/{number}"
        os.mkdir(path)
        os.chdir(path)
        put = _write if below is None or control is None else partial(_stage, below, control, row.here)
        at = At(path, put, row.text)
        signal.alarm(_TIME_LIMIT)
        try:
            outcome = told(lambda at=at, case=row.case: plain(case(at)))
        except Exception:
            outcome = {"broken": traceback.format_exc()}
        finally:
            signal.alarm(0)
        outcomes[row.name] = outcome, at.by_others
    os.chdir("/")
    return outcomes


def _overdue(_number: int, _frame: FrameType | None) -> None:
    raise RuntimeError("the case takes too long")


def _write(path: str, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
    os.chmod(path, 0o755)


def _stage(below: str, control: str, here: bool | None, path: str, data: bytes) -> None:
    assert here is not None
    stage(Path(control), os.path.relpath(path, below), data, here=here)


if __name__ == "__main__":
    json.dump(run(sys.argv[1], *(sys.argv[2:4] or (None, None))), sys.stdout)
