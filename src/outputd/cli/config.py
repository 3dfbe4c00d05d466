"""`outputd config show` and `outputd config check`: the settings in force, where each comes from, what is wrong with them. Never
writes a file and never shows a secret.
"""

from __future__ import annotations

import argparse
import json
from typing import Final

from outputd.cli.console import Console, ExitCode
from outputd.cli.setting_flags import add_setting_flags, load_settings
from outputd.config import load, load_file, usual_file
from outputd.config.show import as_data, as_toml

NAME: Final = "config"
SUMMARY: Final = "Show the settings in force, or check a settings file."
EXAMPLES: Final = """\
  outputd config show                  every setting, as a settings file
  outputd config show --origin         and where each value comes from
  outputd config check                 the file, environment and defaults that `serve` would use
  outputd config check ./outputd.toml  this file alone

`check` names each problem as FILE:LINE: [section] key: what is wrong, what would be right; exit code 3 if there are any."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    show = what.add_parser(
        "show",
        help="print every setting in force",
        description="Print every setting in force; secrets are masked.",
    )
    show.add_argument("--origin", action="store_true", help="add where each value comes from")
    show.add_argument("--json", action="store_true", help="print one JSON object")
    add_setting_flags(show)
    check = what.add_parser(
        "check",
        help="say what is wrong with the settings",
        description="Say what is wrong with the settings, all of it at once, with line numbers.",
    )
    check.add_argument(
        "file", nargs="?", metavar="FILE", help="check this file alone, without the environment"
    )


def run(arguments: argparse.Namespace, console: Console) -> ExitCode:
    if arguments.what == "show":
        _show(arguments, console)
    else:
        _check(arguments.file, console)
    return ExitCode.OK


def _show(arguments: argparse.Namespace, console: Console) -> None:
    loaded = load_settings(arguments, console)
    if arguments.json:
        console.print(json.dumps(as_data(loaded, arguments.origin), indent=2))
    else:
        console.out.write(as_toml(loaded, arguments.origin))


def _check(file: str | None, console: Console) -> None:
    loaded = load_file(file, console.environ) if file is not None else load({}, console.environ)
    changed = sum(origin.kind != "default" for origin in loaded.origins.values())
    source = loaded.file or f"no settings file ({usual_file(console.environ)} does not exist)"
    console.print(
        f"{source}: ok; {changed} of {len(loaded.origins)} settings are set, the others have their defaults"
    )
