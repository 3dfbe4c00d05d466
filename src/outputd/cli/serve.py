"""`outputd serve`: reads the settings, sets the log up and runs the daemon in the foreground. Never constructs a part of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

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
stops at once. SIGHUP does what `outputd restart` does; but where it means that the terminal was closed, it stops in order."""

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check",
        action="store_true",
        help="start nothing; say as a JSON object what would be served, or what is wrong with the settings",
    )
    add_setting_flags(parser)


def run(arguments: argparse.Namespace, console: Console) -> ExitCode:
    settings = load_settings(arguments, console).config
    _ensure_runtime_directory(settings, Places.of(console.environ))
    with logging_to(console.err, settings.log.level, settings.log.format):
        # gRPC's own log goes past ours, straight to standard error, with news such as "Got goaway".
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
        from outputd import __version__, restart
        from outputd.daemon import serve
        from outputd.supervisor import Supervisor

        if arguments.check:
            console.print(json.dumps(restart.facts(settings, __version__)))
            return ExitCode.OK
        supervisor = Supervisor(os.environ)
        departure = _run_loop(serve(settings, supervisor, restart.arrival(os.environ)))
    if departure is not None:
        restart.leave(departure)
    return ExitCode.OK


def _ensure_runtime_directory(settings: Config, places: Places) -> None:
    # Only the directory that we ourselves chose in /tmp, for want of a runtime directory; any other is the user's to make.
    private = places.private_fallback()
    for address in settings.listen.addresses:
        if isinstance(address, UnixAddress) and os.path.dirname(address.path) == private:
            places.ensure_private(private)


def _run_loop(daemon: Coroutine[Any, Any, T]) -> T:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(daemon)
    return uvloop.run(daemon)
