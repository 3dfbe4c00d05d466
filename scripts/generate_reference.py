"""Writes docs/reference from what the program itself uses: the argument parser, the table of settings, the .proto files, the table
of errors. Never from a text of its own that could grow old; tests/unit/test_docs.py proves that the pages are current.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from outputd.cli.console import ExitCode
from outputd.cli.main import VERBS, make_parser
from outputd.config.remote_settings import NamedRemote
from outputd.config.settings import REMOTES, Entry, remote_table, sections, table
from outputd.config.show import toml_value
from outputd.rpc.edge import CODES
from scripts.proto_outline import Block, Outline, outline

REPOSITORY: Final = Path(__file__).resolve().parent.parent
PROTOS: Final = REPOSITORY / "protos"
REFERENCE: Final = REPOSITORY / "docs" / "reference"

_NOTICE: Final = "<!-- Made by scripts/generate_reference.py (`make docs`); do not edit. -->"

_OWN_PROTOCOLS: Final = (
    "bazel_output_service.proto",
    "bazel_output_service_rev2.proto",
    "outputd/v1/admin.proto",
)
"""Shown with every message."""

_REV2: Final = "build/bazel/remote/execution/v2/remote_execution.proto"
_STANDARD_SERVICES: Final = (
    (_REV2, "ContentAddressableStorage"),
    (_REV2, "ActionCache"),
    (_REV2, "Capabilities"),
    ("google/bytestream/bytestream.proto", "ByteStream"),
    (_REV2, "Execution"),
    ("google/longrunning/operations.proto", "Operations"),
    ("build/bazel/remote/asset/v1/remote_asset.proto", "Fetch"),
    ("build/bazel/remote/asset/v1/remote_asset.proto", "Push"),
    ("build/bazel/remote/logstream/v1/remote_logstream.proto", "LogStreamService"),
    ("grpc/health/v1/health.proto", "Health"),
    ("grpc/reflection/v1/reflection.proto", "ServerReflection"),
    ("grpc/reflection/v1alpha/reflection_v1alpha.proto", "ServerReflection"),
)
"""Shown by their methods; their messages are everybody's."""


_OUTPUT: Final = """\
Output in a pipe or a file is plain; on a terminal, `NO_COLOR` switches colour off. Errors go to standard error, one line for
each problem, and every line begins with `outputd: `."""

_FOUR_PLACES: Final = """\
outputd needs no settings file. Each setting can be given in four places; the first that names it counts:

1. a flag of the command line, where it has one;
2. an environment variable, `OUTPUTD_<SECTION>_<KEY>`;
3. the settings file, TOML: `--config FILE`, else `$OUTPUTD_CONFIG`, else `$XDG_CONFIG_HOME/outputd/config.toml`;
4. its default.

`outputd config show --origin` prints every setting in force and where it comes from; `outputd config check` names every problem
with file, line, key, what is wrong and what would be right. An unknown key is an error.

Paths may begin with `~/` or with `$XDG_RUNTIME_DIR/`, `$XDG_STATE_HOME/`, `$XDG_CACHE_HOME/`, `$XDG_CONFIG_HOME/`. Relative
ones start from the directory of the settings file that names them, in variables and flags from the working directory. Sizes are
bytes or have a unit ("64 MiB"). In variables, lists are separated by commas and tables are written `name=value,name=value`;
empty text unsets what has no default.

Without `$XDG_RUNTIME_DIR` the runtime directory is `/run/user/<uid>` if that is there, else `/tmp/outputd-<uid>`, made for this
user alone."""


def main() -> int:
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")
        print(f"docs/reference/{name}")
    return 0


def pages() -> dict[str, str]:
    """Every generated page by its name."""
    made = {"cli.md": _cli(), "config.md": _config(), "rpcs.md": _rpcs()}
    return {name: "\n".join([_NOTICE, "", *lines]).rstrip() + "\n" for name, lines in made.items()}


# --- the command line


