"""A REv2 Command as a shell script, for people who want to run one action by hand. Runs nothing."""

from __future__ import annotations

import posixpath
import re
from shlex import quote
from typing import Final

from google.protobuf.message import DecodeError

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest
from outputd.drive.open_file import NotLocal
from outputd.errors import Corrupt
from outputd.store.base import LocalStore
from outputd.tree.node import FILE_MODE, Directory, File

_MAX_COMMAND: Final = 4 << 20
"""Bytes of the largest Command that is made a script; the arguments of a process take 2 MiB at most (ARG_MAX)."""
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Commands:
    """Implements tree's Script with the local store."""

    def __init__(self, local: LocalStore) -> None:
        self._local = local

    def script(self, directory: Directory, command: Digest) -> Digest | None:
        """The script lies in the local store, where it is garbage as soon as nobody uses it. Raises NotLocal while the Command is
        not here, Corrupt when it is none, and Exhausted or Unavailable."""
        if command.size > _MAX_COMMAND:
            return None
        message = self._local.read(command)
        if message is None:
            wanted = File(FILE_MODE, 0, command)
            wanted.parent = directory  # where it is told of which instance of the CAS it is
            raise NotLocal(wanted, writable=False)
        script = script_of(command, message)
        digest = Digest.of(command.function, script)
        if not self._local.has(digest):
            self._local.put(digest, script, local_only=True)
        return digest


def script_of(digest: Digest, message: bytes) -> bytes:
    """The script that does what a Command says, with the input root as the current directory. Raises Corrupt."""
    try:
        command = reapi.Command.FromString(message)
    except DecodeError as error:
        raise Corrupt(f"Command {digest}: it is no REv2 Command message") from error
    if not command.arguments:
        raise Corrupt(f"Command {digest}: it has no arguments, expected a program at least")
    lines = [
        "#!/bin/sh",
        f"# Command {digest}. To be run with the input root of the action as the current directory.",
        "set -e",
    ]
    outputs = [*command.output_paths, *command.output_files, *command.output_directories]
    # REv2: outputs are relative to the working directory, and whoever runs the command makes the directories they are in.
    parents = {posixpath.join(command.working_directory, posixpath.dirname(path)) for path in outputs}
    parents.add(command.working_directory)
    made = [quote(parent) for parent in sorted(parents) if parent]
    if made:
        lines.append(f"mkdir -p -- {' '.join(made)}")
    if command.working_directory:
        lines.append(f"cd -- {quote(command.working_directory)}")
    unusual: list[str] = []
    for variable in command.environment_variables:
        if _VARIABLE.fullmatch(variable.name):
            lines.append(f"export {variable.name}={quote(variable.value)}")
        else:
            unusual.append(quote(f"{variable.name}={variable.value}"))  # no name that a shell can export
    program = [quote(argument) for argument in command.arguments]
    lines.append(" ".join(["exec", *(["env", *unusual] if unusual else []), *program]))
    return ("\n".join(lines) + "\n").encode()
