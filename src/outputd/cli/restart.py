"""`outputd restart`: has the running daemon run its program anew while its mount goes on, and waits until it did.

Never starts a daemon.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import TYPE_CHECKING, Final

from outputd.cli.console import Console, ExitCode
from outputd.cli.setting_flags import add_setting_flags, load_settings
from outputd.errors import OutputdError, TimedOut, Unavailable

if TYPE_CHECKING:
    from outputd.rpc.admin_client import GetStatusResponse

NAME: Final = "restart"
SUMMARY: Final = (
    "Restart the running daemon, for an upgrade or new settings; what is open in the mount stays open."
)
EXAMPLES: Final = """\
  pip install --upgrade outputd && outputd restart
  outputd restart --json

Open files, mapped files, running programs, working directories and locks go on; whoever asks the file system for something
waits for about a second. Calls by build clients are cut (UNAVAILABLE) and are to be made again. If the new program does not
start, or does not read the settings, the old one goes on and the reason is shown, with exit code 1."""

_ASK_SECONDS: Final = 90.0
_BACK_SECONDS: Final = 150.0
_PAUSE: Final = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object; fields are only ever added"
    )
    add_setting_flags(parser)


def run(arguments: argparse.Namespace, console: Console) -> ExitCode:
    settings = load_settings(arguments, console).config
    from outputd.cli.running_daemon import find_daemon, status_at
    from outputd.rpc.admin_client import ask_restart

    address, before = find_daemon(settings, console.environ)
    process = f"/proc/{before.pid}"
    seen = os.path.exists(process)  # not from another container
    began = time.monotonic()
    ask_restart(address.target, _ASK_SECONDS)
    while True:
        try:
            after = status_at(address, console.environ)
        except OutputdError as wrong:  # nobody listens while the new program starts
            if seen and not os.path.exists(process):
                raise Unavailable(
                    "the new program could not go on; the daemon has ended, its log says why. Start it with `outputd serve`"
                ) from wrong
            if time.monotonic() - began > _BACK_SECONDS:
                raise TimedOut(f"the daemon does not come back: {wrong}") from wrong
        else:
            if after.restarts != before.restarts or after.pid != before.pid:
                break
            if after.restart_error:
                console.complain(f"it was not restarted and goes on as before: {after.restart_error}")
                return ExitCode.FAILURE
        time.sleep(_PAUSE)
    _tell(before, after, time.monotonic() - began, console, as_json=arguments.json)
    return ExitCode.OK


def _tell(
    before: GetStatusResponse, after: GetStatusResponse, seconds: float, console: Console, *, as_json: bool
) -> None:
    if as_json:
        facts = {
            "version": after.version,
            "version_before": before.version,
            "pid": after.pid,
            "restarts": after.restarts,
            "seconds": round(seconds, 3),
        }
        console.print(json.dumps(facts, indent=2))
        return
    upgraded = f" (was {before.version})" if after.version != before.version else ""
    console.print(f"outputd {after.version}{upgraded} goes on as pid {after.pid}, after {seconds:.1f} s")
