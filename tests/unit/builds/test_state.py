"""The state directory: found again, written in order, readable before it is written, refused or set aside when it must be."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from outputd.builds.database import FORMAT
from outputd.builds.queued_rows import Key, QueuedRows, Row
from outputd.builds.state import SavedBase, State
from outputd.digest import Digest, DigestFunction
from outputd.disk.disk import RealDisk
from outputd.errors import Corrupt, Exhausted, Precondition, Unavailable

SHA256 = DigestFunction.SHA256
BASE = SavedBase("base", 3, "main", DigestFunction.BLAKE3, b"root", 1, "build", 2, b"unfinished", 4)
EMPTY = Digest.of(SHA256, b"")
MESSAGE = Digest.of(SHA256, b"message")


def _state(path: Path) -> State:
    return State(str(path), RealDisk())


def _database(path: Path) -> Path:
    return path / "state.db"


@contextmanager
def _edited(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(_database(path))
    try:
        yield connection
        connection.commit()
    finally:
        connection.close()


async def _made(path: Path) -> None:
    state = _state(path)
    await state.save(BASE, b"paths")
    await state.close()


def test_what_was_saved_is_found_again(tmp_path: Path) -> None:
    async def run() -> None:
        state = _state(tmp_path)
        assert state.bases() == []
        state.sink.directory(EMPTY, b"")
        state.sink.directory(MESSAGE, b"message")
        state.sink.record(b"r" * 32, b"record")
        await state.save(BASE, b"paths")
        await state.save(replace(BASE, id="other", number=4), None)
        await state.put("main", MESSAGE, b"old")
        await state.put("main", MESSAGE, b"result")
        await state.close()

        state = _state(tmp_path)
        assert state.set_aside is None
        assert state.bases() == [BASE, replace(BASE, id="other", number=4)]
        assert state.directory(EMPTY) == b""
        assert state.directory(MESSAGE) == b"message"
        assert state.directory(Digest.of(SHA256, b"another")) is None
        assert state.record(b"r" * 32) == b"record"
        assert state.record(b"s" * 32) is None
        assert state.finalized("base") == b"paths"
        assert state.finalized("other") is None
        assert await state.get("main", MESSAGE) == b"result"
        assert await state.get("other", MESSAGE) is None
        await state.save(BASE, None)
        assert state.finalized("base") is None
        await state.forget("base")
        await state.forget("base")
        await state.close()

        state = _state(tmp_path)
        assert [base.id for base in state.bases()] == ["other"]
        await state.close()

    asyncio.run(run())


def test_what_is_not_written_yet_can_be_read(tmp_path: Path) -> None:
    async def run() -> None:
        state = _state(tmp_path)
        state.sink.directory(MESSAGE, b"message")
        state.sink.record(b"r" * 32, b"record")
        state.keep_directories({EMPTY: b""})
        assert state.directory(MESSAGE) == b"message"
        assert state.directory(EMPTY) == b""
        assert state.record(b"r" * 32) == b"record"
        await state.close()
        state = _state(tmp_path)
        assert state.directory(EMPTY) == b""
        await state.close()

    asyncio.run(run())


def test_what_could_not_be_written_is_written_by_the_next_save(tmp_path: Path) -> None:
    async def run() -> None:
        state = _state(tmp_path)
        await state.put("main", MESSAGE, b"before")
        connection = state._writing_connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages}")
        big = os.urandom(1 << 20)
        digest = Digest.of(SHA256, big)
        state.sink.directory(digest, big)
        with pytest.raises(Exhausted, match=r"state\.db: database or disk is full"):
            await state.save(BASE, None)
        assert state.bases() == []
        assert state.directory(digest) == big
        connection.execute("PRAGMA max_page_count=1000000")
        await state.save(BASE, None)
        await state.close()
        state = _state(tmp_path)
        assert state.bases() == [BASE]
        assert state.directory(digest) == big
        await state.close()

    asyncio.run(run())


def test_a_save_goes_on_when_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    async def run() -> None:
        state = _state(tmp_path)
        # Behind another one, so that it has not begun when its waiter leaves.
        first = asyncio.create_task(state.put("main", MESSAGE, b"x" * (1 << 20)))
        save = asyncio.create_task(state.save(BASE, None))
        await asyncio.sleep(0)
        save.cancel()
        with pytest.raises(asyncio.CancelledError):
            await save
        await first
        await state.close()
        state = _state(tmp_path)
        assert state.bases() == [BASE]
        await state.close()

    asyncio.run(run())


def test_volume_numbers_never_come_again(tmp_path: Path) -> None:
    async def run() -> list[int]:
        state = _state(tmp_path)
        numbers = [state.take_number() for _ in range(20)]
        await state.close()
        return numbers

    first, second = asyncio.run(run()), asyncio.run(run())
    assert first[0] > 0
    assert len({*first, *second}) == 40


def test_a_volume_number_that_was_saved_is_reserved_with_it(tmp_path: Path) -> None:
    async def run() -> None:
        state = _state(tmp_path)
        state._writing_connection.execute("PRAGMA query_only=1")
        number = state.take_number()
        await _settled(state)
        state._writing_connection.execute("PRAGMA query_only=0")
        await state.save(replace(BASE, number=number), None)
        await state.close()
        state = _state(tmp_path)
        assert state.take_number() > number
        await state.close()

    asyncio.run(run())


async def _settled(state: State) -> None:
    with pytest.raises(Unavailable):
        await state.put("main", MESSAGE, b"")


def test_a_second_daemon_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    state = _state(tmp_path)
    program = (
        "import sys; from outputd.builds.state import State; from outputd.disk.disk import RealDisk; "
        "State(sys.argv[1], RealDisk())"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "Precondition" in child.stderr
    assert f"in use by the outputd with process id {os.getpid()}" in child.stderr
    asyncio.run(state.close())
    asyncio.run(_made(tmp_path))  # now it is free


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    asyncio.run(_made(tmp_path))
    with _edited(tmp_path) as connection:
        connection.execute(f"PRAGMA user_version={FORMAT + 1}")
    before = _database(tmp_path).read_bytes()
    with pytest.raises(Precondition, match=f"has format {FORMAT + 1}, written by a newer outputd"):
        _state(tmp_path)
    assert _database(tmp_path).read_bytes() == before
    with _edited(tmp_path) as connection:
        connection.execute(f"PRAGMA user_version={FORMAT}")
    asyncio.run(_made(tmp_path))  # and the lock was given back


def _garbage(path: Path) -> None:
    _database(path).write_bytes(b"not a database, " * 1000)


def _torn(path: Path) -> None:
    asyncio.run(_made(path))
    data = _database(path).read_bytes()
    _database(path).write_bytes(data[:100] + os.urandom(len(data) - 100))


def _foreign(path: Path) -> None:
    with _edited(path) as connection:
        connection.execute("CREATE TABLE songs(name)")


def _altered(path: Path) -> None:
    asyncio.run(_made(path))
    with _edited(path) as connection:
        connection.execute("ALTER TABLE output_base ADD COLUMN colour")


def _ancient(path: Path) -> None:
    asyncio.run(_made(path))
    with _edited(path) as connection:
        connection.execute("PRAGMA user_version=0")


@pytest.mark.parametrize("damage", [_garbage, _torn, _foreign, _altered, _ancient])
def test_what_cannot_be_read_is_set_aside_loudly(
    damage: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(damage)
    damage(tmp_path)
    before = _database(tmp_path).read_bytes()

    async def run() -> None:
        state = _state(tmp_path)
        assert state.bases() == []
        assert state.set_aside is not None
        assert Path(state.set_aside).name.startswith("state.db.damaged-")
        assert Path(state.set_aside).read_bytes() == before
        await state.save(BASE, None)
        await state.close()
        state = _state(tmp_path)
        assert state.set_aside is None
        assert state.bases() == [BASE]
        await state.close()

    asyncio.run(run())
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "it was set aside as" in errors[0].getMessage()


def test_an_earlier_damaged_file_is_not_overwritten(tmp_path: Path) -> None:
    for _ in range(3):
        _garbage(tmp_path)
        state = _state(tmp_path)
        asyncio.run(state.close())
        _database(tmp_path).unlink()
    assert len([path for path in tmp_path.iterdir() if "damaged" in path.name]) == 3


def test_damage_that_is_met_later_is_an_error_of_ours(tmp_path: Path) -> None:
    async def run() -> None:
        state = _state(tmp_path)
        for index in range(200):
            data = bytes([index]) * 5000
            state.sink.directory(Digest.of(SHA256, data), data)
        await state.save(BASE, None)
        await state.close()
        path = _database(tmp_path)
        with _edited(tmp_path) as connection:
            query = "SELECT rootpage FROM sqlite_master WHERE name = 'directory'"
            (root,) = connection.execute(query).fetchone()
        data = path.read_bytes()
        at = (root - 1) * 4096
        path.write_bytes(data[:at] + b"\xff" * 4096 + data[at + 4096 :])
        state = _state(tmp_path)
        assert state.bases() == [BASE]
        with pytest.raises(Corrupt, match="malformed"):
            state.directory(Digest.of(SHA256, b"\x01" * 5000))
        await state.close()

    asyncio.run(run())


def test_a_directory_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable, match=r"state directory .*file: "):
        _state(tmp_path / "file")


def test_the_state_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(tmp_path).st_uid + 1)
    with pytest.raises(Precondition, match=r"belongs to uid \d+, and this is uid \d+; `chown -R` it"):
        State(str(tmp_path / "state"), RealDisk())
    assert os.listdir(tmp_path / "state") == []


def test_the_queue_has_room_in_an_older_database(tmp_path: Path) -> None:
    asyncio.run(_made(tmp_path))
    with _edited(tmp_path) as connection:
        for table in ("queued_blob", "queued_result"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("PRAGMA user_version=3")

    async def migrated() -> None:
        state = _state(tmp_path)
        assert QueuedRows(state).all() == []
        key = Key("main", Digest.of(DigestFunction.SHA256, b"action"), is_result=True)
        await QueuedRows(state).add_result(Row(key, 7, 1, None), b"request")
        assert QueuedRows(state).request(key) == b"request"
        await state.close()

    asyncio.run(migrated())


def test_pins_outlive_a_restart_and_older_databases_get_room_for_them(tmp_path: Path) -> None:
    async def first() -> None:
        state = _state(tmp_path)
        await state.pin("b1", [b"x", b"y\xff"])
        await state.pin("b1", [b"x"])
        await state.pin("b2", [b"x"])
        await state.close()

    async def second() -> None:
        state = _state(tmp_path)
        assert sorted(state.pins()) == [("b1", b"x"), ("b1", b"y\xff"), ("b2", b"x")]
        assert await state.unpin("b1", [b"x", b"nothing"]) == 1
        assert await state.unpin("b1", []) == 1
        assert state.pins() == [("b2", b"x")]
        await state.close()

    async def third() -> None:
        state = _state(tmp_path)
        assert state.pins() == []
        await state.close()

    asyncio.run(first())
    asyncio.run(second())
    with _edited(tmp_path) as connection:
        for table in ("pin", "queued_blob", "queued_result"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("PRAGMA user_version=2")
    asyncio.run(third())
