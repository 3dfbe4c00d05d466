"""The write-back queue: what it takes and what not, blobs before results, what is refused, what a restart finds."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from outputd.builds import queue_lane
from outputd.builds.bringing import Bringing
from outputd.builds.queue_lane import QueueFacts, QueueOptions
from outputd.builds.queued_rows import Key, QueuedRows
from outputd.builds.sending import Rate
from outputd.builds.state import State
from outputd.builds.write_back import WriteBack
from outputd.digest import Digest
from outputd.disk.disk import RealDisk
from outputd.errors import (
    Corrupt,
    Denied,
    Exhausted,
    Invalid,
    NotFound,
    OutputdError,
    Throttled,
    Unproven,
    Unreachable,
)
from outputd.store.disk_store import DiskStore
from tests.unit.builds.test_uploads import LARGE, Remote
from tests.unit.builds.world import SECOND, SHA256, until

A, B, ACTION, OTHER = b"a", b"b", Digest.of(SHA256, b"action"), Digest.of(SHA256, b"other action")
DAY = 86_400


class Results:
    """What results name is what their request says, digest by digest; `update` has them arrive in the remote."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.updated: list[tuple[Key, bytes]] = []
        self.refused: dict[Digest, OutputdError] = {}
        self.unreadable: dict[Digest, OutputdError] = {}

    async def named(self, key: Key, request: bytes) -> set[Digest]:
        if key.digest in self.unreadable:
            raise self.unreadable[key.digest]
        return set(named_in(request))

    async def update(self, key: Key, request: bytes) -> None:
        if self.remote.down is not None:
            raise self.remote.down
        if key.digest in self.refused:
            raise self.refused[key.digest]
        assert set(named_in(request)) <= self.remote.blobs.keys(), "a result before its blobs"
        self.updated.append((key, request))


def naming(*digests: Digest) -> bytes:
    return b"".join(digests)


def named_in(request: bytes) -> list[Digest]:
    size = len(ACTION)
    return [Digest(request[start : start + size]) for start in range(0, len(request), size)]


class World:
    """A queue on a state directory and a store, with a remote that is away."""

    def __init__(self, path: Path, remote: Remote, limit: int, age: float) -> None:
        self.state = State(f"{path}/state", RealDisk())
        self.store = DiskStore(f"{path}/cache", RealDisk())
        self.remote = remote
        self.later = 0
        self.results = Results(remote)
        self.options = {
            "": QueueOptions("grpc://one", limit, age, Rate(0)),
            "team": QueueOptions("grpc://two", 0, age, Rate(0)),
        }
        self.queue = self.made()

    def made(self) -> WriteBack:
        return WriteBack(
            QueuedRows(self.state), self.remote, self.store, self.options, prefix_of, now=self.now
        )

    def now(self) -> int:
        self.later += 1
        return self.later

    def put(self, *blobs: bytes) -> list[Digest]:
        for data in blobs:
            self.store.put(Digest.of(SHA256, data), data, local_only=True)
        return [Digest.of(SHA256, data) for data in blobs]

    async def keep(self, *blobs: bytes, name: str = "main") -> set[Digest]:
        return await self.queue.keep_blobs(name, self.put(*blobs))

    async def bring(self) -> OutputdError | None:
        """One try."""
        lane = self.queue._lanes[""]
        rows = QueuedRows(self.state)
        return await Bringing(lane, rows, self.remote, self.store, self.results, self.now).run()

    @property
    def facts(self) -> QueueFacts:
        return self.queue.facts("")

    async def left(self) -> list[tuple[Key, str | None]]:
        """What a restart would find."""
        await self.state.written(lambda _: None)
        return [(row.key, row.refused) for row in QueuedRows(self.state).all()]


def prefix_of(name: str) -> str | None:
    return {"main": "", "other": "", "team/x": "team"}.get(name)


