"""The file `state.db`: its format, opening it, and what becomes of one that cannot be read; never knows what the rows mean.

The format's number stands in `user_version`, our mark in `application_id`. A newer format is refused, an older one
migrated. A file that is no database of
ours, or a damaged one, is set aside under another name and never deleted.
"""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import time
from typing import Final

from outputd.disk.disk import Disk
from outputd.errors import Corrupt, Exhausted, OutputdError, Precondition, Unavailable
from outputd.store.owners import DAMAGED

_log = logging.getLogger(__name__)

FORMAT: Final = 4
_MARK: Final = 0x6F757470
"""`outp`, so that file(1) and we can tell our databases from others."""

_SCHEMA: Final = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE directory(digest BLOB PRIMARY KEY, message BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE record(digest BLOB PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE output_base(
  id TEXT PRIMARY KEY,
  number INTEGER NOT NULL UNIQUE,
  instance_name TEXT NOT NULL,
  digest_function INTEGER NOT NULL,
  root BLOB NOT NULL,
  created INTEGER NOT NULL,
  last_build_id TEXT NOT NULL,
  last_build_time INTEGER NOT NULL,
  unfinished BLOB NOT NULL,
  journal INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE finalized(output_base_id TEXT PRIMARY KEY, paths BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE action_result(
  instance_name TEXT NOT NULL,
  action BLOB NOT NULL,
  result BLOB NOT NULL,
  PRIMARY KEY(instance_name, action)
) WITHOUT ROWID;
CREATE TABLE pin(output_base_id TEXT, pattern BLOB, PRIMARY KEY(output_base_id, pattern)) WITHOUT ROWID;
CREATE TABLE queued_blob(
  instance_name TEXT NOT NULL,
  digest BLOB NOT NULL,
  queued INTEGER NOT NULL,
  refused TEXT,
  PRIMARY KEY(instance_name, digest)
) WITHOUT ROWID;
CREATE TABLE queued_result(
  instance_name TEXT NOT NULL,
  action BLOB NOT NULL,
  request BLOB NOT NULL,
  queued INTEGER NOT NULL,
  refused TEXT,
  PRIMARY KEY(instance_name, action)
) WITHOUT ROWID;
"""

_MIGRATIONS: Final = {
    # No journal had a number that low: there is none to play back.
    1: "ALTER TABLE output_base RENAME TO old;"
    " CREATE TABLE output_base(\n  id TEXT PRIMARY KEY,\n  number INTEGER NOT NULL UNIQUE,\n  instance_name TEXT NOT NULL,\n"
    "  digest_function INTEGER NOT NULL,\n  root BLOB NOT NULL,\n  created INTEGER NOT NULL,\n  last_build_id TEXT NOT NULL,\n"
    "  last_build_time INTEGER NOT NULL,\n  unfinished BLOB NOT NULL,\n  journal INTEGER NOT NULL\n) WITHOUT ROWID;"
    " INSERT INTO output_base SELECT *, 0 FROM old; DROP TABLE old;",
    2: "CREATE TABLE pin(output_base_id TEXT, pattern BLOB, PRIMARY KEY(output_base_id, pattern)) WITHOUT ROWID;",
    3: "CREATE TABLE queued_blob(\n  instance_name TEXT NOT NULL,\n  digest BLOB NOT NULL,\n  queued INTEGER NOT NULL,\n"
    "  refused TEXT,\n  PRIMARY KEY(instance_name, digest)\n) WITHOUT ROWID;"
    " CREATE TABLE queued_result(\n  instance_name TEXT NOT NULL,\n  action BLOB NOT NULL,\n  request BLOB NOT NULL,\n"
    "  queued INTEGER NOT NULL,\n  refused TEXT,\n  PRIMARY KEY(instance_name, action)\n) WITHOUT ROWID;",
}
"""From each older format to the next one."""

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)


def open_database(path: str, disk: Disk) -> tuple[sqlite3.Connection, str | None]:
    """A connection to the database at `path`, made if need be, and where a damaged one was put, if there was one.

    Raises Precondition for a newer format, Exhausted or Unavailable when the disk does not let us.
    """
    try:
        return _open(path), None
    except Corrupt as error:
        aside = _set_aside(path, disk)
        _log.error(
            "%s cannot be read (%s): it was set aside as %s, and outputd starts without any output path of earlier builds",
            path,
            error,
            aside,
        )
        return _open(path), aside


def connect(path: str) -> sqlite3.Connection:
    """One more connection to an open database. It may be used by one thread after another."""
    try:
        connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous=NORMAL")
    except sqlite3.Error as error:
        raise failed(error, path) from error
    return connection


def failed(error: sqlite3.Error, path: str) -> OutputdError:
    """An error of SQLite in our words."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    text = f"{path}: {error}"
    if code == sqlite3.SQLITE_FULL:
        return Exhausted(text)
    if code in _DAMAGED:
        return Corrupt(text)
    return Unavailable(text)


def number_of(connection: sqlite3.Connection, path: str) -> int:
    """A random number that the database keeps from the first time on. Raises Exhausted or Unavailable."""
    try:
        # FULL: whatever is kept under this number must not outlive it in a power cut.
        connection.execute("PRAGMA synchronous=FULL")
        known = connection.execute("SELECT value FROM meta WHERE name = 'number'").fetchone()
        if known is None:
            known = (secrets.randbits(63),)
            connection.execute("INSERT INTO meta VALUES ('number', ?)", known)
        connection.execute("PRAGMA synchronous=NORMAL")
    except sqlite3.Error as error:
        raise failed(error, path) from error
    number: int = known[0]
    return number


def _open(path: str) -> sqlite3.Connection:
    connection = connect(path)
    try:
        _check(connection, path)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise failed(error, path) from error
        raise
    return connection


def _check(connection: sqlite3.Connection, path: str) -> None:
    """Make sure that this is a database of ours, whole as far as can be told in constant time; make it one if it is empty."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (mark,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if tables == 0 and mark == 0 and version == 0:
        # Has an effect before the first table is made only.
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(
            f"BEGIN; {_SCHEMA} PRAGMA application_id={_MARK}; PRAGMA user_version={FORMAT}; COMMIT;"
        )
        return
    if mark != _MARK:
        raise Corrupt("it is an SQLite database, but none of outputd's")
    if version > FORMAT:
        raise Precondition(
            f"{path}: has format {version}, written by a newer outputd; this one reads {FORMAT}. Use the newer outputd, or move "
            "the file away to start without output paths"
        )
    if version < 1:
        raise Corrupt(f"it has format {version}, which no outputd ever wrote")
    connection.execute("PRAGMA journal_mode=WAL")
    for older in range(version, FORMAT):
        _log.info("%s: from format %d to %d", path, older, older + 1)
        connection.executescript(f"BEGIN; {_MIGRATIONS[older]} PRAGMA user_version={older + 1}; COMMIT;")
    expected = sqlite3.connect(":memory:")
    try:
        expected.executescript(_SCHEMA)
        tables_sql = "SELECT name, sql FROM sqlite_master WHERE type='table' ORDER BY name"
        if connection.execute(tables_sql).fetchall() != expected.execute(tables_sql).fetchall():
            raise Corrupt("its tables are not those of outputd")
    finally:
        expected.close()
    # The rest is only looked at when somebody asks for it: a start must not take longer for a larger file.
    connection.execute("SELECT * FROM output_base").fetchall()


def _set_aside(path: str, disk: Disk) -> str:
    aside = f"{path}{DAMAGED}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    while os.path.lexists(aside):
        aside += "+"
    # With its write-ahead log: sqlite3 can then still recover what it can from the pair.
    for suffix in ("-wal", "-shm", ""):
        try:
            disk.rename(path + suffix, aside + suffix)
        except FileNotFoundError:
            pass  # a database that was closed in order has neither log nor index
        except OSError as error:
            raise Unavailable(
                f"{path}{suffix}: damaged, and cannot be set aside: {error.strerror}"
            ) from error
    return aside
