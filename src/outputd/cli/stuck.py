"""`outputd stuck`: what has been under way for long, who waits, and for what. Never ends anything."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from outputd.cli.console import Colour, Console, ExitCode, columns, show_bytes, show_seconds
from outputd.cli.setting_flags import add_setting_flags, load_settings

if TYPE_CHECKING:
    from outputd._proto.duration_pb2 import Duration
    from outputd.rpc.admin_client import ListOperationsResponse

NAME: Final = "stuck"
SUMMARY: Final = "Show what has been under way for long: which process waits, and for what."
EXAMPLES: Final = """\
  outputd stuck
  outputd stuck --older-than 0            everything that is under way
  outputd stuck --json | jq -r '.kernel_requests[].pid'

A reader that waits can be ended as any other process; outputs.read_timeout bounds its wait. Exit code 4 when no daemon answers."""

_SECONDS: Final = 5.0

Row: TypeAlias = tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--older-than",
        type=_seconds,
        default=_SECONDS,
        metavar="SECONDS",
        help=f"leave out what began later (default: {_SECONDS:g})",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object; fields are only ever added"
    )
    add_setting_flags(parser)


def run(arguments: argparse.Namespace, console: Console) -> ExitCode:
    settings = load_settings(arguments, console).config
    from outputd.cli.running_daemon import ask_daemon
    from outputd.rpc.admin_client import fetch_operations

    question = partial(fetch_operations, older_than=arguments.older_than)
    found = ask_daemon(settings, console.environ, question)
    if arguments.json:
        console.print(json.dumps(as_data(found), indent=2))
        return ExitCode.OK
    lines = list(_lines(found, console))
    for line in lines or [f"nothing has been under way for {arguments.older_than:g} s or longer"]:
        console.print(line)
    return ExitCode.OK


def as_data(found: ListOperationsResponse) -> dict[str, object]:
    """For --json: the fields of outputd.v1.ListOperationsResponse; ages in seconds, what is not known null."""
    return {
        "kernel_requests": [
            {
                "opcode": request.opcode,
                "path": request.path,
                "pid": request.pid or None,
                "process": request.process or None,
                "age_seconds": _age(request),
                "waits_for": request.waits_for or None,
            }
            for request in found.kernel_requests
        ],
        "calls": [
            {"method": call.method, "peer": call.peer, "age_seconds": _age(call)} for call in found.calls
        ],
        "fetches": [
            {
                "digest": fetch.digest,
                "received_bytes": fetch.received_bytes,
                "size_bytes": fetch.size_bytes,
                "waiters": fetch.waiters,
                "remote": fetch.remote,
                "instance_name": fetch.instance_name,
                "age_seconds": _age(fetch),
            }
            for fetch in found.fetches
        ],
    }


def _lines(found: ListOperationsResponse, console: Console) -> Iterator[str]:
    requests: list[Row] = [("AGE", "REQUEST", "PATH", "PROCESS", "WAITS FOR")]
    for request in found.kernel_requests:
        process = f"{request.pid} {request.process}" if request.pid else "-"
        waits_for = request.waits_for or "the disk"
        requests.append((_shown_age(request), request.opcode, request.path, process, waits_for))
    calls: list[Row] = [("AGE", "METHOD", "CLIENT")]
    calls += [(_shown_age(call), call.method, call.peer) for call in found.calls]
    fetches: list[Row] = [("AGE", "BLOB", "RECEIVED", "WAITERS", "FROM")]
    for fetch in found.fetches:
        received = f"{show_bytes(fetch.received_bytes)} of {show_bytes(fetch.size_bytes)}"
        server = f"{fetch.remote} {fetch.instance_name}".rstrip()
        fetches.append((_shown_age(fetch), fetch.digest, received, str(fetch.waiters), server))
    for title, rows in (("file system", requests), ("calls", calls), ("fetches", fetches)):
        if len(rows) > 1:
            yield console.paint(Colour.BOLD, title)
            yield from columns(rows)


def _shown_age(operation: _Aged) -> str:
    return show_seconds(_age(operation))


class _Aged(Protocol):
    """Each message of the reply."""

    @property
    def age(self) -> Duration: ...


def _age(operation: _Aged) -> float:
    return operation.age.seconds + operation.age.nanos / 1e9


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds
