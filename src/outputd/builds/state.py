"""What a restart finds again: Directory messages, attribute records, one row for each output path, action results. Never decides
what is worth keeping.

One SQLite file in write-ahead mode. Reads are short and happen on the event loop; everything is written by one thread with a
connection of its own, in the order in which it was asked for. What is not written yet can be read as if it were.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, TypeVar

from outputd.builds.database import connect, failed, number_of, open_database
from outputd.builds.lock import STATE, DirectoryLock
from outputd.digest import Digest, DigestFunction
from outputd.disk.disk import Disk
from outputd.errors import OutputdError

_log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")

_NUMBERS: Final = 16
"""Volume numbers that are reserved by one write."""
_SWEPT_AT_ONCE: Final = 200
"""Rows of one transaction of a sweep: it takes about a millisecond, in which nobody else writes or looks for a message."""


@dataclass(frozen=True, slots=True)
class SavedBase:
    """An output base as it is kept; one row."""

    id: str
    number: int
    """Of the volume that was saved. The next run gives it another: inode numbers handed out after this was saved must never
    come again."""
    instance_name: str
    function: DigestFunction
    root: bytes
    """The root directory as a leftover of records.py, with an empty name: attributes, digest and record digest."""
    created: int
    """Nanoseconds since 1970, as below."""
    last_build_id: str
    """Of the last build that ended; empty when none did."""
    last_build_time: int
    unfinished: bytes
    """Local files that were not blobs yet (unfinished.py)."""
    journal: int
    """Sequence number of the journal that goes on from here (journals.py)."""


class _Objects:
    """Content-addressed things on their way to the disk."""

    __slots__ = ("directories", "records")

    def __init__(self) -> None:
        self.directories: dict[Digest, bytes] = {}
        self.records: dict[bytes, bytes] = {}


class State:
    """The state directory of one daemon. Implements drive's Objects; `sink` is for sealing. Its methods may be called from any
    thread unless they are coroutines."""

    def __init__(self, directory: str, disk: Disk, lock: int = -1) -> None:
        """Lock the directory, or go on with a `lock` that was kept, and open the database. Raises Precondition, Exhausted or
        Unavailable."""
        self._path = f"{directory}/state.db"
        with ExitStack() as opened:
            self._lock = DirectoryLock(STATE, directory, disk, lock)
            opened.callback(self._lock.close)
            self._writing_connection, self.set_aside = open_database(self._path, disk)
            opened.callback(self._writing_connection.close)
            self.id: Final = f"{number_of(self._writing_connection, self._path):016x}"
            """Of this database: whose private files lie in a cache directory."""
            self._reading_connection = connect(self._path)
            opened.callback(self._reading_connection.close)
            row = self._read("SELECT value FROM meta WHERE name = 'next_number'", ())
            self._opened = opened.pop_all()
        # 0 is the volume of the mount's own directories.
        self._next_number = self._reserved_number = 1 if row is None else row[0]
        self._writer = ThreadPoolExecutor(1, "outputd-state")
        self._guard = threading.Lock()
        """Of the four fields below."""
        self._fresh = _Objects()
        """Not written yet."""
        self._in_flight = _Objects()
        """Being written."""
        self._flush_due = False
        self._noted: set[bytes] | None = None
        """While a sweep is on: digests of messages and records that somebody looked for or brought since it began."""
        self.sink: Final = StateSink(self)

    async def close(self) -> None:
        """Write what is left, give the directory free. The last one of its kind that may be called."""
        try:
            await asyncio.wrap_future(self._writer.submit(self._commit, None, False))
        except OutputdError as error:
            _log.error("what was loaded lately will have to be loaded again: %s", error)
        finally:
            self._writer.shutdown(wait=True)
            self._opened.close()

    def keep_lock(self) -> int:
        """See DirectoryLock.keep."""
        return self._lock.keep()

    # drive's Objects

    def directory(self, digest: Digest) -> bytes | None:
        """A Directory message. Raises Corrupt or Unavailable."""
        with self._guard:
            # Before it is looked for: a sweep must not take away what somebody is told is here.
            self._note(digest)
        return self.peek_directory(digest)

    def record(self, digest: bytes) -> bytes | None:
        """An attribute record. Raises Corrupt or Unavailable."""
        with self._guard:
            self._note(digest)
        return self.peek_record(digest)

    def peek_directory(self, digest: Digest) -> bytes | None:
        """As `directory`, by whom a sweep need not wait for. Raises Corrupt or Unavailable."""
        with self._guard:
            # By default of `get`, not by `or`: the message of an empty directory is empty.
            message = self._fresh.directories.get(digest, self._in_flight.directories.get(digest))
        if message is None:
            row = self._read("SELECT message FROM directory WHERE digest = ?", (digest,))
            message = None if row is None else row[0]
        return message

    def peek_record(self, digest: bytes) -> bytes | None:
        """As `record`, the same way. Raises Corrupt or Unavailable."""
        with self._guard:
            record = self._fresh.records.get(digest, self._in_flight.records.get(digest))
        if record is None:
            row = self._read("SELECT record FROM record WHERE digest = ?", (digest,))
            record = None if row is None else row[0]
        return record

    def keep_directories(self, messages: Mapping[Digest, bytes]) -> None:
        """Keep messages that were loaded, soon."""
        with self._guard:
            self._fresh.directories.update(messages)
            for digest in messages if self._noted is not None else ():
                self._note(digest)
            due, self._flush_due = self._flush_due, True
        if not due:
            self._writer.submit(self._flush)

    def seal_directory(self, digest: Digest, message: bytes) -> None:
        """Keep a sealed directory with the next save."""
        with self._guard:
            self._fresh.directories[digest] = message
            self._note(digest)

    def seal_record(self, digest: bytes, record: bytes) -> None:
        """Keep an attribute record with the next save."""
        with self._guard:
            self._fresh.records[digest] = record
            self._note(digest)

    # output bases

    def bases(self) -> list[SavedBase]:
        """All that were saved, by id. Raises Corrupt or Unavailable."""
        rows = self.rows(
            "SELECT id, number, instance_name, digest_function, root, created, last_build_id, last_build_time, unfinished,"
            " journal"
            " FROM output_base ORDER BY id"
        )
        return [SavedBase(row[0], row[1], row[2], DigestFunction(row[3]), *row[4:]) for row in rows]

    def finalized(self, output_base_id: str) -> bytes | None:
        """The finalized paths saved with a base, None when they are not tracked. Raises Corrupt or Unavailable."""
        row = self._read("SELECT paths FROM finalized WHERE output_base_id = ?", (output_base_id,))
        return None if row is None else row[0]

    async def save(self, base: SavedBase, finalized: bytes | None) -> None:
        """Keep a base, and everything sealed so far, in one transaction that survives a power cut when this returns.

        Raises Exhausted or Unavailable; then the earlier state of the base is what a restart finds, and the next save writes what
        this one could not.
        """

        def write(connection: sqlite3.Connection) -> None:
            self._write_reservation(connection)
            connection.execute(
                "INSERT OR REPLACE INTO output_base VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    base.id,
                    base.number,
                    base.instance_name,
                    int(base.function),
                    base.root,
                    base.created,
                    base.last_build_id,
                    base.last_build_time,
                    base.unfinished,
                    base.journal,
                ),
            )
            if finalized is None:
                connection.execute("DELETE FROM finalized WHERE output_base_id = ?", (base.id,))
            else:
                connection.execute("INSERT OR REPLACE INTO finalized VALUES (?, ?)", (base.id, finalized))

        await self.written(write)

    async def forget(self, output_base_id: str) -> None:
        """Drop a base, durably; fine when there is none. Raises Exhausted or Unavailable."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM output_base WHERE id = ?", (output_base_id,))
            connection.execute("DELETE FROM finalized WHERE output_base_id = ?", (output_base_id,))

        await self.written(write)

    def use_no_number_below(self, number: int) -> None:
        """Numbers up to there were in use, whatever was written of it."""
        self._next_number = max(self._next_number, number)

    def take_number(self) -> int:
        """A volume number that no volume ever had.

        The reservation is under way when this returns; whatever is saved of the volume is written after it or with it.
        """
        number = self._next_number
        self._next_number += 1
        if self._next_number > self._reserved_number:
            self._reserved_number = number + _NUMBERS
            self._writer.submit(self._reserve)
        return number

    # pins

    def pins(self) -> list[tuple[str, bytes]]:
        """Output base and pattern of each. Raises Corrupt or Unavailable."""
        return [(base, pattern) for base, pattern in self.rows("SELECT output_base_id, pattern FROM pin")]

    async def pin(self, output_base_id: str, patterns: Sequence[bytes]) -> None:
        """Keep these, durably; fine when they are there. Raises Exhausted or Unavailable."""

        def write(connection: sqlite3.Connection) -> None:
            rows = [(output_base_id, pattern) for pattern in patterns]
            connection.executemany("INSERT OR IGNORE INTO pin VALUES (?, ?)", rows)

        await self.written(write)

    async def unpin(self, output_base_id: str, patterns: Sequence[bytes]) -> int:
        """Drop these, or all of the base when there are none; how many that were. Raises Exhausted or Unavailable."""
        known = {pattern for base, pattern in self.pins() if base == output_base_id}
        going = known.intersection(patterns) if patterns else known

        def write(connection: sqlite3.Connection) -> None:
            rows = [(output_base_id, pattern) for pattern in going]
            connection.executemany("DELETE FROM pin WHERE output_base_id = ? AND pattern = ?", rows)

        await self.written(write)
        return len(going)

    # ActionResults of the action cache service

    async def get(self, instance: str, action: Digest) -> bytes | None:
        """An action's result. Raises Corrupt or Unavailable."""
        row = self._read(
            "SELECT result FROM action_result WHERE instance_name = ? AND action = ?", (instance, action)
        )
        return None if row is None else row[0]

    async def put(self, instance: str, action: Digest, result: bytes) -> None:
        """Keep an action's result in place of an earlier one. Raises Exhausted or Unavailable."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO action_result VALUES (?, ?, ?)", (instance, action, result)
            )

        # A result that a power cut takes away costs running the action again.
        await self.written(write, durable=False)

    def results(self, after: tuple[str, bytes]) -> list[tuple[str, Digest, bytes]]:
        """Some results by instance and action, from after these on; none at the end. Raises Corrupt or Unavailable."""
        rows = self.rows(
            "SELECT instance_name, action, result FROM action_result WHERE (instance_name, action) > (?, ?)"
            f" ORDER BY instance_name, action LIMIT {_SWEPT_AT_ONCE}",
            after,
        )
        return [(row[0], Digest(row[1]), row[2]) for row in rows]

    async def drop_results(self, results: Sequence[tuple[str, Digest, bytes]]) -> None:
        """Drop these results, unless they were replaced meanwhile. Raises Exhausted or Unavailable."""

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "DELETE FROM action_result WHERE instance_name = ? AND action = ? AND result = ?", results
            )

        await self.written(write, durable=False)

    # tables of others: their rows are their own business

    def rows(self, query: str, arguments: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """What a query finds. Raises Corrupt or Unavailable."""
        try:
            return self._reading_connection.execute(query, arguments).fetchall()
        except sqlite3.Error as error:
            raise failed(error, self._path) from error

    async def written(self, write: Callable[[sqlite3.Connection], object], *, durable: bool = True) -> None:
        """One transaction; only a `durable` one outlives a power cut for sure. Raises Exhausted or Unavailable."""
        await self._submitted(self._commit, write, durable)

    def write_soon(self, write: Callable[[sqlite3.Connection], object]) -> None:
        """The same without waiting. A failure is logged: for what does no harm when it comes back after a restart."""
        self._writer.submit(self._write_unasked, write)

    # what nobody needs any more

    def begin_sweep(self) -> None:
        """To be called before marking begins: what is looked for or brought from here on is kept, marked or not."""
        with self._guard:
            self._noted = set()

    async def sweep(self, marked: Container[bytes]) -> int:
        """Drop the messages and records that are not marked, in small transactions between which everybody else writes; how many
        those were. Ends what `begin_sweep` began. Raises Exhausted or Unavailable.
        """
        dropped = 0
        try:
            for table in ("directory", "record"):
                after: bytes | None = b""
                while after is not None:
                    after, some = await self._submitted(self._sweep_some, table, after, marked)
                    dropped += some
        finally:
            self.end_sweep()
        return dropped

    def end_sweep(self) -> None:
        """Nothing more is dropped; for a marking that failed."""
        with self._guard:
            self._noted = None

    # within

    def _note(self, digest: bytes) -> None:
        if self._noted is not None:
            self._noted.add(digest)

    def _read(self, query: str, arguments: tuple[object, ...]) -> tuple[Any, ...] | None:
        try:
            row: tuple[Any, ...] | None = self._reading_connection.execute(query, arguments).fetchone()
        except sqlite3.Error as error:
            raise failed(error, self._path) from error
        return row

    async def _submitted(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        # Shielded: whoever asked may leave, but what was begun is not to be dropped from the queue.
        return await asyncio.shield(asyncio.wrap_future(self._writer.submit(work, *arguments, **named)))

    # in the writing thread

    def _flush(self) -> None:
        with self._guard:
            self._flush_due = False
        try:
            self._commit(None, False)
        except OutputdError as error:
            _log.error("cannot keep what was loaded, it stays in memory: %s", error)

    def _write_unasked(self, write: Callable[[sqlite3.Connection], object]) -> None:
        try:
            self._commit(write, False)
        except OutputdError as error:
            _log.error("cannot be noted, and is looked at again after a restart: %s", error)

    def _reserve(self) -> None:
        try:
            self._commit(self._write_reservation, True)
        except OutputdError as error:
            _log.error("cannot reserve volume numbers, the next save does it: %s", error)

    def _write_reservation(self, connection: sqlite3.Connection) -> None:
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('next_number', ?)", (self._reserved_number,))

    def _commit(self, write: Callable[[sqlite3.Connection], object] | None, durable: bool) -> None:
        """One transaction with everything that is fresh by now and what `write` adds."""
        connection = self._writing_connection
        with self._guard:
            taken = self._in_flight = self._fresh
            self._fresh = _Objects()
        try:
            # FULL syncs the log at this commit (and with it all commits before), NORMAL only now and then.
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR IGNORE INTO directory VALUES (?, ?)", taken.directories.items())
            connection.executemany("INSERT OR IGNORE INTO record VALUES (?, ?)", taken.records.items())
            if write is not None:
                write(connection)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            with self._guard:
                taken.directories.update(self._fresh.directories)
                taken.records.update(self._fresh.records)
                self._fresh = taken
                self._in_flight = _Objects()
            self._roll_back()
            raise failed(error, self._path) from error
        with self._guard:
            self._in_flight = _Objects()

    def _sweep_some(self, table: str, after: bytes, marked: Container[bytes]) -> tuple[bytes | None, int]:
        """Look at the next rows of a table; the last one's digest, None at the end, and how many were dropped."""
        connection = self._writing_connection
        try:
            rows = connection.execute(
                f"SELECT digest FROM {table} WHERE digest > ? ORDER BY digest LIMIT {_SWEPT_AT_ONCE}",
                (after,),
            ).fetchall()
            doomed = [row for row in rows if row[0] not in marked]
            if doomed:
                # No checkpoint at this commit: it would sync, and readers wait for the guard meanwhile.
                connection.execute("PRAGMA wal_autocheckpoint=0")
                connection.execute("BEGIN IMMEDIATE")
                with self._guard:
                    # What was noted by now stays; what is looked for later will not be found.
                    noted = self._noted or set()
                    doomed = [row for row in doomed if row[0] not in noted]
                    connection.executemany(f"DELETE FROM {table} WHERE digest = ?", doomed)
                    connection.execute("COMMIT")
                connection.execute(f"PRAGMA incremental_vacuum({_SWEPT_AT_ONCE})").fetchall()
        except sqlite3.Error as error:
            self._roll_back()
            raise failed(error, self._path) from error
        finally:
            connection.execute("PRAGMA wal_autocheckpoint=1000")
        return rows[-1][0] if len(rows) == _SWEPT_AT_ONCE else None, len(doomed)

    def _roll_back(self) -> None:
        try:
            if self._writing_connection.in_transaction:
                self._writing_connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            # The first error is the one to raise; with this one, the next commit fails as well and says so.
            _log.error("%s: cannot roll back: %s", self._path, error)


class StateSink:
    """Takes what sealing makes (tree.merkle's Sink) into a State."""

    __slots__ = ("_state",)

    def __init__(self, state: State) -> None:
        self._state = state

    def directory(self, digest: Digest, message: bytes) -> None:
        self._state.seal_directory(digest, message)

    def record(self, digest: bytes, record: bytes) -> None:
        self._state.seal_record(digest, record)
