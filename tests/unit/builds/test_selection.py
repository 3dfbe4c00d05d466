"""outputd.builds.selection: which paths a pattern names."""

from __future__ import annotations

import pytest

from outputd.builds.selection import Patterns
from outputd.errors import Invalid

PATHS = ("a", "a/b.o", "a/c/b.o", "a/c/d/e.so", "f/b.o", "a[1]/x")


def named(*patterns: str) -> set[str]:
    compiled = Patterns([pattern.encode() for pattern in patterns])
    found = set()
    for path in PATHS:
        state = compiled.start
        for name in path.encode().split(b"/"):
            state = compiled.step(state, name)
        if compiled.match(state):
            found.add(path)
    return found


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("a", {"a", "a/b.o", "a/c/b.o", "a/c/d/e.so"}),
        ("/a/", {"a", "a/b.o", "a/c/b.o", "a/c/d/e.so"}),
        ("./a/c", {"a/c/b.o", "a/c/d/e.so"}),
        ("*/b.o", {"a/b.o", "f/b.o"}),
        ("**/b.o", {"a/b.o", "a/c/b.o", "f/b.o"}),
        ("a/**/b.o", {"a/b.o", "a/c/b.o"}),
        ("a/**", {"a", "a/b.o", "a/c/b.o", "a/c/d/e.so"}),
        ("**/**/*.so", {"a/c/d/e.so"}),
        ("[fg]/?.o", {"f/b.o"}),
        ("a[1]", {"a[1]/x"}),
        ("", set(PATHS)),
        ("**", set(PATHS)),
        ("nothing", set()),
    ],
)
def test_names(pattern: str, paths: set[str]) -> None:
    assert named(pattern) == paths


def test_several() -> None:
    assert named("f", "**/*.so") == {"f/b.o", "a/c/d/e.so"}


@pytest.mark.parametrize("patterns", [[], [b"a/../b"]])
def test_refused(patterns: list[bytes]) -> None:
    with pytest.raises(Invalid):
        Patterns(patterns)
