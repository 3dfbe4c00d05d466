"""Replies of BazelOutputService that grow with the request, kept small enough for any client; never leaves an item out.

Bazel's gRPC takes 4 MiB in one message. A reply that would be larger says less of its last items: files without their locators
(Bazel then reads and hashes them), symlinks without a type, refusals without words. The wire form is written by hand, one item at a
time, so that its length is known before the item is in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from outputd._proto import bazel_output_service_pb2 as bos
from outputd.builds.stats import Known, Stat, Target
from outputd.digest import Digest
from outputd.errors import Invalid, OutputdError
from outputd.rpc.bazel_locators import LocatorCodec
from outputd.rpc.edge import item_status
from outputd.rpc.limits import MESSAGE_LIMIT


def _stat_entry(stat: bos.BatchStatResponse.Stat | None) -> bytes:
    entry = bos.BatchStatResponse.StatResponse(stat=stat)
    return bos.BatchStatResponse(responses=[entry]).SerializeToString()


def _status_entry(error: OutputdError, method: str, *, words: bool) -> bytes:
    status = item_status(error, method)
    if not words:
        status.ClearField("message")
    entry = bos.StageArtifactsResponse.Response(status=status)
    return bos.StageArtifactsResponse(responses=[entry]).SerializeToString()


_ABSENT: Final = _stat_entry(None)
_FILE: Final = _stat_entry(bos.BatchStatResponse.Stat(file=bos.BatchStatResponse.Stat.File()))
_DIRECTORY: Final = _stat_entry(bos.BatchStatResponse.Stat(directory=bos.BatchStatResponse.Stat.Directory()))
_UNTYPED: Final = _stat_entry(bos.BatchStatResponse.Stat())
_STATS: Final = {
    Known.ABSENT: _ABSENT,
    Known.FILE: _FILE,
    Known.DIRECTORY: _DIRECTORY,
    Known.OTHER: _UNTYPED,
}
_LEAST_STAT: Final = max(map(len, _STATS.values()))
"""Bytes that are enough for any path."""

_OK: Final = bos.StageArtifactsResponse(responses=[bos.StageArtifactsResponse.Response()]).SerializeToString()
_LEAST_STATUS: Final = len(_status_entry(Invalid(""), "", words=False))


class StatReply:
    """A BatchStatResponse for `count` paths."""

    def __init__(self, count: int, codec: LocatorCodec) -> None:
        """Raises Invalid for more paths than a reply can hold."""
        _check_count(count, _LEAST_STAT, "paths")
        self._codec = codec
        self._entries: list[bytes] = []
        self._room = MESSAGE_LIMIT - count * _LEAST_STAT
        """Bytes that entries may take beyond the least."""

    def add(self, stats: Iterable[Stat]) -> None:
        """The next paths."""
        for stat in stats:
            if isinstance(stat, Digest):
                entry, short = self._codec.stat(stat), _FILE
            elif isinstance(stat, Target):
                entry, short = _symlink_entry(stat), _UNTYPED
            else:
                entry = short = _STATS[stat]
            room = self._room - len(entry) + _LEAST_STAT
            if room < 0:
                entry = short
                room = self._room - len(entry) + _LEAST_STAT
            self._room = room
            self._entries.append(entry)

    def message(self) -> bytes:
        """The reply, once all paths are in."""
        return b"".join(self._entries)


class StageReply:
    """A StageArtifactsResponse for `count` artifacts."""

    def __init__(self, count: int, method: str) -> None:
        """Raises Invalid for more artifacts than a reply can hold."""
        _check_count(count, _LEAST_STATUS, "artifacts")
        self._method = method
        self._entries: list[bytes] = []
        self._room = MESSAGE_LIMIT - count * _LEAST_STATUS

    def add(self, results: Iterable[OutputdError | None]) -> None:
        """The next artifacts."""
        for error in results:
            self._entries.append(_OK if error is None else self._refused(error))

    def _refused(self, error: OutputdError) -> bytes:
        entry = _status_entry(error, self._method, words=True)
        beyond = len(entry) - _LEAST_STATUS
        if beyond > self._room:
            return _status_entry(error, self._method, words=False)
        self._room -= beyond
        return entry

    def message(self) -> bytes:
        """The reply, once all artifacts are in."""
        return b"".join(self._entries)


def _check_count(count: int, least: int, field: str) -> None:
    most = MESSAGE_LIMIT // least
    if count > most:
        raise Invalid(
            f"{field}: {count} are too many for one reply of 4 MiB, which holds {most}; ask in parts"
        )


def _symlink_entry(target: bytes) -> bytes:
    """Without a type where the target is no UTF-8, which no protobuf string can say."""
    try:
        link = bos.BatchStatResponse.Stat.Symlink(target=target.decode())
    except UnicodeDecodeError:
        return _UNTYPED
    return _stat_entry(bos.BatchStatResponse.Stat(symlink=link))
