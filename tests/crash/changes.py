"""The changes an output path goes through, each with what may be found of it when the daemon is killed before it has answered.

A change is told to an Expected once it is acknowledged. One that was in flight is there wholly or not at all, but for two: of a
request that stages many artifacts the first ones may be there, and of a write the first bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from tests.crash.expected import DIRECTORY, Expected

TreeFiles: TypeAlias = "dict[str, tuple[bytes, bool]]"


class Change(Protocol):
    """What one call does to an output path."""

    def apply(self, expected: Expected) -> None:
        """It was acknowledged."""

    def outcomes(self, before: Expected, top: Path) -> Iterator[Expected]:
        """All that may be there when it was not, `top` being what is there."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A change that is made or not made."""

    what: str
    apply: Callable[[Expected], None]

    def __repr__(self) -> str:
        return self.what

    def outcomes(self, before: Expected, top: Path) -> Iterator[Expected]:
        yield before
        after = before.copy()
        self.apply(after)
        yield after


def nothing(what: str) -> Whole:
    """A call that changes nothing below the output path."""
    return Whole(what, lambda expected: None)


@dataclass(frozen=True, slots=True)
class Write:
    """write(2) to a file."""

    path: str
    offset: int
    data: bytes

    def __repr__(self) -> str:
        return f"write {len(self.data)} at {self.offset} of {self.path}: {self.data[:20]!r}"

    def apply(self, expected: Expected) -> None:
        self._apply(expected, len(self.data))

    def outcomes(self, before: Expected, top: Path) -> Iterator[Expected]:
        yield before
        found = (top / self.path).read_bytes()[self.offset :]
        pairs = zip(found, self.data, strict=False)
        matching = next((at for at, (one, other) in enumerate(pairs) if one != other), len(self.data))
        after = before.copy()
        self._apply(after, min(matching, len(found)))
        yield after

    def _apply(self, expected: Expected, count: int) -> None:
        thing = expected.things[self.path]
        thing.touch()
        old = thing.content
        if count:
            old = old.ljust(self.offset, b"\0")
            thing.content = old[: self.offset] + self.data[:count] + old[self.offset + count :]


@dataclass(frozen=True, slots=True)
class Stage:
    """StageArtifacts: files by digest and whole directories, placed in order."""

    artifacts: dict[str, bytes | TreeFiles]

    def __repr__(self) -> str:
        return f"stage {list(self.artifacts)}"

    def apply(self, expected: Expected) -> None:
        self._apply(expected, len(self.artifacts))

    def outcomes(self, before: Expected, top: Path) -> Iterator[Expected]:
        yield before
        # As many as can be seen to be there; where the mount shows one that was replaced, either count will be tried.
        paths = list(self.artifacts)
        for count in sorted({0, len(paths), *self._likely(before, top, paths)}):
            after = before.copy()
            self._apply(after, count)
            yield after
            if count < len(paths):
                yield from self._on_the_way(after, paths[count])

    def _likely(self, before: Expected, top: Path, paths: list[str]) -> Iterator[int]:
        for count, path in enumerate(paths):
            if path not in before.things and not os.path.lexists(top / path):
                yield count
                return

    @staticmethod
    def _on_the_way(after: Expected, path: str) -> Iterator[Expected]:
        """Of the first artifact that is not there, the directories that lead to it may be."""
        steps = path.split("/")[:-1]
        for length in range(1, len(steps) + 1):
            if "/".join(steps[:length]) not in after.things:
                after = after.copy()
                after.stage("/".join((*steps[:length], "x")), b"")
                after.remove("/".join((*steps[:length], "x")))
                yield after

    def _apply(self, expected: Expected, count: int) -> None:
        for path, artifact in list(self.artifacts.items())[:count]:
            if isinstance(artifact, bytes):
                expected.stage(path, artifact)
            else:
                expected.stage_tree(path, artifact)


def touched(what: str, path: str, change: Callable[[Expected], None]) -> Whole:
    """A change of what a path leads to."""

    def apply(expected: Expected) -> None:
        expected.things[path].touch()
        change(expected)

    return Whole(f"{what} {path}", apply)


def is_empty(expected: Expected, path: str) -> bool:
    return expected.things[path].kind == DIRECTORY and not expected.below(path)
