"""outputd.cli.console: numbers for people, columns, colour only where it is wanted."""

from __future__ import annotations

import io

import pytest

from outputd.cli.console import Colour, Console, columns, show_bytes, show_count, show_seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1023 * 1024, "0.999 MiB"),
        (300 << 30, "300 GiB"),
    ],
)
def test_bytes(size: int, text: str) -> None:
    assert show_bytes(size) == text


def test_count() -> None:
    assert [show_count(n) for n in (0, 999, 1000, 1234567)] == ["0", "999", "1 000", "1 234 567"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.9, "0 s"), (59, "59 s"), (60, "1 min"), (61, "1 min 1 s"), (7200, "2 h"), (93600, "1 d 2 h")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text


def test_columns() -> None:
    assert columns([("a", "bb", "c"), ("aaa", "b", "")]) == ["a    bb  c", "aaa  b"]


@pytest.mark.parametrize(
    ("environ", "stream", "painted"),
    [
        ({}, Terminal(), True),
        ({"NO_COLOR": ""}, Terminal(), True),  # no-color.org: empty does not count
        ({"NO_COLOR": "1"}, Terminal(), False),
        ({"TERM": "dumb"}, Terminal(), False),
        ({}, io.StringIO(), False),
    ],
)
def test_colour(environ: dict[str, str], stream: io.StringIO, painted: bool) -> None:
    console = Console(environ, stream, stream)
    assert console.paint(Colour.RED, "x") == ("\x1b[31mx\x1b[0m" if painted else "x")
