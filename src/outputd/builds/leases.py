"""What is known to be obtainable, since when: facts about digests, never about a tree or a path. Asks nobody itself.

A lease says that at some moment every blob of a directory was in the remote CAS or whole in the local store. Leases are named by
digests, so they hold for every tree with that content and outlive restarts; the one of a subtree spares looking into it at all.

A lease is true of one place: an instance of one server, or the local store alone. It says nothing of any other, and a change of one
server in the settings changes nothing for the rest.

They lie in an SQLite file of their own in the cache directory: who wipes the cache wipes what was known of it, and a save of a tree
never waits for them. All of it can be lost: then everything is asked for once more. So nothing is synced, and
what was written before a power cut is dropped, for the cut may have taken blobs that nobody but us had.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import sqlite3
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, TypeAlias

from outputd.builds.database import connect, failed
from outputd.digest import Digest, DigestFunction
from outputd.disk.boot import boot_id
from outputd.disk.disk import Disk
from outputd.errors import Corrupt, OutputdError

_log = logging.getLogger(__name__)

_FORMAT: Final = 2
_OLD_FILE: Final = re.compile(r"leases-[0-9a-f]{16}\.db(-wal|-shm)?")
"""Of format 1, which had a file for each set of remotes."""
_SCHEMA: Final = """
CREATE TABLE running(boot TEXT NOT NULL, ended INTEGER NOT NULL);
CREATE TABLE lease(
  place TEXT NOT NULL,
  key BLOB NOT NULL,
  asked INTEGER NOT NULL,
  blobs INTEGER NOT NULL,
  PRIMARY KEY(place, key)
) WITHOUT ROWID;
"""
_KEYS_A_QUERY: Final = 500


class Lease(NamedTuple):
    """Every one of these blobs was obtainable then."""

    asked: int
    """When the one was asked for that was asked for longest ago; nanoseconds since 1970."""
    blobs: int
    """How many they are; a blob is counted once for each directory that names it."""


_Changes: TypeAlias = "dict[tuple[str, bytes], Lease | None]"
"""Leases by place and key; None: to be deleted."""


def files_key(directory: Digest) -> bytes:
    """Names the lease of the files that a Directory message lists itself."""
    return b"f" + directory


def sent_key(directory: Digest) -> bytes:
    """Names the lease of a Directory message and everything in and below it, in the remote itself."""
    return b"u" + directory


def subtree_key(digest: Digest | None, record: bytes | None, tree: Digest | None) -> bytes | None:
    """Names the lease of everything in and below a directory; None while what it holds has no digest.

    With the attribute record: it may hold entries that the message cannot name (docs/explanation/identity.md).
    """
    if record is None:
        return None
    if digest is not None:
        return b"s" + digest + record
    return None if tree is None else b"t" + tree + record


class Leases:
    """The leases of all remotes, or of the local store alone. Lives on the event loop; one thread of its own writes."""

    def __init__(
        self,
        directory: str,
        place: Callable[[str], str],
        disk: Disk,
        *,
        boot: Callable[[], str] | None = None,
    ) -> None:
        """`place` tells where an instance name is asked for (store/routing.py); `boot` names the time since the machine started.

        Raises Unavailable or Exhausted.
        """
        self._path = f"{directory}/leases.db"
        self._place = place
        self._fresh: _Changes = {}
        """Not handed to the writer yet."""
        self._in_flight: list[_Changes] = []
        """Being written, in order. The writer takes off what it has done; nobody else changes what is in here."""
        self._writer = ThreadPoolExecutor(1, "outputd-leases")
        this_boot = boot() if boot is not None else boot_id().hex()
        with contextlib.ExitStack() as opened:
            try:
                self._writing_connection = _open(self._path, this_boot)
            except Corrupt as error:
                _log.warning("%s: begun anew, it cannot be read: %s", self._path, error)
                for suffix in ("", "-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        disk.unlink(self._path + suffix)
                self._writing_connection = _open(self._path, this_boot)
            opened.callback(self._writing_connection.close)
            self._reading_connection = connect(self._path)
            opened.callback(self._reading_connection.close)
            self._opened = opened.pop_all()
        _remove_old(directory, disk)

    async def close(self) -> None:
        """Write what is left, and that all is in order."""
        try:
            await self.flush()
            await asyncio.wrap_future(self._writer.submit(self._write_end))
        finally:
            self._writer.shutdown(wait=True)
            self._opened.close()

    def get(self, instance_name: str, keys: Collection[bytes]) -> dict[bytes, Lease]:
        """Those that are known. None are when they cannot be read, which is logged."""
        found: dict[bytes, Lease] = {}
        wanted: list[bytes] = []
        unwritten = [self._fresh, *reversed(self._in_flight)]
        place = self._place(instance_name)
        for key in keys:
            for changes in unwritten:
                if (place, key) in changes:
                    lease = changes[place, key]
                    if lease is not None:
                        found[key] = lease
                    break
            else:
                wanted.append(key)
        for start in range(0, len(wanted), _KEYS_A_QUERY):
            some = wanted[start : start + _KEYS_A_QUERY]
            marks = ",".join("?" * len(some))
            try:
                rows = self._reading_connection.execute(
                    f"SELECT key, asked, blobs FROM lease WHERE place = ? AND key IN ({marks})",
                    (place, *some),
                ).fetchall()
            except sqlite3.Error as error:
                _log.warning(
                    "leases cannot be read, so everything is asked for: %s", failed(error, self._path)
                )
                return {}
            found.update((key, Lease(asked, blobs)) for key, asked, blobs in rows)
        return found

    def put(self, instance_name: str, leases: Mapping[bytes, Lease]) -> None:
        """Known from now on, written with the next `flush`."""
        place = self._place(instance_name)
        for key, lease in leases.items():
            self._fresh[place, key] = lease

    def drop(self, instance_name: str, keys: Collection[bytes]) -> None:
        """These are not true any more, nor is that the remote has what they were about."""
        place = self._place(instance_name)
        for key in keys:
            self._fresh[place, key] = None
            if key[:1] in (b"f", b"s"):
                directory = Digest(key[1 : 10 + DigestFunction(key[1]).hash_length])
                self._fresh[place, sent_key(directory)] = None

    async def flush(self) -> None:
        """Write what is fresh. A failure is logged: what is not written is asked for again after a restart."""
        if self._fresh:
            changes, self._fresh = self._fresh, {}
            self._in_flight.append(changes)
            await asyncio.shield(asyncio.wrap_future(self._writer.submit(self._write, changes)))

    async def forget_before(self, asked: int) -> None:
        """Delete those that are older, of trees that are gone."""
        await asyncio.shield(asyncio.wrap_future(self._writer.submit(self._delete_before, asked)))

    # in the writing thread

    def _write(self, changes: _Changes) -> None:
        kept = [(*name, *lease) for name, lease in changes.items() if lease is not None]
        dropped = [name for name, lease in changes.items() if lease is None]

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?)", kept)
            connection.executemany("DELETE FROM lease WHERE place = ? AND key = ?", dropped)

        self._commit(write)
        del self._in_flight[0]  # the writer has one thread

    def _delete_before(self, asked: int) -> None:
        self._commit(lambda connection: connection.execute("DELETE FROM lease WHERE asked < ?", (asked,)))

    def _write_end(self) -> None:
        self._commit(lambda connection: connection.execute("UPDATE running SET ended = 1"))

    def _commit(self, write: Callable[[sqlite3.Connection], object]) -> None:
        connection = self._writing_connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            write(connection)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            _log.warning("leases cannot be kept, they will be asked for again: %s", failed(error, self._path))
            if connection.in_transaction:
                connection.rollback()


def _remove_old(directory: str, disk: Disk) -> None:
    """What an earlier outputd kept is asked for once more: its files do not tell the places apart."""
    for name in filter(_OLD_FILE.fullmatch, disk.list(directory)):
        try:
            disk.unlink(f"{directory}/{name}")
        except OSError as error:
            _log.warning("%s/%s, of an earlier outputd, cannot be removed: %s", directory, name, error)


def _open(path: str, this_boot: str) -> sqlite3.Connection:
    """Raises Corrupt for what is not ours or damaged, Unavailable or Exhausted."""
    connection = connect(path)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.executescript(
                f"BEGIN; {_SCHEMA} INSERT INTO running VALUES ('', 1); PRAGMA user_version={_FORMAT}; COMMIT;"
            )
        elif version != _FORMAT:
            raise Corrupt(f"it has format {version}, expected {_FORMAT}")
        boot, ended = connection.execute("SELECT boot, ended FROM running").fetchone()
        connection.execute("SELECT place, key, asked, blobs FROM lease LIMIT 1")
        if not ended and boot != this_boot:
            connection.execute("DELETE FROM lease")
        connection.execute("UPDATE running SET boot = ?, ended = 0", (this_boot,))
    except (sqlite3.Error, OutputdError) as error:
        connection.close()
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
            raise Corrupt(f"its tables are not those of leases: {error}") from error
        if isinstance(error, sqlite3.Error):
            raise failed(error, path) from error
        raise
    return connection
