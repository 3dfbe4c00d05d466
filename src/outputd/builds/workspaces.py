"""Which output paths nobody will build in again: their workspace is gone, or they were not built in for long. Removes nothing.

Where a workspace is, Bazel's alias tells: `<output base>/execroot/<name>/bazel-out`, and in the output base the file
DO_NOT_BUILD_HERE holds the workspace's path. All calls look at the client's disk and may block, for threads.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass

from outputd.builds.output_base import OutputBase


@dataclass(frozen=True, slots=True)
class Stale:
    """An output path that may be cleaned."""

    id: str
    reason: str
    last_used: int
    """Nanoseconds since 1970."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is known of an output path in which no build runs."""

    id: str
    aliases: tuple[str, ...]
    last_used: int

    @classmethod
    def of(cls, bases: Iterable[OutputBase]) -> list[Candidate]:
        return [
            cls(base.id, base.aliases, max(base.created, base.last_build_time))
            for base in bases
            if base.build is None
        ]


def stale(candidates: Iterable[Candidate], unused_since: int | None) -> list[Stale]:
    """Those whose workspace is gone and, with `unused_since` (nanoseconds since 1970), those that were not built in since."""
    found: list[Stale] = []
    for candidate in candidates:
        reason = _workspace_gone(candidate.aliases)
        if reason is None and unused_since is not None and candidate.last_used < unused_since:
            reason = "no build since then"
        if reason is not None:
            found.append(Stale(candidate.id, reason, candidate.last_used))
    return found


def _workspace_gone(aliases: tuple[str, ...]) -> str | None:
    """Why nobody will build there again; None unless that is certain."""
    for alias in aliases:
        output_base, execroot, _ = alias.rpartition("/execroot/")
        if not execroot:
            continue
        if _is_gone(output_base):
            return f"Bazel's output base {output_base} is gone"
        try:
            with open(f"{output_base}/DO_NOT_BUILD_HERE", "rb") as file:
                workspace = os.fsdecode(file.read(4096).strip())
        except OSError:
            continue
        if workspace.startswith("/") and _is_gone(workspace):
            return f"the workspace {workspace} is gone"
    return None


def _is_gone(path: str) -> bool:
    """Whether it certainly is: its parent can be looked into, which a disk that is not mounted now cannot promise."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno == errno.ENOENT and os.path.isdir(os.path.dirname(path))
    return False
