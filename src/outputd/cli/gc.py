"""`outputd gc`: has the running daemon remove what it can do without, or says what that would be. Never removes anything itself."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from outputd.cli.console import Console, ExitCode, columns, show_bytes, show_count
from outputd.cli.progress import Progress
from outputd.cli.setting_flags import add_setting_flags, load_settings
from outputd.config.kinds import Size
from outputd.config.places import Places
from outputd.errors import Invalid

if TYPE_CHECKING:
    from outputd.rpc.admin_client import GarbageReport

NAME: Final = "gc"
SUMMARY: Final = "Free disk room: remove what no output tree needs, or show what would go and why."
EXAMPLES: Final = """\
  outputd gc --dry-run                     what the store holds, and what would go; removes nothing
  outputd gc                               all that is only here and that nothing needs
  outputd gc --older-than 30d              also what was not used for a month: cached blobs, output trees
  outputd gc --max-size 20GiB              and the least recently used, until the blobs take 20 GiB
  outputd gc --dry-run --json | jq '.blobs.kept.bytes'

What is only on this machine and an output tree needs never goes; a tree goes when its workspace is gone, or with --older-than when
no build ended in it for so long. Exit code 4 when no daemon answers."""

_SECONDS: Final = 3600.0
"""For the whole work, on a store of any size."""
_AGE: Final = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|h|d|w)")
_UNITS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_WORDS: Final = {
    "garbage": "only here, and nothing needs it",
    "cached": "cached, the remote has it too",
    "results": "only here, for action results alone",
    "kept": "only here, and needed or new",
    "held": "open now",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="show what would go, remove nothing")
    parser.add_argument(
        "--older-than",
        metavar="AGE",
        type=_age,
        help="also what nobody used for so long: 90min, 12h, 30d, 8w",
    )
    parser.add_argument(
        "--max-size", metavar="SIZE", type=_size, help="evict until the blobs take at most this room: 20GiB"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object; fields are only ever added"
    )
    add_setting_flags(parser)


def run(arguments: argparse.Namespace, console: Console) -> ExitCode:
    settings = load_settings(arguments, console).config
    from outputd.cli.running_daemon import answering
    from outputd.rpc.admin_client import collect_garbage

    target, _ = answering(settings, console.environ)
    with Progress(console) as progress:
        report = collect_garbage(
            target,
            dry_run=arguments.dry_run,
            unused_for=arguments.older_than,
            max_bytes=arguments.max_size,
            seconds=_SECONDS,
            progress=lambda step, blobs, size: progress.show(_so_far(step, blobs, size), step=step),
        )
    if arguments.json:
        console.print(json.dumps(as_data(report, dry_run=arguments.dry_run), indent=2))
    else:
        for line in _lines(report, dry_run=arguments.dry_run):
            console.print(line)
    return ExitCode.OK


def as_data(report: GarbageReport, *, dry_run: bool) -> dict[str, object]:
    """For --json: bytes are room on the disk, times RFC 3339; `removed` is what would be, in a dry run."""
    return {
        "dry_run": dry_run,
        "blobs": {
            _name(blobs): {
                "blobs": blobs.blobs,
                "bytes": blobs.bytes,
                "removed_blobs": blobs.removed_blobs,
                "removed_bytes": blobs.removed_bytes,
            }
            for blobs in report.blobs
        },
        "output_bases": [
            {"id": base.id, "reason": base.reason, "last_used": _instant(base.last_used.seconds)}
            for base in report.output_bases
        ],
        "dropped_messages": report.dropped_messages,
    }


def _lines(report: GarbageReport, *, dry_run: bool) -> Iterator[str]:
    verb = "WOULD GO" if dry_run else "GONE"
    rows = [("BLOBS", "NUMBER", "ROOM", verb, "ROOM")]
    rows += [
        (
            _WORDS[_name(blobs)],
            show_count(blobs.blobs),
            show_bytes(blobs.bytes),
            show_count(blobs.removed_blobs),
            show_bytes(blobs.removed_bytes),
        )
        for blobs in report.blobs
    ]
    yield from columns(rows)
    for base in report.output_bases:
        fate = "would go" if dry_run else "is gone"
        yield f"output base {base.id} {fate}: {base.reason}; last used {_instant(base.last_used.seconds)}"
    if report.dropped_messages:
        yield f"{show_count(report.dropped_messages)} messages and records were dropped from the state database"
    freed = sum(blobs.removed_bytes for blobs in report.blobs)
    yield f"{show_bytes(freed)} {'would be' if dry_run else 'were'} freed"


def _so_far(step: str, blobs: int, size: int) -> str:
    return f"{step}: {show_count(blobs)} blobs, {show_bytes(size)}" if blobs else step


def _name(blobs: GarbageReport.Blobs) -> str:
    name: str = type(blobs).Kind.Name(blobs.kind)
    return name.lower()


def _age(text: str) -> float:
    found = _AGE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; write 90min, 12h, 30d or 8w")
    return float(found[1]) * _UNITS[found[2]]


def _size(text: str) -> int:
    try:
        return Size(0, 1 << 60).parse(text, Places({}, 0, None))
    except Invalid as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None


def _instant(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
