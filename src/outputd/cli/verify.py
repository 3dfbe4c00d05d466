"""`outputd verify`: how much of a tree can still be had, and from where. Never moves a blob and never changes anything."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from outputd.cli.console import Colour, Console, ExitCode, columns, show_bytes, show_count
from outputd.cli.progress import Progress
from outputd.cli.setting_flags import add_setting_flags, load_settings
from outputd.errors import Invalid

if TYPE_CHECKING:
    from outputd.rpc.admin_client import FileCount, GetStatusResponse, Loss, VerifyResponse

NAME: Final = "verify"
SUMMARY: Final = "Tell how much of a tree can still be had, and from where."
EXAMPLES: Final = """\
  outputd verify                           every output base
  outputd verify bazel-bin/app             what is there, and below
  outputd verify 9da951b8cb759233037166e28f7ea186 --content
  outputd verify --json | jq '.trees[] | select(.gone.files > 0)'

exit code 0 when all can be had, 1 when something is gone, 4 when no daemon answers."""

_LOSSES: Final = 100


class Tree(NamedTuple):
    """One argument."""

    output_base_id: str
    path: bytes
    """Below the output path; empty: all of it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "trees",
        nargs="*",
        metavar="PATH|OUTPUT_BASE",
        help="a path in the mount, or the id of an output base (default: all output bases)",
    )
    parser.add_argument("--content", action="store_true", help="hash the bytes of local blobs as well")
    parser.add_argument(
        "--max-losses",
        type=int,
        default=_LOSSES,
        metavar="N",
        help=f"list up to N lost paths a tree (default: {_LOSSES})",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object; fields are only ever added"
    )
    add_setting_flags(parser)


def run(arguments: argparse.Namespace, console: Console) -> ExitCode:
    settings = load_settings(arguments, console).config
    from outputd.cli.running_daemon import answering
    from outputd.rpc.admin_client import verify

    target, status = answering(settings, console.environ)
    results: list[dict[str, object]] = []
    whole = True
    for tree in _trees(arguments.trees, status):
        losses: list[Loss] = []
        with Progress(console) as progress:
            result = verify(
                target,
                tree.output_base_id,
                tree.path,
                content=arguments.content,
                max_losses=arguments.max_losses,
                note=_note(progress, tree, losses),
            )
        whole = whole and not result.gone.files and not result.unloadable
        if arguments.json:
            results.append(as_data(tree, result, losses))
        else:
            for line in _lines(tree, result, losses, console, content=arguments.content):
                console.print(line)
    if arguments.json:
        console.print(json.dumps({"whole": whole, "trees": results}, indent=2))
    return ExitCode.OK if whole else ExitCode.FAILURE


def _trees(named: list[str], status: GetStatusResponse) -> Iterator[Tree]:
    """What the arguments mean. Raises Invalid for one that means nothing."""
    ids = {base.id for base in status.output_bases}
    if not named:
        yield from (Tree(output_base_id, b"") for output_base_id in sorted(ids))
        return
    outputs = os.path.realpath(status.mount.path) + "/outputs/"
    for name in named:
        if name in ids:
            yield Tree(name, b"")
            continue
        path = _resolved(name)
        inside = path.removeprefix(outputs)
        output_base_id, _, below = inside.partition("/")
        if inside == path or output_base_id not in ids:
            raise Invalid(f"{name}: is no output base, and no path of an output base below {outputs}")
        yield Tree(output_base_id, os.fsencode(below))


def _resolved(name: str) -> str:
    """The path without symlinks, but for its own last name: a symlink is asked for itself, unless it leads to a directory."""
    if os.path.isdir(name):
        return os.path.realpath(name)
    head, tail = os.path.split(os.path.abspath(name))
    return os.path.join(os.path.realpath(head), tail)


def _note(progress: Progress, tree: Tree, losses: list[Loss]) -> Callable[[VerifyResponse], None]:
    """Collects what was lost and shows how far it is."""

    def note(reply: VerifyResponse) -> None:
        losses.extend(reply.losses)
        files = sum(count.files for count in (reply.both, reply.remote, reply.here, reply.gone))
        progress.show(
            f"{tree.output_base_id}: {show_count(files)} files, {show_count(reply.gone.files)} gone"
        )

    return note


def as_data(tree: Tree, result: VerifyResponse, losses: list[Loss]) -> dict[str, object]:
    """For --json. Names that are not UTF-8 have their odd bytes as lone surrogates, as Python's os.fsdecode gives them."""
    return {
        "output_base_id": tree.output_base_id,
        "path": os.fsdecode(tree.path),
        "local_and_remote": _count(result.both),
        "remote_only": _count(result.remote),
        "local_only": _count(result.here),
        "gone": _count(result.gone),
        "damaged": _count(result.damaged),
        "directories": result.directories,
        "unloadable_directories": result.unloadable,
        "losses": [
            {"path": os.fsdecode(loss.path), "digest": loss.digest or None, "reason": loss.reason}
            for loss in losses
        ],
    }


def _count(count: FileCount) -> dict[str, int]:
    return {"files": count.files, "bytes": count.bytes}


def _lines(
    tree: Tree, result: VerifyResponse, losses: list[Loss], console: Console, *, content: bool
) -> Iterator[str]:
    whole = not result.gone.files and not result.unloadable
    verdict = (
        console.paint(Colour.GREEN, "all can be had")
        if whole
        else console.paint(Colour.RED, "something is gone")
    )
    where = tree.output_base_id + ("/" + os.fsdecode(tree.path) if tree.path else "")
    yield console.paint(Colour.BOLD, where) + f": {verdict}"
    rows = [
        ("  local and remote", result.both),
        ("  remote only", result.remote),
        ("  local only", result.here),
        ("  gone", result.gone),
    ]
    if content:
        rows.append(("  damaged", result.damaged))
    yield from columns(
        [(name, f"{show_count(count.files)} files", show_bytes(count.bytes)) for name, count in rows]
        + [
            (
                "  directories",
                show_count(result.directories),
                f"{show_count(result.unloadable)} cannot be loaded",
            )
        ]
    )
    for loss in losses:
        yield f"  lost: {os.fsdecode(loss.path)} ({loss.digest or 'digest not known'}): {loss.reason}"
    left = result.gone.files + result.unloadable - len(losses)
    if left > 0:
        yield f"  and {show_count(left)} more; --max-losses lists more of them"
