"""`outputd top`: who has what fetched at this moment, and had since the daemon started. Never changes anything."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from outputd.cli.console import Colour, Console, ExitCode, columns, show_bytes, show_count
from outputd.cli.setting_flags import add_setting_flags, load_settings

if TYPE_CHECKING:
    from outputd.rpc.trees_client import GetActivityResponse

NAME: Final = "top"
SUMMARY: Final = "Show who has what fetched from the remote: by process, tree, target and blob."
EXAMPLES: Final = """\
  outputd top                      again every two seconds, on a terminal
  outputd top --once --rows 50
  outputd top --json | jq '.processes[0]'

exit code 4 when no daemon answers."""

_SECONDS: Final = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="print it once (without a terminal: always)")
    parser.add_argument("--rows", type=_rows, default=10, metavar="N", help="rows of each list (default: 10)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, once; fields are only ever added"
    )
    add_setting_flags(parser)


def run(arguments: argparse.Namespace, console: Console) -> ExitCode:
    settings = load_settings(arguments, console).config
    from outputd.cli.running_daemon import ask_daemon
    from outputd.rpc.trees_client import fetch_activity

    question = partial(fetch_activity, rows=arguments.rows)
    live = console.out.isatty() and not arguments.once and not arguments.json
    before: Mapping[str, int] = {}
    asked = 0.0
    while True:
        found = ask_daemon(settings, console.environ, question)
        if arguments.json:
            console.print(json.dumps(as_data(found), indent=2))
            return ExitCode.OK
        now = time.monotonic()
        if live:
            console.out.write("\x1b[H\x1b[2J")
        for line in _lines(found, console, before, now - asked if asked else 0.0):
            console.print(line)
        console.out.flush()
        if not live:
            return ExitCode.OK
        before, asked = dict(_sums(found)), now
        time.sleep(_SECONDS)


def as_data(found: GetActivityResponse) -> dict[str, object]:
    """For --json."""
    return {
        "total": {"pieces": found.total.pieces, "bytes": found.total.bytes},
        "processes": [
            {
                "pid": process.pid or None,
                "name": process.name,
                "started": process.started.ToJsonString() if process.HasField("started") else None,
                "pieces": process.fetched.pieces,
                "bytes": process.fetched.bytes,
            }
            for process in found.processes
        ],
        **{
            title: [
                {"name": row.name, "pieces": row.fetched.pieces, "bytes": row.fetched.bytes} for row in rows
            ]
            for title, rows in (
                ("output_bases", found.output_bases),
                ("targets", found.targets),
                ("blobs", found.blobs),
            )
        },
        "crawlers": [
            {
                "name": crawler.name,
                "pid": crawler.pid,
                "refused": crawler.refused,
                "reason": crawler.reason,
            }
            for crawler in found.crawlers
        ],
    }


def _sums(found: GetActivityResponse) -> Iterator[tuple[str, int]]:
    """Bytes by what each row is of."""
    yield "total", found.total.bytes
    for process in found.processes:
        yield f"process {process.pid} {process.started.ToNanoseconds()}", process.fetched.bytes
    for title, rows in (
        ("OUTPUT BASE", found.output_bases),
        ("TARGET", found.targets),
        ("BLOB", found.blobs),
    ):
        for row in rows:
            yield f"{title} {row.name}", row.fetched.bytes


def _lines(
    found: GetActivityResponse, console: Console, before: Mapping[str, int], seconds: float
) -> Iterator[str]:
    """`before`: the sums that were shown `seconds` ago."""

    def rate(key: str, size: int) -> str:
        came = size - before.get(key, 0) if seconds else 0
        return f"{show_bytes(int(came / seconds))}/s" if came > 0 else "-"

    now = rate("total", found.total.bytes)
    yield f"fetched since the daemon started: {show_bytes(found.total.bytes)} ({now})"
    processes: list[tuple[str, ...]] = [("BYTES", "NOW", "PIECES", "PROCESS")]
    for process in found.processes:
        key = f"process {process.pid} {process.started.ToNanoseconds()}"
        processes.append(
            (
                show_bytes(process.fetched.bytes),
                rate(key, process.fetched.bytes),
                show_count(process.fetched.pieces),
                f"{process.pid} {process.name}" if process.pid else process.name,
            )
        )
    tables = [processes]
    for title, rows in (
        ("OUTPUT BASE", found.output_bases),
        ("TARGET", found.targets),
        ("BLOB", found.blobs),
    ):
        table: list[tuple[str, ...]] = [("BYTES", "NOW", "PIECES", title)]
        table += [
            (
                show_bytes(row.fetched.bytes),
                rate(f"{title} {row.name}", row.fetched.bytes),
                show_count(row.fetched.pieces),
                row.name,
            )
            for row in rows
        ]
        tables.append(table)
    for table in tables:
        if len(table) > 1:
            header, *rest = columns(table)
            yield console.paint(Colour.BOLD, header)
            yield from rest
    for crawler in found.crawlers:
        refused = f", {show_count(crawler.refused)} reads refused" if crawler.refused else ""
        yield console.paint(Colour.YELLOW, "reads everything") + (
            f": {crawler.pid} {crawler.name} ({crawler.reason}{refused})"
        )


def _rows(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 10000")
    return int(text)
