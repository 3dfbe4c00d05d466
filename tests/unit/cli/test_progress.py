"""outputd.cli.progress: a line that is written over, on terminals only, and gone at the end."""

from __future__ import annotations

import io
import os
import shutil
import time

import pytest

from outputd.cli.console import Console
from outputd.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((41, 20)))
    return now


def shown(err: io.StringIO) -> list[str]:
    return err.getvalue().split("\r\x1b[K")[1:]


def test_a_bar_at_most_five_times_a_second_and_gone_at_the_end(clock: list[float]) -> None:
    err = Terminal()
    with Progress(Console({}, io.StringIO(), err)) as progress:
        progress.show("none", 0.0)
        progress.show("too soon", 0.1)
        clock[0] += 0.3
        progress.show("half", 0.5)
        clock[0] += 0.3
        progress.show("more than there is", 1.5)
    assert shown(err) == [f"[{'.' * 30}] none", f"[{'#' * 15}{'.' * 15}] half", f"[{'#' * 30}] more th", ""]


def test_a_new_step_is_shown_at_once(clock: list[float]) -> None:
    err = Terminal()
    progress = Progress(Console({}, io.StringIO(), err))
    progress.show("marking", step="marking")
    progress.show("removing", step="removing")
    progress.show("removing more", step="removing")
    assert shown(err) == ["marking", "removing"]
    progress.clear()
    progress.clear()
    assert shown(err) == ["marking", "removing", ""]


@pytest.mark.parametrize(
    ("err", "environ"), [(io.StringIO(), {}), (Terminal(), {"TERM": "dumb"})], ids=["pipe", "dumb"]
)
def test_elsewhere_there_is_none(err: io.StringIO, environ: dict[str, str], clock: list[float]) -> None:
    with Progress(Console(environ, io.StringIO(), err)) as progress:
        progress.show("something", 0.5)
    assert err.getvalue() == ""


def test_nothing_that_was_shown_nothing_is_wiped() -> None:
    err = Terminal()
    with Progress(Console({}, io.StringIO(), err)):
        pass
    assert err.getvalue() == ""
