"""`outputd pin`: keeps files on this machine, now and after each build; and shows what is kept."""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from typing import Final

from outputd.cli.console import Console, ExitCode, columns, show_bytes, show_count
from outputd.cli.prefetch import show_bringing
from outputd.cli.progress import Progress
from outputd.cli.selected import add_selection, own_base, selection
from outputd.cli.setting_flags import add_setting_flags, load_settings

NAME: Final = "pin"
SUMMARY: Final = "Keep files of a tree on this machine, or show what is kept."
EXAMPLES: Final = """\
  outputd pin                              what is pinned, and how much of it is here
  outputd pin bazel-bin/app '*/bin/**/*.so'
  outputd pin --wait bazel-bin/app         return when it is here
  outputd pin --remove bazel-bin/app       as it was given
  outputd pin --remove                     all pins of this output base

exit code 0 when it is done, 1 when there was no such pin, or something that --wait waits for could not be brought, 4 when no daemon
answers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_selection(parser)
    parser.add_argument(
        "--wait", action="store_true", help="return when what is to be kept is here, and show how far it is"
    )
    parser.add_argument("--remove", action="store_true", help="end these pins, or all of the output base")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: all pins; fields are only ever added"
    )
    add_setting_flags(parser)


def run(arguments: argparse.Namespace, console: Console) -> ExitCode:
    settings = load_settings(arguments, console).config
    from outputd.cli.running_daemon import ANSWER_SECONDS, answering
    from outputd.rpc.trees_client import PrefetchRequest, fetch_pins, pin, prefetch, unpin

    target, status = answering(settings, console.environ)
    chosen = selection(arguments, status)
    code = ExitCode.OK
    if arguments.remove:
        removed = sum(
            unpin(target, base, patterns)
            for base, patterns in (chosen or {own_base(arguments, status): []}).items()
        )
        code = ExitCode.OK if removed else ExitCode.FAILURE
        if not arguments.json:
            console.print(f"{removed} pins removed")
            return code
    for base, patterns in {} if arguments.remove else chosen.items():
        pin(target, base, patterns)
        if arguments.wait:
            with Progress(console) as progress:
                request = PrefetchRequest(output_base_id=base, patterns=patterns)
                done = prefetch(target, request, partial(show_bringing, progress))
            if done.failed:
                console.complain(f"{done.failed} blobs could not be fetched; the first: {done.first_failure}")
                code = ExitCode.FAILURE
    pins = fetch_pins(target, ANSWER_SECONDS).pins
    if arguments.json:
        console.print(
            json.dumps(
                {
                    "pins": [
                        {
                            "output_base_id": found.output_base_id,
                            "pattern": os.fsdecode(found.pattern),
                            "matched": {"files": found.matched.files, "bytes": found.matched.bytes},
                            "missing": {"blobs": found.missing.files, "bytes": found.missing.bytes},
                            "current": found.current,
                        }
                        for found in pins
                    ]
                },
                indent=2,
            )
        )
        return code
    rows: list[tuple[str, ...]] = [("OUTPUT BASE", "PATTERN", "FILES", "BYTES", "NOT HERE YET")]
    rows += [
        (
            found.output_base_id,
            os.fsdecode(found.pattern),
            show_count(found.matched.files),
            show_bytes(found.matched.bytes),
            show_count(found.missing.files) if found.current else "looking",
        )
        for found in pins
    ]
    for line in columns(rows) if pins else ["nothing is pinned"]:
        console.print(line)
    return code
