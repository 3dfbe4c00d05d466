"""`outputd profile`: has the daemon record what programs read of an output tree, and shows, shares and drops what was recorded."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from outputd.cli.console import Console, ExitCode, columns, show_count
from outputd.cli.selected import own_base, read_bytes, tree_named
from outputd.cli.setting_flags import add_setting_flags, load_settings
from outputd.drive.profile import check_name, decode
from outputd.errors import OutputdError

if TYPE_CHECKING:
    from outputd.rpc.admin_client import GetStatusResponse
    from outputd.rpc.profiles_client import ProfileFacts

NAME: Final = "profile"
SUMMARY: Final = (
    "Record which files programs read, for `outputd prefetch --profile` to bring them the next time."
)
EXAMPLES: Final = """\
  outputd profile record tests -- bazel test //...     what is read while the command runs
  outputd profile record ide bazel-bin                 from now on, until `stop`
  outputd profile stop ide
  outputd profile list
  outputd profile show tests > ci/tests.profile        as text, to be shared
  outputd profile import tests ci/tests.profile
  outputd prefetch --profile tests

`record … -- COMMAND` ends with the exit code of COMMAND, 127 when there is none; its own words go to standard error. Otherwise the
exit code is 0 when it is done, 1 when there is no such profile, 4 when no daemon answers."""

_TO_CHILD: Final = (signal.SIGTERM, signal.SIGHUP)
_NO_COMMAND: Final = 127
"""As shells say it."""


class _Parser(argparse.ArgumentParser):
    """Where `takes_command`, what follows `--` is a command with options of its own, which are not looked at."""

    takes_command = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = list(args)
        if not self.takes_command or "--" not in words:
            return super().parse_known_args(words, namespace)
        at = words.index("--")
        if at + 1 == len(words):
            self.error("-- is followed by a command")
        found, rest = super().parse_known_args(words[:at], namespace)
        found.command = words[at + 1 :]
        return found, rest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True, parser_class=_Parser)

    def add(name: str, summary: str, usage: str | None = None) -> _Parser:
        return what.add_parser(
            name,
            usage=usage,
            help=summary[0].lower() + summary[1:].rstrip("."),
            description=summary,
            allow_abbrev=False,
        )

    record = add(
        "record",
        "Record what programs read of an output tree through the mount, until `stop`, for a day at most, or while a command runs.",
        "outputd profile record [options] NAME [TREE] [-- COMMAND ...]",
    )
    record.takes_command = True
    record.set_defaults(command=[], output_base=None)
    record.add_argument(
        "name", metavar="NAME", help="of the profile; one of that name is replaced at the end"
    )
    record.add_argument(
        "tree",
        nargs="?",
        metavar="TREE",
        help="an output base by its id or a path in it (default: that of the current directory or its bazel-out)",
    )
    stop = add("stop", "End a recording and keep the profile.")
    stop.add_argument("name", metavar="NAME", help="of the profile")
    stop.add_argument(
        "--discard", action="store_true", help="keep nothing; an earlier profile of that name stays"
    )
    listed = add("list", "List all profiles, and what is being recorded.")
    show = add("show", "Print a profile as text: the form in which it can be shared and imported.")
    show.add_argument("name", metavar="NAME", help="of the profile")
    taken = add("import", "Keep a profile that comes from elsewhere, in place of one of that name.")
    taken.add_argument("name", metavar="NAME", help="of the profile")
    taken.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="its text (default: standard input)"
    )
    delete = add("delete", "Forget profiles, recorded or being recorded.")
    delete.add_argument("names", nargs="+", metavar="NAME", help="of a profile")
    for one in (record, stop, listed, show, taken):
        one.add_argument(
            "--json", action="store_true", help="print one JSON object; fields are only ever added"
        )
    for one in (record, stop, listed, show, taken, delete):
        add_setting_flags(one)


def run(arguments: argparse.Namespace, console: Console) -> int:
    settings = load_settings(arguments, console).config
    from outputd.cli.running_daemon import answering
    from outputd.rpc.profiles_client import (
        delete_profile,
        fetch_profile,
        fetch_profiles,
        put_profile,
        stop_recording,
    )

    target, status = answering(settings, console.environ)
    if arguments.what == "record":
        return _record(arguments, console, target, status)
    if arguments.what == "stop":
        facts = stop_recording(target, arguments.name, discard=arguments.discard)
        _tell(facts, console, "discarded" if arguments.discard else "recorded", as_json=arguments.json)
    elif arguments.what == "list":
        _list(fetch_profiles(target), console, as_json=arguments.json)
    elif arguments.what == "show":
        text = fetch_profile(target, arguments.name)
        if arguments.json:
            console.print(json.dumps(profile_as_data(arguments.name, text), indent=2))
        else:
            console.write_bytes(text)
    elif arguments.what == "import":
        facts = put_profile(target, arguments.name, read_bytes(arguments.file))
        _tell(facts, console, "imported", as_json=arguments.json)
    else:
        for name in arguments.names:
            delete_profile(target, name)
    return ExitCode.OK


def _record(arguments: argparse.Namespace, console: Console, target: str, status: GetStatusResponse) -> int:
    from outputd.rpc.profiles_client import start_recording, stop_recording

    name: str = arguments.name
    check_name(name)
    command: list[str] = arguments.command
    if command and shutil.which(command[0]) is None:
        console.complain(f"{command[0]}: there is no such command")
        return _NO_COMMAND
    base = own_base(arguments, status) if arguments.tree is None else tree_named(arguments.tree, status)
    start_recording(target, name, base)
    if all(base != known.id for known in status.output_bases):
        console.complain(
            f"output base {base}: no build has run in it yet; it is recorded from its first one on"
        )
    if not command:
        if arguments.json:
            console.print(json.dumps({"name": name, "output_base_id": base, "recording": True}, indent=2))
        else:
            console.print(
                f"profile {name}: recording output base {base}; `outputd profile stop {name}` ends it"
            )
        return ExitCode.OK
    code = _run(command)
    try:
        facts = stop_recording(target, name)
    except OutputdError as wrong:
        console.complain(f"profile {name}: could not be kept: {wrong}")
        return code or ExitCode.FAILURE
    console.complain(_words(facts, "recorded"))
    if arguments.json:
        console.print(json.dumps(as_data(facts), indent=2))
    return code


def _run(command: Sequence[str]) -> int:
    """The exit code of a command, 128 and the signal's number when one has ended it."""
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _frame: object) -> None:
        # Ctrl-C reaches everybody on the terminal; only who is told by name need tell the command.
        if child is not None and number in _TO_CHILD:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, *_TO_CHILD)}
    try:
        child = subprocess.Popen(command)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def as_data(facts: ProfileFacts) -> dict[str, object]:
    """For --json."""
    return {
        "name": facts.name,
        "output_base_id": facts.output_base_id or None,
        "recorded": facts.recorded.ToJsonString() if facts.HasField("recorded") else None,
        "recording": facts.recording,
        "files": facts.files,
        "in_part": facts.in_part,
        "cut_short": facts.cut_short,
        "error": facts.error or None,
    }


