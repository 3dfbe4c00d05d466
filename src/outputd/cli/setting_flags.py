"""The flags that set settings, the same on every verb, made from the table of settings. Never reads a file itself."""

from __future__ import annotations

import argparse

from outputd.cli.console import Console
from outputd.config import Loaded, load
from outputd.config.kinds import Addresses, Boolean
from outputd.config.settings import table


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and a flag for each setting that has one."""
    group = parser.add_argument_group("settings", "a flag goes before its environment variable, the file and the default")
    group.add_argument("--config", metavar="FILE", help="settings file (default: $XDG_CONFIG_HOME/outputd/config.toml)")
    for entry in table().values():
        key = entry.key
        if key.flag is None:
            continue
        sentence = key.sentence[0].lower() + key.sentence[1:].rstrip(".")
        help_text = f"{sentence} [{entry.section}] {entry.name}".replace("%", "%%")
        if isinstance(key.kind, Boolean):
            group.add_argument(key.flag, dest=entry.full, action=argparse.BooleanOptionalAction, default=None, help=help_text)
        elif isinstance(key.kind, Addresses):
            again = f"{help_text}; may be given more than once"
            group.add_argument(key.flag, dest=entry.full, metavar=key.metavar, action="append", help=again)
        else:
            group.add_argument(key.flag, dest=entry.full, metavar=key.metavar, help=help_text)


def load_settings(arguments: argparse.Namespace, console: Console) -> Loaded:
    """The settings that these flags, the environment and the file make together. Raises InvalidSettings."""
    given = vars(arguments)
    flags = {entry.full: given[entry.full] for entry in table().values() if entry.key.flag is not None}
    return load(flags, console.environ, arguments.config)
