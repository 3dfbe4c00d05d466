"""How far long work is: one line on standard error that is written over, on a terminal only; elsewhere never a byte."""

from __future__ import annotations

import shutil
import time
from types import TracebackType
from typing import Final, Self

from outputd.cli.console import Console

_SECONDS: Final = 0.2
"""Between two looks of it: people read no faster."""
_WIDTH: Final = 30


class Progress:
    """For one piece of work. As a context manager the line is gone at the end, however that comes."""

    def __init__(self, console: Console) -> None:
        # A dumb terminal cannot write over a line.
        self._err: Final = (
            console.err if console.err.isatty() and console.environ.get("TERM") != "dumb" else None
        )
        self._shown = 0.0
        self._step = ""
        self._visible = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.clear()

    def show(self, words: str, done: float | None = None, *, step: str = "") -> None:
        """So far it is; with a bar where it is known which part of the work is `done` (0 to 1). A new `step` is shown at once."""
        now = time.monotonic()
        if self._err is None or (step == self._step and now - self._shown < _SECONDS):
            return
        self._shown, self._step = now, step
        if done is not None:
            full = int(min(max(done, 0.0), 1.0) * _WIDTH)
            words = f"[{'#' * full}{'.' * (_WIDTH - full)}] {words}"
        # What goes over the edge could not be written over.
        self._err.write(f"\r\x1b[K{words[: shutil.get_terminal_size().columns - 1]}")
        self._err.flush()
        self._visible = True

    def clear(self) -> None:
        """Nothing is to be seen of it, so that something else can be said."""
        if self._err is not None and self._visible:
            self._err.write("\r\x1b[K")
            self._err.flush()
            self._visible = False