def profile_as_data(name: str, text: bytes) -> dict[str, object]:
    """The same of all of it: `runs` are offsets and lengths, in bytes, of what was read of a file that had `size`."""
    profile = decode(text, f"profile {name}")
    return {
        "name": name,
        "output_base_id": profile.output_base_id or None,
        "recorded": None if not profile.recorded else _instant(profile.recorded),
        "cut_short": not profile.complete,
        "files": [
            {"path": os.fsdecode(path)}
            | (
                {"size": part.size, "runs": [[start, end - start] for start, end in part.runs]}
                if part.runs
                else {}
            )
            for path, part in profile.files.items()
        ],
    }


def _list(profiles: Sequence[ProfileFacts], console: Console, *, as_json: bool) -> None:
    if as_json:
        console.print(json.dumps({"profiles": [as_data(facts) for facts in profiles]}, indent=2))
        return
    rows: list[tuple[str, ...]] = [("NAME", "FILES", "IN PART", "RECORDED", "OUTPUT BASE", "")]
    rows += [
        (
            facts.name,
            show_count(facts.files),
            show_count(facts.in_part),
            _instant(facts.recorded.seconds) if facts.HasField("recorded") else "",
            facts.output_base_id,
            facts.error
            or ", ".join(["recording"] * facts.recording + ["not all that was read"] * facts.cut_short),
        )
        for facts in profiles
    ]
    for line in columns(rows) if profiles else ["there are no profiles"]:
        console.print(line)


def _tell(facts: ProfileFacts, console: Console, deed: str, *, as_json: bool) -> None:
    if as_json:
        console.print(json.dumps(as_data(facts), indent=2))
    else:
        console.print(_words(facts, deed))


def _words(facts: ProfileFacts, deed: str) -> str:
    more = f", {show_count(facts.in_part)} of them in part" if facts.in_part else ""
    rest = "; more were read, which is more than a profile takes" if facts.cut_short else ""
    return f"profile {facts.name}: {show_count(facts.files)} files {deed}{more}{rest}"


def _instant(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
