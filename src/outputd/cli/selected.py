"""What patterns on a command line mean: which output base, and which of its files. Reads nothing below the mount.

A pattern whose beginning, up to the first name with `*`, `?` or `[`, is a path in the mount (as by `bazel-bin`, a symlink)
is taken for one; else it is below the output path of the output base that was named, or that the directory belongs to.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from outputd.errors import Invalid

if TYPE_CHECKING:
    from outputd.rpc.admin_client import GetStatusResponse

_SPECIAL: Final = re.compile(r"[*?\[]")
_LABEL: Final = re.compile(r"//([^:]*)(?::([^/:][^:]*))?$")


def add_selection(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """The arguments that `selection` reads."""
    parser.add_argument(
        "patterns",
        nargs="*",
        metavar="PATTERN",
        help="paths with *, ?, [...] and **; a directory means all below it; - reads one a line from standard input"
        + ("; none: all of the output base" if optional else ""),
    )
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="LABEL",
        help="outputs of a Bazel target //package:name, of a package //package, or of all below it //package/...",
    )
    parser.add_argument(
        "--output-base",
        metavar="ID",
        help="whose tree (default: the one that the path, the current directory or its bazel-out lies in)",
    )


def selection(
    arguments: argparse.Namespace, status: GetStatusResponse, extra: Iterable[bytes] = ()
) -> Mapping[str, list[bytes]]:
    """Patterns by output base. Raises Invalid."""
    ids = {base.id for base in status.output_bases}
    outputs = os.path.realpath(status.mount.path) + "/outputs/"
    named: str | None = arguments.output_base
    if named is not None and named not in ids:
        raise Invalid(f"--output-base {named}: there is no such output base; `outputd status` shows them")
    found: dict[str, list[bytes]] = {}

    def own() -> str:
        return named or _of_directory(outputs, ids)

    for pattern in _given(arguments.patterns):
        inside = None if named is not None else _inside(pattern, outputs)
        if inside is not None and inside[0] in ids:
            found.setdefault(inside[0], []).append(os.fsencode(inside[1]))
        elif pattern.startswith("/"):
            raise Invalid(f"{pattern}: is no path of an output base below {outputs}")
        else:
            found.setdefault(own(), []).append(os.fsencode(pattern))
    for label in arguments.label:
        found.setdefault(own(), []).extend(map(os.fsencode, of_label(label)))
    below = list(extra)
    if below:
        found.setdefault(own(), []).extend(below)
    return found


def own_base(arguments: argparse.Namespace, status: GetStatusResponse) -> str:
    """The output base that is meant when no path says it. Raises Invalid."""
    named: str | None = arguments.output_base
    outputs = os.path.realpath(status.mount.path) + "/outputs/"
    return named or _of_directory(outputs, {base.id for base in status.output_bases})


def read_bytes(path: str) -> bytes:
    """A file that was named on the command line; `-` is standard input. Raises Invalid."""
    try:
        if path == "-":
            return sys.stdin.buffer.read()
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise Invalid(f"{path}: {error.strerror}") from error


def tree_named(name: str, status: GetStatusResponse) -> str:
    """The output base that is meant by its id, or by a path in the mount. Raises Invalid for a path that lies in none."""
    ids = {base.id for base in status.output_bases}
    outputs = os.path.realpath(status.mount.path) + "/outputs/"
    if name not in ids and (real := os.path.realpath(name) + "/").startswith(outputs):
        return real.removeprefix(outputs).partition("/")[0]
    if name not in ids and "/" in name:
        raise Invalid(f"{name}: is no path of an output base below {outputs}")
    return name


def of_label(label: str) -> Sequence[str]:
    """Where Bazel puts the outputs of a target, by their usual names; a rule may give others. Raises Invalid."""
    match = _LABEL.match(label)
    if match is None or _SPECIAL.search(label):
        raise Invalid(f"--label {label}: expected //package:name, //package or //package/...")
    package, name = match[1], match[2]
    tops = ("*/bin", "*/testlogs")
    if package == "..." or package.endswith("/..."):
        below = package[:-3].rstrip("/")
        return [f"{top}/{below}".rstrip("/") for top in tops]
    if name in ("all", "*"):
        return [f"{top}/{package}/*".replace("//", "/") for top in tops]
    name = name or package.rpartition("/")[2]
    if not name:
        raise Invalid(f"--label {label}: expected a name, //:name")
    names = (name, f"{name}.*", f"{name}-*", f"lib{name}.*", f"_objs/{name}")
    return [f"{top}/{package}/{each}".replace("//", "/") for top in tops for each in names]


def _given(patterns: Sequence[str]) -> Iterable[str]:
    for pattern in patterns:
        if pattern == "-":
            yield from (line for line in sys.stdin.read().splitlines() if line)
        else:
            yield pattern


def _inside(pattern: str, outputs: str) -> tuple[str, str] | None:
    """Output base and pattern below it, if it begins with a path in the mount."""
    match = _SPECIAL.search(pattern)
    cut = len(pattern) if match is None else pattern.rfind("/", 0, match.start()) + 1
    beginning, rest = pattern[:cut], pattern[cut:]
    path = os.path.abspath(beginning or ".")
    # The last name itself may be a symlink of the tree, which is to be found and not followed, unless more comes after it.
    head, tail = (path, "") if rest or os.path.isdir(path) else os.path.split(path)
    real = os.path.join(os.path.realpath(head), tail) if tail else os.path.realpath(head)
    if not real.startswith(outputs):
        return None
    output_base_id, _, below = real.removeprefix(outputs).partition("/")
    return output_base_id, f"{below}/{rest}" if below and rest else below + rest


def _of_directory(outputs: str, ids: set[str]) -> str:
    """The output base of the current directory, or of the workspace around it. Raises Invalid."""
    at = os.getcwd()
    while True:
        for place in (at, os.path.join(at, "bazel-out")):
            real = os.path.realpath(place)
            if real.startswith(outputs):
                output_base_id = real.removeprefix(outputs).partition("/")[0]
                if output_base_id in ids:
                    return output_base_id
        parent = os.path.dirname(at)
        if parent == at:
            break
        at = parent
    if len(ids) == 1:
        return next(iter(ids))
    raise Invalid(
        "which output base is meant? The current directory lies in none; name it with --output-base, one of: "
        + (", ".join(sorted(ids)) or "(there is none yet)")
    )
