"""`outputd watch`: what happens in the output trees, as JSON lines, for editors and scripts. Never changes anything."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Final

from outputd.cli.console import Console, ExitCode, NoDaemon
from outputd.cli.setting_flags import add_setting_flags, load_settings
from outputd.errors import Invalid, Unavailable

if TYPE_CHECKING:
    from outputd.rpc.trees_client import WatchResponse

NAME: Final = "watch"
SUMMARY: Final = "Print what happens in the output trees, one JSON object a line, until it is ended."
EXAMPLES: Final = """\
  outputd watch | jq -r 'select(.event == "build finalized").output_base_id'
  outputd watch --output-base 9da951b8cb759233037166e28f7ea186

events: build started, build finalized, cleaned, staged, written (closed by its last writer), fetched (bytes that came for a
reader), lost (so many events, because this program read too slowly). Exit code 4 when no daemon answers, or it ends."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-base", default="", metavar="ID", help="only of this one (default: of all)")
    add_setting_flags(parser)


def run(arguments: argparse.Namespace, console: Console) -> ExitCode:
    settings = load_settings(arguments, console).config
    from outputd.cli.running_daemon import answering
    from outputd.rpc.trees_client import watch

    def show(event: WatchResponse) -> None:
        console.print(json.dumps(as_data(event)))
        console.out.flush()

    target, status = answering(settings, console.environ)
    if arguments.output_base and all(base.id != arguments.output_base for base in status.output_bases):
        raise Invalid(f"--output-base {arguments.output_base}: there is no such output base")
    try:
        watch(target, arguments.output_base, show)
    except Unavailable as wrong:
        raise NoDaemon(str(wrong)) from wrong
    return ExitCode.OK


def as_data(event: WatchResponse) -> dict[str, object]:
    """One line. What does not belong to the event is left out."""
    data: dict[str, object] = {"time": event.time.ToJsonString(), "event": event.event}
    if event.output_base_id:
        data["output_base_id"] = event.output_base_id
    if event.build_id:
        data["build_id"] = event.build_id
    if event.path:
        data["path"] = os.fsdecode(event.path)
        data["size"] = event.size
    if event.count:
        data["count"] = event.count
    return data
