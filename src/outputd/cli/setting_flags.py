"""The flags that set settings, the same on every verb, made from the table of settings. Never reads a file itself."""

from __future__ import annotations

import argparse

from outputd.cli.console import Console
from outputd.config import Loaded, load
from outputd.config.kinds import Addresses, Boolean
from outputd.config.settings import Entry, table


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and a flag for each setting that has one."""
    group = parser.add_argument_group(
        "settings", "a flag goes before its environment variable, the file and the default"
    )
    group.add_argument(
        "--config", metavar="FILE", help="settings file (default: $XDG_CONFIG_HOME/outputd/config.toml)"
    )
    for entry in table().values():
        key = entry.key
        if key.flag is None:
            continue
        if isinstance(key.kind, Boolean):
            group.add_argument(
                key.flag,
                dest=entry.full,
                action=argparse.BooleanOptionalAction,
                default=None,
                help=_help(entry),
            )
        else:
            action = "append" if isinstance(key.kind, Addresses) else "store"
            group.add_argument(
                key.flag, dest=entry.full, metavar=key.metavar, action=action, help=_help(entry)
            )


def _help(entry: Entry) -> str:
    key = entry.key
    sentence = key.sentence[0].lower() + key.sentence[1:].rstrip(".")
    if isinstance(key.kind, Addresses):
        sentence += "; may be given more than once"
    default = f"; default: {_shown(key.default)}" if key.default not in (None, False) else ""
    return f"{sentence} ([{entry.section}] {entry.name}{default})"


def _shown(default: object) -> str:
    return ", ".join(map(str, default)) if isinstance(default, list) else str(default)


def load_settings(arguments: argparse.Namespace, console: Console) -> Loaded:
    """The settings that these flags, the environment and the file make together. Raises InvalidSettings."""
    given = vars(arguments)
    flags = {entry.full: given[entry.full] for entry in table().values() if entry.key.flag is not None}
    return load(flags, console.environ, arguments.config)