def _cli() -> Iterator[str]:
    parser = make_parser()
    yield "# The command line"
    yield ""
    yield f"`outputd` {_lowered(parser.description)}"
    yield ""
    yield "## Exit codes"
    yield ""
    yield "| code | name | |"
    yield "|---|---|---|"
    for code in ExitCode:
        yield f"| {code} | {code.name} | {_EXIT_CODES[code]} |"
    yield ""
    yield from _OUTPUT.splitlines()
    yield ""
    yield "## Flags for settings"
    yield ""
    yield "On every verb; each goes before its environment variable, the settings file and the default ([settings](config.md))."
    yield ""
    (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    yield from _arguments(action for action in verbs.choices["serve"]._actions if _sets_a_setting(action))
    for verb in VERBS:
        yield from _verb(verb.NAME, verbs.choices[verb.NAME])


_EXIT_CODES: Final = {
    ExitCode.OK: "what was asked for is done",
    ExitCode.FAILURE: "it did not work; for `doctor`: a check failed",
    ExitCode.USAGE: "the command line itself is wrong",
    ExitCode.SETTINGS: "a setting is wrong, in the file, the environment or a flag",
    ExitCode.NO_DAEMON: "no daemon answers at the configured address",
    ExitCode.INTERRUPTED: "ended by Ctrl-C",
    ExitCode.BROKEN_PIPE: "the reader of the output went away",
}


def _verb(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## outputd {name}"
    yield ""
    yield str(parser.description)
    yield ""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if nested:
        for inner_name, inner in nested[0].choices.items():
            yield f"### outputd {name} {inner_name}"
            yield ""
            yield str(inner.description)
            yield ""
            yield from _own_arguments(inner)
    else:
        yield from _own_arguments(parser)
    yield "```text"
    yield from str(parser.epilog).splitlines()
    yield "```"
    yield ""


def _own_arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    own = [action for action in parser._actions if action.dest != "help" and not _sets_a_setting(action)]
    shared = any(_sets_a_setting(action) for action in parser._actions)
    if own:
        yield from _arguments(own)
    if shared:
        yield f"{'And the' if own else 'The'} [flags for settings](#flags-for-settings)."
        yield ""


def _sets_a_setting(action: argparse.Action) -> bool:
    return action.dest == "config" or action.dest in table()


def _arguments(actions: Iterable[argparse.Action]) -> Iterator[str]:
    yield "| argument | |"
    yield "|---|---|"
    for action in actions:
        words = [f"`{word}`" for word in action.option_strings] or [f"`{action.metavar}`"]
        if action.option_strings and action.metavar is not None:
            words[-1] = f"`{action.option_strings[-1]} {_cell(str(action.metavar))}`"
        yield f"| {', '.join(words)} | {_cell(str(action.help))} |"
    yield ""


# --- the settings


def _config() -> Iterator[str]:
    yield "# Settings"
    yield ""
    yield from _FOUR_PLACES.splitlines()
    yield ""
    named = remote_table(["NAME"])
    for section, cls in [*sections().items(), (f"{REMOTES}.NAME", NamedRemote)]:
        yield f"## [{section}]"
        yield ""
        yield " ".join(str(cls.__doc__).split())
        yield ""
        yield "| key | type | default | |"
        yield "|---|---|---|---|"
        for entry in [*table().values(), *named.values()]:
            if entry.section == section:
                yield _setting(entry)
        yield ""
    yield "## All of it as a file"
    yield ""
    yield "```toml"
    yield from _example()
    yield "```"


def _setting(entry: Entry) -> str:
    key = entry.key
    default = "not set" if key.default is None else f"`{toml_value(key.default)}`"  # type: ignore[arg-type]  # defaults of the table are plain
    others = [f"`{entry.variable}`", *([f"`{key.flag}`"] if key.flag else [])]
    also = "" if entry.section.startswith(f"{REMOTES}.") else f" Also: {', '.join(others)}."
    return f"| `{entry.name}` | {_cell(key.kind.name)} | {_cell(default)} | {_cell(key.sentence)}{also} |"


def _example() -> Iterator[str]:
    section = ""
    for entry in table().values():
        if entry.section != section:
            if section:
                yield ""
            section = entry.section
            yield f"[{section}]"
        default = entry.key.default
        yield f"# {entry.name} = ..." if default is None else f"{entry.name} = {toml_value(default)}"  # type: ignore[arg-type]  # as above


# --- the protocols


def _rpcs() -> Iterator[str]:
    yield "# Protocols"
    yield ""
    yield "Every service answers at every address of `[listen] addresses`. Source of this page: the .proto files in `protos/`."
    yield ""
    yield "## Errors"
    yield ""
    yield "The same everywhere. A permanent error is never one that clients try again."
    yield ""
    yield "| code | when |"
    yield "|---|---|"
    for error, code in CODES.items():
        yield f"| `{code.name}` | {_cell(' '.join(str(error.__doc__).split()))} |"
    yield "| `INTERNAL` | A fault of outputd; the text names the number under which its log has the details. |"
    yield ""
    for name in _OWN_PROTOCOLS:
        yield from _protocol(name, _read(name))
    yield "## Standard services"
    yield ""
    yield (
        "The local store, and the remote server behind it. Execution, Operations, Fetch, Push and LogStreamService are the "
        "remote's, and UNIMPLEMENTED without one. Why they answer as they do: "
        "[between build tools and their remote](../explanation/proxy.md); "
        "call by call: [REv2 conformance](rev2-conformance.md)."
    )
    yield ""
    for name, service in _STANDARD_SERVICES:
        found = _read(name)
        (block,) = (block for block in found.blocks if block.name == service)
        yield f"### {found.package}.{service}"
        yield ""
        yield from _service(block)


def _read(name: str) -> Outline:
    return outline((PROTOS / name).read_text(encoding="utf-8"))


def _protocol(name: str, found: Outline) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    yield found.comment.partition("\n\n")[0]
    yield ""
    for block in found.blocks:
        yield f"### {found.package}.{block.name}"
        yield ""
        if block.comment:
            yield block.comment
            yield ""
        yield from _service(block) if block.sort == "service" else _message(block)


def _service(block: Block) -> Iterator[str]:
    yield "| method | request | reply | |"
    yield "|---|---|---|---|"
    for method in block.methods:
        yield f"| `{method.name}` | `{method.request}` | `{method.reply}` | {_cell(method.comment)} |"
    yield ""


def _message(block: Block) -> Iterator[str]:
    if not block.fields:
        yield "No fields."
        yield ""
        return
    yield "| number | name | type | |" if block.sort == "message" else "| number | name | |"
    yield "|---|---|---|---|" if block.sort == "message" else "|---|---|---|"
    for field in block.fields:
        kind = f"`{field.kind}` | " if field.kind else ""
        yield f"| {field.number} | `{field.name}` | {kind}{_cell(field.comment)} |"
    yield ""


def _cell(text: str) -> str:
    """Text for a table's cell."""
    return re.sub(r"\s*\n\s*", " ", text).replace("|", "\\|")


def _lowered(text: str | None) -> str:
    assert text
    return text[0].lower() + text[1:]


if __name__ == "__main__":
    sys.exit(main())
