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

from tests.posix.at import At, plain, told
from tests.posix.cases import attributes, blobs, content, listing, locks, names, opening, renames, xattrs
from tests.posix.mounted import stage

_MODULES: list[ModuleType] = [names, renames, opening, attributes, content, listing, xattrs, locks]
_TIME_LIMIT = 60


def cases() -> Iterator[tuple[str, Callable[[At], object], bool | None]]:
    """Name and function of each, and where the bytes of its blobs are to lie: here, elsewhere, or that it has none."""
    for module in _MODULES:
        for name, case in module.CASES.all.items():
            yield name, case, None
    for here in (True, False):
        for name, case in blobs.CASES.all.items():
            yield f"{name} ({'here' if here else 'elsewhere'})", case, here


def run(directory: str, below: str | None, control: str | None) -> dict[str, object]:
    signal.signal(signal.SIGALRM, _overdue)
    os.umask(0o022)
    outcomes: dict[str, object] = {}
    for number, (name, case, here) in enumerate(cases()):
        path = f"{directory}/{number}"
        os.mkdir(path)
        os.chdir(path)
        put = partial(_stage, below, control, here) if below is not None and control is not None else _write
        signal.alarm(_TIME_LIMIT)
        try:
            outcomes[name] = told(lambda case=case, path=path, put=put: plain(case(At(path, put))))
        except Exception:
            outcomes[name] = {"broken": traceback.format_exc()}
        finally:
            signal.alarm(0)
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
