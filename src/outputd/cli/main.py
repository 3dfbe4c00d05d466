"""`outputd`: finds the verb and runs it; turns every error into one clear line and an exit code. Never does a verb's work.

What is slow to import (gRPC, the event loop, the daemon) is imported by the verb that needs it, when it runs: `outputd --help`
must not take longer than an interpreter takes to start.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final, Protocol

from outputd import __version__
from outputd.cli import (
    bazelrc,
    config,
    doctor,
    forget,
    gc,
    pin,
    prefetch,
    profile,
    restart,
    serve,
    status,
    stuck,
    top,
    verify,
    watch,
)
from outputd.cli.console import Console, ExitCode, NoDaemon
from outputd.config import InvalidSettings
from outputd.errors import OutputdError

_DESCRIPTION: Final = """\
Keeps every output of every build visible as an ordinary file, and moves only the bytes that somebody reads."""

_EPILOG: Final = """\
examples:
  outputd serve                            start, with defaults that need no settings file
  outputd serve --remote grpc://cas:8980   with a REv2 server behind the local store
  outputd bazelrc >> .bazelrc              make Bazel use it
  outputd status                           what is mounted, built, stored
  outputd gc --dry-run                     what the store holds, and what of it could go
  outputd stuck                            who waits, since when, for what
  outputd restart                          run a new version, while what is open stays open
  outputd doctor                           what is wrong, and how to put it right

exit codes: 0 done, 1 failed, 2 wrong command line, 3 wrong setting, 4 no daemon answers"""


class Verb(Protocol):
    """A module of this package: one verb."""

    @property
    def NAME(self) -> str: ...  # noqa: N802 - a module's constant
    @property
    def SUMMARY(self) -> str: ...  # noqa: N802 - as NAME
    @property
    def EXAMPLES(self) -> str: ...  # noqa: N802 - as NAME

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace, console: Console) -> int:
        """An ExitCode, or the exit code of a command that was run."""


VERBS: Final[tuple[Verb, ...]] = (
    serve,
    bazelrc,
    status,
    verify,
    prefetch,
    profile,
    pin,
    forget,
    top,
    watch,
    stuck,
    gc,
    restart,
    doctor,
    config,
)


def make_parser() -> argparse.ArgumentParser:
    """The whole command line, as `--help` and the reference page show it."""
    parser = argparse.ArgumentParser(
        prog="outputd",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"outputd {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
    for verb in VERBS:
        own = verbs.add_parser(
            verb.NAME,
            help=verb.SUMMARY[0].lower() + verb.SUMMARY[1:].rstrip("."),
            description=verb.SUMMARY,
            epilog=f"examples:\n{verb.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_arguments(own)
        own.set_defaults(run=verb.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point of the `outputd` command."""
    return run(sys.argv[1:] if arguments is None else arguments, Console.of_process())


def run(arguments: Sequence[str], console: Console) -> int:
    """Run a command line; what it says goes to `console`. argparse itself exits on a wrong one, with code 2."""
    parsed = make_parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed, console)
        console.out.flush()
    except InvalidSettings as wrong:
        console.complain(str(wrong))
        return ExitCode.SETTINGS
    except NoDaemon as wrong:
        console.complain(f"{wrong}\nstart it with `outputd serve`, or name its address with --listen")
        return ExitCode.NO_DAEMON
    except OutputdError as wrong:
        console.complain(str(wrong))
        return ExitCode.FAILURE
    except BrokenPipeError:
        # `outputd config show | head`: what is still buffered must not complain again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.BROKEN_PIPE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return code


if __name__ == "__main__":
    sys.exit(main())
