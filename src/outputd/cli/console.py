"""What a verb may talk to: environment, standard output, standard error; and how its text looks there. Never reads settings.

Colour only on a terminal and without NO_COLOR (no-color.org), so that output in a pipe or a file is plain.
"""

from __future__ import annotations

import enum
import io
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from outputd.errors import Unavailable


class ExitCode(enum.IntEnum):
    """How a command ended. Documented in docs/reference/cli.md; scripts rely on it."""

    OK = 0
    FAILURE = 1
    """What was asked for did not work; for `doctor`: a check failed."""
    USAGE = 2
    """The command line itself is wrong."""
    SETTINGS = 3
    """A setting is wrong: in the file, the environment or a flag."""
    NO_DAEMON = 4
    """No daemon answers at the configured address."""
    INTERRUPTED = 130
    """Ended by Ctrl-C, as shells count it: 128 + SIGINT."""
    BROKEN_PIPE = 141
    """The reader of our output went away, as shells count it: 128 + SIGPIPE."""


class NoDaemon(Unavailable):
    """No daemon answers at any address of the settings."""


class Colour(enum.StrEnum):
    """SGR codes of ECMA-48."""

    RED = "31"
    GREEN = "32"
    YELLOW = "33"
    BOLD = "1"


@dataclass(frozen=True, slots=True)
class Console:
    """One run's environment and streams."""

    environ: Mapping[str, str]
    out: TextIO
    err: TextIO

    @classmethod
    def of_process(cls) -> Console:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(
                errors="surrogateescape"
            )  # a path comes out with the bytes it came in with
        return cls(os.environ, sys.stdout, sys.stderr)

    def print(self, text: str = "") -> None:
        self.out.write(text + "\n")

    def write_bytes(self, text: bytes) -> None:
        """Text as it is, whatever encoding the terminal has."""
        if isinstance(self.out, io.TextIOWrapper):
            self.out.flush()
            self.out.buffer.write(text)
        else:
            self.out.write(text.decode())

    def complain(self, text: str) -> None:
        """Say on standard error what is wrong; every line names the program, so that it is found in a build's log."""
        for line in text.splitlines():
            self.err.write(f"outputd: {line}\n")

    def paint(self, colour: Colour, text: str) -> str:
        """For standard output."""
        if self.environ.get("NO_COLOR") or self.environ.get("TERM") == "dumb" or not self.out.isatty():
            return text
        return f"\x1b[{colour}m{text}\x1b[0m"


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def show_bytes(size: int) -> str:
    """For people: three significant digits, binary units."""
    if size < 1024:
        return f"{size} B"
    amount = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        amount /= 1024
        if amount < 1000 or unit == "PiB":
            break
    return f"{amount:.0f} {unit}" if amount >= 100 else f"{amount:.3g} {unit}"


def show_count(number: int) -> str:
    """For people: thousands set apart."""
    return f"{number:,}".replace(",", " ")


def show_seconds(seconds: float) -> str:
    """For people: the two largest units."""
    whole = int(seconds)
    for unit, size, next_unit, next_size in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            rest = whole % size // next_size
            return f"{whole // size} {unit} {rest} {next_unit}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"