@asynccontextmanager
async def world(
    path: Path, remote: Remote | None = None, limit: int = 1 << 20, age: float = DAY
) -> AsyncIterator[World]:
    w = World(path, remote or Remote(), limit, age)
    try:
        yield w
    finally:
        await w.state.close()
        w.store.close()


def blob(digest: Digest, name: str = "main") -> Key:
    return Key(name, digest, is_result=False)


def result(action: Digest = ACTION, name: str = "main") -> Key:
    return Key(name, action, is_result=True)


def test_blobs_come_before_the_result_that_names_them(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            a, b, large = w.put(A, B, LARGE)
            assert await w.queue.keep_result("main", ACTION, naming(a, b, large))
            assert (
                await w.keep(A, LARGE) == set()
            )  # B was there before the remote went away, and it has lost it
            assert w.queue.blobs() == {a, large}
            assert (w.facts.blobs, w.facts.results, w.facts.bytes) == (2, 1, 1 + len(LARGE) + 3 * len(a))
            w.remote.blobs[a] = A
            assert await w.bring() is None
            assert sorted(w.remote.sent) == sorted([large, b]), "what it has is not sent"
            assert w.results.updated == [(result(), naming(a, b, large))]
            assert await w.left() == []
            assert not w.store.only_here([a, b, large])
            facts = w.facts
            assert (facts.blobs, facts.results, facts.bytes, facts.oldest, facts.brought) == (
                0,
                0,
                0,
                None,
                3,
            )

    asyncio.run(run())


def test_a_restart_finds_all_and_the_order(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.keep(A, B)
            assert await w.queue.keep_result("main", ACTION, b"")
            assert await w.queue.keep_result("other", OTHER, b"")
        async with world(tmp_path, w.remote) as again:
            assert again.queue.blobs() == {Digest.of(SHA256, A), Digest.of(SHA256, B)}
            assert again.queue.request("main", ACTION) == b""
            assert again.queue.request("main", OTHER) is None
            assert await again.bring() is None
            assert again.results.updated == [(result(), b""), (result(OTHER, "other"), b"")]
            assert again.remote.instances == {"main", "other"}

    asyncio.run(run())


def test_no_more_than_its_limits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with world(tmp_path, limit=10) as w:
            a, large = w.put(b"12345678", LARGE)
            assert await w.queue.keep_blobs("main", [a, large]) == {large}
            assert await w.queue.keep_blobs("main", [a]) == set(), "it is there already"
            assert not await w.queue.keep_result("main", ACTION, b"123")
            assert "8 of 10 bytes" in w.queue.limit("main")
            assert await w.queue.keep_result("main", ACTION, b"12")
            assert await w.queue.keep_result("main", ACTION, b""), "a smaller one in its place"
            assert await w.queue.keep_result("main", ACTION, b"21")
            assert not await w.queue.keep_result("main", ACTION, b"321")
            assert (w.facts.results, w.facts.bytes) == (1, 10)
            assert w.queue.request("main", ACTION) == b"21"
            assert caplog.text.count("is full") == 1
            for name in ("team/x", "nobody's"):
                assert not w.queue.takes(name)
                assert await w.queue.keep_blobs(name, [a]) == {a}
                assert not await w.queue.keep_result(name, ACTION, b"")
            monkeypatch.setattr(queue_lane, "ITEMS", 2)
            assert await w.keep(b"") == {Digest.of(SHA256, b"")}

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())


def test_what_replaces_a_result_on_its_way_is_not_lost(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.queue.keep_result("main", ACTION, b"")
            update, replaced = w.results.update, False

            async def slow(key: Key, request: bytes) -> None:
                nonlocal replaced
                await update(key, request)
                if not replaced:
                    replaced = True
                    assert await w.queue.keep_result("main", ACTION, naming(*w.put(A)))

            w.results.update = slow  # type: ignore[method-assign]
            assert await w.bring() is None
            assert await w.left() == [(result(), None)]
            assert await w.bring() is None
            assert [request for _, request in w.results.updated] == [b"", naming(Digest.of(SHA256, A))]
            assert await w.left() == []

    asyncio.run(run())


@pytest.mark.parametrize("error", [Denied("read only"), Invalid("wrong"), Exhausted("too large")], ids=type)
def test_what_is_refused_is_set_aside_and_listed(
    error: OutputdError, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            a, b = w.put(A, B)
            await w.queue.keep_blobs("main", [a, b])
            await w.queue.keep_result("main", ACTION, naming(a))
            await w.queue.keep_result("main", OTHER, naming(b))
            w.remote.refused[a] = error
            w.results.refused[OTHER] = error
            assert await w.bring() is None
            assert w.remote.blobs.keys() == {b}
            assert {(row.key, row.refused) for row in w.facts.refused} == {
                (blob(a), str(error)),
                (result(), str(error)),
                (result(OTHER), str(error)),
            }
            assert (w.facts.blobs, w.facts.results, w.facts.bytes) == (0, 0, 0)
            assert w.queue.blobs() == set()
            assert w.queue.request("main", ACTION) is None
            assert len(caplog.records) == 2, "one line for blobs, one for results"
            asked = len(w.remote.asked)
            assert await w.bring() is None
            assert len(w.remote.asked) == asked, "never tried again"
            assert len(await w.left()) == 3
            assert set(w.made().facts("").refused) == set(w.facts.refused), "a restart lists it"
            # A client that comes with it once more has another try.
            w.remote.refused.clear()
            assert await w.queue.keep_blobs("main", [a]) == set()
            assert {row.key for row in w.facts.refused} == {result(), result(OTHER)}
            assert await w.bring() is None
            assert a in w.remote.blobs

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())


@pytest.mark.parametrize(
    "error", [Unproven("expired"), Throttled("slower"), Unreachable("INTERNAL")], ids=type
)
def test_what_may_pass_keeps_nobody_else_waiting(error: OutputdError, tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            a, b = w.put(A, B)
            await w.queue.keep_blobs("main", [a, b])
            await w.queue.keep_result("main", ACTION, naming(a))
            await w.queue.keep_result("main", OTHER, naming(b))
            w.remote.refused[a] = error
            assert await w.bring() is error
            assert w.remote.blobs.keys() == {b}
            assert [key for key, _ in w.results.updated] == [result(OTHER)]
            assert sorted(await w.left()) == sorted([(blob(a), None), (result(), None)])
            w.remote.refused.clear()
            assert await w.bring() is None
            assert await w.left() == []

    asyncio.run(run())


def test_a_result_whose_blobs_are_gone_is_given_up(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            nowhere = Digest.of(SHA256, b"nowhere")
            await w.queue.keep_result("main", ACTION, naming(nowhere))
            await w.queue.keep_result("main", OTHER, b"")
            w.results.unreadable[OTHER] = NotFound("its tree is gone")
            assert await w.bring() is None
            assert [row.refused for row in w.facts.refused] == [
                "its tree is gone",
                f"blob {nowhere}: nobody has it any more",
            ]
            w.results.unreadable[OTHER] = Exhausted("our own disk")
            await w.queue.keep_result("main", OTHER, b"")
            assert isinstance(await w.bring(), Exhausted)
            assert (await w.left())[-1] == (result(OTHER), None)

    asyncio.run(run())


def test_what_waits_too_long_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with world(tmp_path, age=60) as w:
            w.remote.refused[Digest.of(SHA256, B)] = Denied("read only")
            await w.keep(B)
            await w.bring()
            await w.keep(A)
            w.later += 61 * SECOND
            await w.keep(b"young")
            assert await w.bring() is None
            assert w.remote.blobs.keys() == {Digest.of(SHA256, b"young")}
            assert await w.left() == []
            assert w.facts.refused == []
            assert "1 uploads waited for grpc://one longer than offline_queue_age" in caplog.text

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())


def test_it_is_known_what_waits(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            a, b = w.put(A, B)
            assert not w.queue.waits("main")
            await w.queue.keep_result("main", ACTION, b"")
            assert not w.queue.waits("main"), "a result is no blob"
            await w.queue.keep_blobs("main", [a])
            assert w.queue.waits("main")
            assert w.queue.waits("main", [b, a])
            assert not w.queue.waits("main", [b])
            assert not w.queue.waits("nobody's", [a])

    asyncio.run(run())


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            w.state._writing_connection.execute("PRAGMA query_only=1")
            with pytest.raises(OutputdError):
                await w.keep(A)
            with pytest.raises(OutputdError):
                await w.queue.keep_result("main", ACTION, b"")
            assert (w.facts.blobs, w.facts.results, w.facts.bytes) == (0, 0, 0)
            w.state._writing_connection.execute("PRAGMA query_only=0")
            assert await w.keep(A) == set()
            assert w.facts.blobs == 1

    asyncio.run(run())


def test_rows_that_cannot_be_read_or_belong_to_nobody_stop_no_daemon(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.keep(A)
            w.options = {"team": w.options["team"]}
            assert w.made().blobs() == set()
            assert "1 uploads are queued for instance names that no remote of the settings has" in caplog.text
            assert await w.left() == [(blob(Digest.of(SHA256, A)), None)], "they wait for the settings"

            def damaged(_rows: QueuedRows) -> None:
                raise Corrupt("damaged")

            monkeypatch.setattr(QueuedRows, "all", damaged)
            assert w.made().blobs() == set()
            assert "none of them will be brought: damaged" in caplog.text

    asyncio.run(run())


def test_what_is_not_written_yet_is_not_brought(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w, asyncio.TaskGroup() as tasks:
            slow = threading.Event()
            w.state._writer.submit(slow.wait)
            try:
                queueing = tasks.create_task(w.queue.keep_result("main", ACTION, b""))
                await until(lambda: w.facts.results)
                again = tasks.create_task(w.keep(A))
                third = tasks.create_task(w.keep(A))
                await until(lambda: w.facts.blobs)
                assert await w.bring() is None
                assert (w.facts.blobs, w.facts.results, w.facts.refused, w.remote.asked) == (1, 1, [], [])
            finally:
                slow.set()
            assert await queueing
            assert await again == await third == set()
            assert len(await w.left()) == 2
            assert await w.bring() is None
            assert await w.left() == []

    asyncio.run(run())


def test_it_tries_until_the_remote_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outputd.builds.write_back._FIRST_PAUSE", 0.0)

    async def run() -> None:
        async with world(tmp_path) as w, asyncio.TaskGroup() as tasks:
            w.remote.down = Unreachable("away")
            task = tasks.create_task(w.queue.run(w.results))
            await w.keep(A)
            await until(lambda: w.facts.error == "away")
            assert w.facts.oldest is not None
            w.remote.down = None
            await until(lambda: not w.facts.blobs and not w.facts.error)
            await w.keep(B)
            await w.queue.keep_result("main", ACTION, naming(Digest.of(SHA256, B)))
            await until(lambda: w.facts.brought == 3)
            assert w.results.updated
            task.cancel()

    asyncio.run(run())


def test_a_sigkill_between_two_blobs_costs_a_question(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.keep(A, LARGE)
            write = w.remote.write

            async def killed(digest: Digest, data: Callable[[], object]) -> None:
                raise asyncio.CancelledError

            w.remote.write = killed  # type: ignore[method-assign]
            monkeyed = w.queue._lanes[""]
            with pytest.raises(asyncio.CancelledError):
                await w.bring()
            assert [key for key, _ in await w.left()] == [blob(Digest.of(SHA256, LARGE))]
            assert list(monkeyed.waiting) == [blob(Digest.of(SHA256, LARGE))]
            w.remote.write = write  # type: ignore[method-assign]
            assert await w.bring() is None
            assert w.remote.sent == [Digest.of(SHA256, A), Digest.of(SHA256, LARGE)]

    asyncio.run(run())
