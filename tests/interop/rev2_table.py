"""The served REv2 API as a table: what a client does and what must come of it. Cases are in rev2_blobs.py and rev2_others.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.interop.rev2_client import Client, digest_of

BLOB: Final = 200_000
"""Bytes of a blob that goes in several pieces."""
ZSTD: Final = 1
EMPTY: Final = digest_of(b"")


@dataclass(frozen=True)
class Case:
    """One line."""

    name: str
    does: Callable[[Client], object]
    expected: object


CASES: dict[str, Case] = {}


def case(expected: object) -> Callable[[Callable[[Client], object]], Callable[[Client], object]]:
    """A line of the table: what the function does, in its name, gives `expected`, or the name of the code it ends with."""

    def add(does: Callable[[Client], object]) -> Callable[[Client], object]:
        name = does.__name__.replace("_", " ")
        CASES[name] = Case(name, does, expected)
        return does

    return add


def fresh(size: int = 100) -> bytes:
    """Bytes that no server has seen."""
    return os.urandom(size)


def halves(data: bytes) -> tuple[bytes, bytes]:
    return data[: len(data) // 2], data[len(data) // 2 :]
