"""Contents that travel inside an ActionResult: into the local store, out of a result, into one; never asks the remote.

Source: REv2, GetActionResultRequest.inline_* (a server may leave out what it likes) and OutputFile.contents.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import DigestFunction
from outputd.errors import Corrupt, Exhausted, Invalid, Unavailable
from outputd.rpc.digests import inferred_function, parse_digest
from outputd.rpc.limits import MESSAGE_LIMIT
from outputd.store.base import LocalStore
from outputd.store.waiting import in_thread

# What else is in the message, and lengths.
_ROOM: Final = MESSAGE_LIMIT - 64 * 1024


class Inlined:
    """Of results that pass."""

    def __init__(self, local: LocalStore) -> None:
        self._local = local

    async def keep(self, result: reapi.ActionResult, function: DigestFunction | None = None) -> None:
        """Put what is inlined into the local store, as far as its digest is told and right, and there is room."""
        for message, data in _inlined(result):
            told = function or inferred_function(message.hash)
            if told is None:
                continue
            try:
                digest = parse_digest(message, told, "digest")
                if digest.size == len(data) and not self._local.has(digest):
                    await in_thread(self._local.put, digest, data)
            except (Invalid, Corrupt, Exhausted, Unavailable):
                continue  # It is a cache: the client has the bytes, and judges them itself.

    def strip(self, result: reapi.ActionResult, function: DigestFunction) -> None:
        """Take out what the local store has."""
        for file in result.output_files:
            if file.contents and self._has(file.digest, function):
                file.ClearField("contents")
        if result.HasField("stdout_digest") and self._has(result.stdout_digest, function):
            result.ClearField("stdout_raw")
        if result.HasField("stderr_digest") and self._has(result.stderr_digest, function):
            result.ClearField("stderr_raw")

    def fill(
        self, result: reapi.ActionResult, request: reapi.GetActionResultRequest, function: DigestFunction
    ) -> None:
        """Put in what the request wishes, as far as the local store has it and the message has room."""
        room = _ROOM - result.ByteSize()
        if request.inline_stdout and not result.stdout_raw and result.HasField("stdout_digest"):
            result.stdout_raw = self._read(result.stdout_digest, function, room)
            room -= len(result.stdout_raw)
        if request.inline_stderr and not result.stderr_raw and result.HasField("stderr_digest"):
            result.stderr_raw = self._read(result.stderr_digest, function, room)
            room -= len(result.stderr_raw)
        wanted = set(request.inline_output_files)
        for file in result.output_files if wanted else ():
            if file.path in wanted and not file.contents:
                file.contents = self._read(file.digest, function, room)
                room -= len(file.contents)

    def _has(self, message: reapi.Digest, function: DigestFunction) -> bool:
        try:
            return self._local.has(parse_digest(message, function, "digest"))
        except Invalid:
            return False

    def _read(self, message: reapi.Digest, function: DigestFunction, room: int) -> bytes:
        """The bytes, or none of them."""
        if message.size_bytes > room:
            return b""
        return self._local.read(parse_digest(message, function, "digest")) or b""


def _inlined(result: reapi.ActionResult) -> Iterator[tuple[reapi.Digest, bytes]]:
    for file in result.output_files:
        if file.contents:
            yield file.digest, file.contents
    if result.stdout_raw and result.HasField("stdout_digest"):
        yield result.stdout_digest, result.stdout_raw
    if result.stderr_raw and result.HasField("stderr_digest"):
        yield result.stderr_digest, result.stderr_raw
