"""Which line of a TOML text a key stands on, for tomllib does not tell. Never judges the text: it takes one that tomllib accepted.

Source of the grammar: TOML 1.0.0.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Final

_TOKEN: Final = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}'''  # a multi-line basic string may end in two quotes of its own
    r"""|'''.*?'{3,5}"""
    r'''|"(?:\\.|[^"\\\n])*"'''
    r"""|'[^'\n]*'"""
    r"""|\#[^\n]*"""
    r"""|[\[{\]}\n]"""
    r"""|[^"'\#\[{\]}\n]+""",
    re.DOTALL,
)
_NAME: Final = r"""(?:"(?:\\.|[^"\\\n])*"|'[^'\n]*'|[A-Za-z0-9_-]+)"""
_DOTTED: Final = rf"{_NAME}(?:[ \t]*\.[ \t]*{_NAME})*"
_HEADER: Final = re.compile(rf"\[\[?[ \t]*({_DOTTED})[ \t]*\]")
_PAIR: Final = re.compile(rf"({_DOTTED})[ \t]*=")

Path = tuple[str, ...]


def key_lines(text: str) -> dict[Path, int]:
    """The line, from 1, of each table header and each key; keys inside an inline table are not listed."""
    lines: dict[Path, int] = {}
    table: Path = ()
    for line, statement in _statements(text):
        if header := _HEADER.match(statement):
            table = _path(header[1])
            lines.setdefault(table, line)
        elif pair := _PAIR.match(statement):
            lines.setdefault(table + _path(pair[1]), line)
    return lines


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """The line of a key, or of what it lies in."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None


def _statements(text: str) -> Iterator[tuple[int, str]]:
    # A statement ends at a line end outside every string and bracket.
    line = start = 1
    depth = 0
    statement = ""
    for token in _TOKEN.findall(text.replace("\r\n", "\n")):
        if token == "\n" and depth == 0:
            yield start, statement.strip()
            line += 1
            start, statement = line, ""
            continue
        line += token.count("\n")
        if token in ("[", "{"):
            depth += 1
        elif token in ("]", "}"):
            depth -= 1
        if not token.startswith("#"):
            statement += token
    yield start, statement.strip()


def _path(dotted: str) -> Path:
    # tomllib itself undoes the quoting.
    path: list[str] = []
    found: object = tomllib.loads(f"{dotted} = 0")
    while isinstance(found, dict):
        name, found = next(iter(found.items()))
        path.append(name)
    return tuple(path)
