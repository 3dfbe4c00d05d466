"""`outputd forget`: drops local copies of what the remote has. The files stay in their tree; who reads one has it fetched again."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Final

from outputd.cli.console import Console, ExitCode, show_bytes, show_count
from outputd.cli.selected import add_selection, selection
from outputd.cli.setting_flags import add_setting_flags, load_settings
from outputd.errors import Invalid

if TYPE_CHECKING:
    from outputd.rpc.trees_client import ForgetResponse

NAME: Final = "forget"
SUMMARY: Final = "Drop local copies of files that the remote has; nothing is lost."
EXAMPLES: Final = """\
  outputd forget bazel-bin/old
  outputd forget '*/bin/**/*.a'

exit code 0 when it is done, 1 when nothing matches, 4 when no daemon answers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_selection(parser)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object; fields are only ever added"
    )
    add_setting_flags(parser)


def run(arguments: argparse.Namespace, console: Console) -> ExitCode:
    settings = load_settings(arguments, console).config
    from outputd.cli.running_daemon import answering
    from outputd.rpc.trees_client import forget

    target, status = answering(settings, console.environ)
    chosen = selection(arguments, status)
    if not chosen:
        raise Invalid("nothing is named: give a PATTERN or a --label")
    results = {base: forget(target, base, patterns) for base, patterns in chosen.items()}
    if arguments.json:
        console.print(json.dumps({"trees": [as_data(*item) for item in results.items()]}, indent=2))
    else:
        for output_base_id, done in results.items():
            console.print(
                f"{output_base_id}: {show_count(done.matched.files)} files match; dropped: {_shown(done.dropped)}; "
                f"kept, nobody else has them: {_shown(done.only_here)}; kept, open or pinned: {_shown(done.held)}"
            )
    return ExitCode.OK if all(done.matched.files for done in results.values()) else ExitCode.FAILURE


def as_data(output_base_id: str, done: ForgetResponse) -> dict[str, object]:
    """For --json."""
    return {
        "output_base_id": output_base_id,
        **{
            name: {"files": count.files, "bytes": count.bytes}
            for name, count in (
                ("matched", done.matched),
                ("dropped", done.dropped),
                ("only_here", done.only_here),
                ("held", done.held),
            )
        },
    }


def _shown(count: object) -> str:
    from outputd.rpc.trees_client import FileCount

    assert isinstance(count, FileCount)
    return f"{show_count(count.files)} ({show_bytes(count.bytes)})"
