"""`outputd serve`: reads the settings, sets the log up and runs the daemon in the foreground. Never constructs a part of it."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Coroutine
from typing import Any, Final

from outputd.cli.console import Console, ExitCode
from outputd.cli.logs import logging_to
from outputd.cli.setting_flags import add_setting_flags, load_settings
from outputd.config import Config, Places, UnixAddress

NAME: Final = "serve"
SUMMARY: Final = "Mount the file system and serve build clients, in the foreground, until SIGTERM or Ctrl-C."
EXAMPLES: Final = """\
  outputd serve
  outputd serve --mount ~/outputs --remote grpcs://cache.example.com
  outputd serve --listen unix:/run/user/1000/outputd.sock --listen 127.0.0.1:8980

The first SIGTERM or Ctrl-C stops in order: running calls end, what was written is kept, the mount goes away. The second one
stops at once."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_setting_flags(parser)


def run(arguments: argparse.Namespace, console: Console) -> ExitCode:
    settings = load_settings(arguments, console).config
    _ensure_runtime_directory(settings, Places.of(console.environ))
    with logging_to(console.err, settings.log.level, settings.log.format):
        # gRPC's own log goes past ours, straight to standard error, with news such as "Got goaway".
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
        from outputd.daemon import serve

        _run_loop(serve(settings))
    return ExitCode.OK


def _ensure_runtime_directory(settings: Config, places: Places) -> None:
    # Only the directory that we ourselves chose in /tmp, for want of a runtime directory; any other is the user's to make.
    private = places.private_fallback()
    for address in settings.listen.addresses:
        if isinstance(address, UnixAddress) and os.path.dirname(address.path) == private:
            places.ensure_private(private)


def _run_loop(daemon: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(daemon)
    else:
        uvloop.run(daemon)
