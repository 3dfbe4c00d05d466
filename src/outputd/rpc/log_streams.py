"""LogStream, passed on to the remote, and the names by which one of several is found again. Never reads a log.

Messages of LogStream carry no instance name. So a remote that has a prefix gets it in front of the names of its streams, as
clients see them: `lab/main/logStreams/1` is `main/logStreams/1` of `[remotes.lab]`. A parent begins with an
instance name, as BuildGrid's clients have it.
"""

from __future__ import annotations

from typing import Final

from outputd._proto import remote_logstream_pb2 as logstream
from outputd.rpc.edge import Context
from outputd.rpc.passing import Passing

_LOGS: Final = logstream.DESCRIPTOR.services_by_name["LogStreamService"].methods_by_name
_PATIENCE: Final = 60.0


def given(prefix: str, name: str) -> str:
    """What a client is told in place of a name of a remote's."""
    return f"{prefix}/{name}" if prefix and name else name


def asked(passing: Passing, name: str) -> tuple[str, str]:
    """The prefix of the remote that has a stream of which a client speaks, and what that one calls it."""
    prefix = passing.prefix(name)
    return prefix, name.removeprefix(prefix).removeprefix("/") if prefix else name


class LogStreamService:
    """The service. ByteStream passes on what is read from and written to a log stream (byte_stream.py)."""

    def __init__(self, passing: Passing) -> None:
        self._passing = passing

    async def create_log_stream(
        self, request: logstream.CreateLogStreamRequest, context: Context
    ) -> logstream.LogStream:
        prefix = self._passing.prefix(request.parent)
        if prefix:
            request.parent = self._passing.instance(request.parent)
        reply = await self._passing.call(
            _LOGS["CreateLogStream"], request, logstream.LogStream, context, _PATIENCE, prefix
        )
        reply.name = given(prefix, reply.name)
        reply.write_resource_name = given(prefix, reply.write_resource_name)
        return reply
