"""`outputd bazelrc`: the exact lines that make Bazel use this daemon. Never edits a file: the user appends what it prints.

Flags and their rules: Bazel 7.2 to 9 (BazelOutputServiceModule, RemoteOptions).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from outputd import __version__
from outputd.cli.console import Console, ExitCode
from outputd.cli.setting_flags import add_setting_flags, load_settings
from outputd.config import Address, Config, UnixAddress
from outputd.config.address import parse_address
from outputd.errors import OutputdError

NAME: Final = "bazelrc"
SUMMARY: Final = "Print the lines that make Bazel 7.2 or later use this daemon."
EXAMPLES: Final = """\
  outputd bazelrc >> .bazelrc
  outputd bazelrc --remote grpcs://cache.example.com

The values are those of the running daemon, or of the settings while none runs."""


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the lines depend on."""

    source: str
    endpoint: str
    mount: str
    remote: str | None
    instance_name: str
    prefixes: tuple[str, ...]
    """Of the other remotes: only outputd knows them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_setting_flags(parser)


def run(arguments: argparse.Namespace, console: Console) -> ExitCode:
    settings = load_settings(arguments, console).config
    for line in _lines(_facts(settings, console)):
        console.print(line)
    return ExitCode.OK


def _facts(settings: Config, console: Console) -> _Facts:
    from outputd.cli.running_daemon import status_of_daemon

    addresses, remote = settings.listen.addresses, settings.remote
    named = tuple(name if one.prefix is None else one.prefix for name, one in settings.remotes.items())
    try:
        status = status_of_daemon(settings, console.environ)
    except OutputdError:
        source = f"the settings: no daemon answers at {addresses[0]}; start it with `outputd serve`"
        return _Facts(
            source, _endpoint(addresses), settings.mount.path, remote.url, remote.instance_name, named
        )
    return _Facts(
        f"the running daemon, pid {status.pid}",
        _endpoint([parse_address(text) for text in status.listen_addresses]),
        status.mount.path,
        status.remote.url if status.HasField("remote") else None,
        remote.instance_name,
        tuple(one.prefix for one in status.remotes),
    )


def _endpoint(addresses: Sequence[Address]) -> str:
    # A unix socket before TCP: it is faster, and guarded by the permissions of its directory.
    return next((a for a in addresses if isinstance(a, UnixAddress)), addresses[0]).bazel


def _lines(facts: _Facts) -> Iterator[str]:
    yield f"# Made by `outputd bazelrc` {__version__} for Bazel 7.2 or later. Values from {facts.source}."
    yield ""
    yield "# Where Bazel tells outputd which outputs a build has."
    yield _flag("experimental_remote_output_service", facts.endpoint)
    yield "# Where the output trees appear. Needed: without it no Bazel accepts the service's answer."
    yield _flag("experimental_remote_output_service_output_path_prefix", f"{facts.mount}/outputs")
    yield ""
    if facts.prefixes:
        yield "# Several remotes are behind outputd, by the instance name; Bazel has to go through it. Name the one you mean:"
        yield _flag("remote_cache", facts.endpoint)
        for name in facts.prefixes:
            yield f"# {_flag('remote_instance_name', name)}"
        return
    if facts.remote is None:
        yield "# outputd itself is the cache; Bazel's output service works only together with a remote cache."
        yield _flag("remote_cache", facts.endpoint)
        return
    yield "# Bazel needs a remote cache, and it must be the one outputd reads from. Remove the # unless your .bazelrc names it"
    yield "# already, as --remote_cache or --remote_executor."
    yield f"# {_flag('remote_cache', facts.remote)}"
    if facts.instance_name:
        yield f"# {_flag('remote_instance_name', facts.instance_name)}"
    prefix = _bytestream_prefix(facts)
    if prefix is not None:
        yield "# Build results name files by bytestream:// URLs; this keeps them pointing at the server that others can reach."
        yield _flag("remote_bytestream_uri_prefix", prefix)


def _bytestream_prefix(facts: _Facts) -> str | None:
    # HOST[:PORT][/INSTANCE]; a server behind a unix socket has no name that others could use.
    assert facts.remote is not None
    if facts.remote.startswith("unix:"):
        return None
    host = facts.remote.rpartition("://")[2]
    return f"{host}/{facts.instance_name}" if facts.instance_name else host


def _flag(name: str, value: str) -> str:
    """A line for `build`, whose flags hold for test, run, coverage and clean too. Quoted as bazelrc wants it: like a shell."""
    if any(letter.isspace() or letter in "#'\"\\" for letter in value):
        value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"build --{name}={value}"
