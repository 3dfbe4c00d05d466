"""`outputd doctor`: runs every check and says what is wrong and how to put it right. Never repairs anything itself."""

from __future__ import annotations

import argparse
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Final

from outputd.cli.checks.finding import Finding, Verdict, failed, passed
from outputd.cli.console import Colour, Console, ExitCode
from outputd.cli.setting_flags import add_setting_flags, load_settings
from outputd.config import Config, InvalidSettings
from outputd.errors import OutputdError

NAME: Final = "doctor"
SUMMARY: Final = "Check everything outputd needs, and say how to put right what is wrong."
EXAMPLES: Final = """\
  outputd doctor
  outputd doctor --remote grpcs://cache.example.com
  outputd doctor --json | jq '.findings[] | select(.verdict != "pass")'

exit code 1 when a check failed; warnings alone leave it at 0."""

_CHECK_SECONDS: Final = 20.0

Check = Callable[[], Iterable[Finding]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_setting_flags(parser)


def run(arguments: argparse.Namespace, console: Console) -> ExitCode:
    findings = []
    for finding in _examine(arguments, console):
        findings.append(finding)
        if not arguments.json:
            _print(finding, console)
    if arguments.json:
        console.print(json.dumps({"findings": [_as_data(finding) for finding in findings]}, indent=2))
    else:
        count = {verdict: sum(finding.verdict is verdict for finding in findings) for verdict in Verdict}
        console.print()
        console.print(", ".join(f"{count[verdict]} {verdict}" for verdict in Verdict))
    bad = any(finding.verdict is Verdict.FAIL for finding in findings)
    return ExitCode.FAILURE if bad else ExitCode.OK


def _examine(arguments: argparse.Namespace, console: Console) -> Iterator[Finding]:
    settings: Config | None = None
    try:
        loaded = load_settings(arguments, console)
    except InvalidSettings as wrong:
        for problem in wrong.problems:
            yield failed("settings", str(problem), "put it right, then look again: outputd config check")
    else:
        settings = loaded.config
        yield passed("settings", loaded.file or "no file; defaults, environment and flags")
    for name, check in _checks(settings, console.environ):
        yield from _within_time(name, check)


def _checks(settings: Config | None, environ: Mapping[str, str]) -> Iterator[tuple[str, Check]]:
    from outputd.cli.checks import daemon, directories, host, remote

    yield "python", lambda: [host.python()]
    yield "fuse", lambda: [host.fuse_device("/dev/fuse")]
    yield "mounting", lambda: [host.right_to_mount(environ)]
    yield "descriptors", lambda: [host.descriptors()]
    if settings is None:
        return
    if settings.mount.allow_other:
        yield "allow_other", lambda: [host.right_to_allow_other("/etc/fuse.conf")]
    yield "mount", lambda: [directories.mount_point(settings.mount.path)]
    uid = os.getuid()
    yield "state", lambda: directories.store_directory("state", settings.state.dir, "--state-dir", uid)
    yield "cache", lambda: directories.store_directory("cache", settings.cache.dir, "--cache-dir", uid)
    for address in settings.listen.addresses:
        yield "daemon", partial(daemon.daemon_at, address, settings.mount.path, environ)
    for configured in remote.configured(settings):
        yield configured.section, partial(remote.remote_server, configured)
    if not remote.configured(settings):
        yield "remote", remote.no_remote


def _within_time(name: str, check: Check) -> list[Finding]:
    """The findings of a check, or that it did not end: a dead network file system makes any look at a path wait."""
    result: Future[list[Finding]] = Future()

    def examine() -> None:
        try:
            result.set_result(list(check()))
        except BaseException as wrong:
            result.set_exception(wrong)  # raised again below, where somebody sees it

    # A daemon thread: one that hangs in the kernel must not keep this command from ending.
    threading.Thread(target=examine, daemon=True).start()
    try:
        return result.result(_CHECK_SECONDS)
    except TimeoutError:
        fix = "look for a dead mount or network file system: mount, df"
        return [failed(name, f"no answer within {_CHECK_SECONDS:g} s", fix)]
    except (OSError, OutputdError) as wrong:
        return [failed(name, f"could not be checked: {wrong}", "put right what the reason names")]


def _print(finding: Finding, console: Console) -> None:
    colour = {Verdict.PASS: Colour.GREEN, Verdict.WARN: Colour.YELLOW, Verdict.FAIL: Colour.RED}[
        finding.verdict
    ]
    console.print(f"{console.paint(colour, finding.verdict)}  {finding.check}: {finding.reason}")
    if finding.fix is not None:
        console.print(f"      fix: {finding.fix}")
    console.out.flush()


def _as_data(finding: Finding) -> dict[str, str | None]:
    return {
        "check": finding.check,
        "verdict": str(finding.verdict),
        "reason": finding.reason,
        "fix": finding.fix,
    }
