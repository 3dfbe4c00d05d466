"""What waits for a remote that does not answer, as rows of the state database; decides nothing of it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from outputd.builds.state import State
from outputd.digest import Digest

_REFUSED: Final = "UPDATE {} SET refused = ? WHERE instance_name = ? AND {} = ? AND queued = ?"
_DROP: Final = "DELETE FROM {} WHERE instance_name = ? AND {} = ? AND queued = ?"
_BLOBS: Final = ("queued_blob", "digest")
_RESULTS: Final = ("queued_result", "action")


class Key(NamedTuple):
    """A blob, or the result of an action."""

    instance_name: str
    """As the client called it."""
    digest: Digest
    """Of the blob, or of the action."""
    is_result: bool


class Row(NamedTuple):
    """One that waits, or that was refused."""

    key: Key
    size: int
    """Bytes of the blob, or of the request that has the result."""
    queued: int
    """When, in nanoseconds since 1970. No two times of one key are equal: it tells what replaced what."""
    refused: str | None
    """Why nobody tries it any more."""


class QueuedRows:
    """Writes outlive a SIGKILL when they have returned; a power cut may take the last of them."""

    def __init__(self, state: State) -> None:
        self._state = state

    def all(self) -> list[Row]:
        """In the order in which they came, blobs first. Raises Corrupt or Unavailable."""
        found = []
        blobs = self._state.rows(
            "SELECT instance_name, digest, queued, refused FROM queued_blob ORDER BY queued"
        )
        for name, digest, queued, refused in blobs:
            key = Key(name, Digest(digest), is_result=False)
            found.append(Row(key, key.digest.size, queued, refused))
        results = self._state.rows(
            "SELECT instance_name, action, length(request), queued, refused FROM queued_result ORDER BY queued"
        )
        for name, action, size, queued, refused in results:
            found.append(Row(Key(name, Digest(action), is_result=True), size, queued, refused))
        return found

    def request(self, key: Key) -> bytes | None:
        """The one that has a result. Raises Corrupt or Unavailable."""
        rows = self._state.rows(
            "SELECT request FROM queued_result WHERE instance_name = ? AND action = ?", key[:2]
        )
        return bytes(rows[0][0]) if rows else None

    async def add_blobs(self, rows: Collection[Row]) -> None:
        """In place of earlier ones. Raises Exhausted or Unavailable."""
        values = [(*row.key[:2], row.queued) for row in rows]
        await self._state.written(
            lambda connection: connection.executemany(
                "INSERT OR REPLACE INTO queued_blob VALUES (?, ?, ?, NULL)", values
            ),
            durable=False,
        )

    async def add_result(self, row: Row, request: bytes) -> None:
        """In place of an earlier one. Raises Exhausted or Unavailable."""
        values = (*row.key[:2], request, row.queued)
        await self._state.written(
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO queued_result VALUES (?, ?, ?, ?, NULL)", values
            ),
            durable=False,
        )

    def refuse(self, rows: Collection[Row]) -> None:
        """Note why these are not tried any more, soon, unless they were replaced meanwhile."""
        self._apply(_REFUSED, [(row, (row.refused,)) for row in rows])

    def drop(self, rows: Collection[Row]) -> None:
        """Take these away, soon, unless they were replaced meanwhile."""
        self._apply(_DROP, [(row, ()) for row in rows])

    def _apply(self, statement: str, rows: list[tuple[Row, tuple[str | None, ...]]]) -> None:
        for table, is_result in ((_BLOBS, False), (_RESULTS, True)):
            values: list[tuple[object, ...]] = [
                (*before, *row.key[:2], row.queued) for row, before in rows if row.key.is_result is is_result
            ]
            if values:
                self._write(statement.format(*table), values)

    def _write(self, statement: str, values: list[tuple[object, ...]]) -> None:
        self._state.write_soon(lambda connection: connection.executemany(statement, values))
