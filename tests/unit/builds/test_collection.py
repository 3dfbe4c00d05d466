"""What is evicted and dropped while output paths need this and that: nothing that a tree can reach, whatever moves meanwhile."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from outputd.builds import pace
from outputd.builds.collection import Collection, Report, Wish
from outputd.builds.reachable import Reachable
from outputd.builds.staging import TreeReference
from outputd.digest import Digest
from outputd.errors import Exhausted
from outputd.store.cached import CachedStore
from outputd.store.eviction import Kind
from outputd.store.limits import Amount, Limits
from outputd.tree.node import Directory, File
from outputd.tree.status import Status
from tests.rev2_tree import Rev2Tree
from tests.unit.builds.world import BASE, SHA256, World, until, world


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(limited())


def collection(w: World, limits: Limits | None = None) -> Collection:
    # Nothing is garbage by its age alone here: what is not reachable has no grace.
    object.__setattr__(w.store, "grace", -1.0)
    return Collection(
        w.store, w.builds, w.state, limits or Limits(keep_free=Amount()), None, w.content.open_digests
    )


async def written(w: World, path: str, data: bytes) -> Digest:
    file = w.write(path, data)
    await w.ingest.settle()
    assert isinstance(file.content, Digest)
    return file.content


async def settled() -> None:
    """Until a file's ctime is older than the clock, so that it does not look as if it were new."""
    await asyncio.sleep(0.15)


def kinds(report: Report) -> dict[str, int]:
    return {kind.name: amounts.blobs for kind, amounts in report.found.items() if amounts.blobs}


def test_what_no_tree_holds_any_more_goes(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            await w.start()
            kept = await written(w, "kept", b"kept")
            removed = await written(w, "removed", b"removed")
            w.unlink("removed")
            await settled()
            collects = collection(w)
            report = await collects.collect(Wish(garbage=True), dry_run=True)
            assert kinds(report) == {"KEPT": 1, "GARBAGE": 1}
            assert report.going[Kind.GARBAGE].blobs == 1
            assert w.store.is_here(removed)
            report = await collects.collect(Wish(garbage=True), dry_run=False)
            assert not w.store.is_here(removed)
            assert w.store.is_here(kept)

    run(test)


def test_a_crash_after_a_collection_finds_the_tree_as_it_was(tmp_path: Path) -> None:
    """The journal from the last checkpoint on goes through a directory that no tree holds any more."""

    async def test() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start()
            tree = Rev2Tree({"x": b"in a tree", "y": b"too"})
            digest = Digest.parse(SHA256, tree.digest.hash, tree.digest.size_bytes)
            for data in (tree.message, b"in a tree", b"too"):
                await upload(w, data)
            await w.stage(("tree", TreeReference(digest, None)))
            await w.load()
            w.unlink("tree/x")
            before = await w.listing()
            await settled()
            report = await collection(w).collect(Wish(garbage=True), dry_run=False)
            assert report.going[Kind.GARBAGE].blobs > 0
            assert w.root().digest is not None  # a checkpoint was made
        async with world(tmp_path) as w:
            assert await w.listing() == before
            assert w.store.missing([Digest.of(SHA256, b"too")]) == set()

    run(test)


def test_nothing_that_is_only_here_goes_when_a_checkpoint_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            await w.start()
            digest = await written(w, "file", b"content")
            w.unlink("file")
            await settled()

            async def save(*_: object) -> None:
                raise Exhausted("no room")

            monkeypatch.setattr(w.state, "save", save)
            collects = collection(w)
            report = await collects.collect(Wish(garbage=True), dry_run=False)
            assert kinds(report) == {"KEPT": 1}
            monkeypatch.undo()
            await collects.collect(Wish(garbage=True), dry_run=False)
            assert not w.store.is_here(digest)

    run(test)


def test_collapsed_trees_are_looked_through_without_the_remote(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            await w.start()
            for name in ("a", "a/b", "a/b/c"):
                w.mkdir(name)
            deep = await written(w, "a/b/c/file", b"deep")
            odd = await written(w, "a/odd", b"odd")
            odd_file = w.at("a/odd")
            assert isinstance(odd_file, File)
            directory = w.at("a")
            assert isinstance(directory, Directory)
            # Not UTF-8: it stands in the attribute record alone.
            status = w.tree.rename(directory, b"odd", directory, b"\xff", 0, 1)
            assert status is Status.OK
            await w.finalize("b1")
        async with world(tmp_path) as w:
            assert w.root().children is None
            await settled()
            report = await collection(w).collect(Wish(garbage=True), dry_run=False)
            assert kinds(report) == {"KEPT": 2}
            assert w.root().children is None
            assert w.store.missing([deep, odd]) == set()
            assert w.cas.read_digests == []

    run(test)


def test_staged_directories_that_lie_here_only(tmp_path: Path) -> None:
    """Without a remote, the messages of a staged directory are blobs of the store, and so is what they name."""

    async def test() -> None:
        async with world(tmp_path) as w:
            await w.start()
            tree = Rev2Tree({"x": b"in a tree"})
            digest = Digest.parse(SHA256, tree.digest.hash, tree.digest.size_bytes)
            needed = {digest}
            for data in (tree.message, b"in a tree"):
                needed.add(await upload(w, data))
            message = b""
            empty_root = await upload(w, message)
            assert await w.stage(
                ("tree", TreeReference(digest, None)), ("dir", TreeReference(None, empty_root))
            ) == [
                None,
                None,
            ]
            garbage = await upload(w, b"garbage")
            await settled()
            await collection(w).collect(Wish(garbage=True), dry_run=False)
            assert all(map(w.store.is_here, needed))
            assert not w.store.is_here(garbage)

    run(test)


async def upload(w: World, data: bytes) -> Digest:
    async def pieces() -> Any:
        yield data

    digest = Digest.of(SHA256, data)
    async with CachedStore(w.store, None) as store:
        await store.write(digest, pieces())
    return digest


def test_a_name_that_moves_past_the_walk_is_met_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a directory that the walk has not reached into one that it has passed."""

    async def test() -> None:
        async with world(tmp_path) as w:
            await w.start()
            for name in ("first", "second"):
                w.mkdir(name)
            digest = await written(w, "second/file", b"moves")
            first, second = w.at("first"), w.at("second")
            assert isinstance(first, Directory) and isinstance(second, Directory)
            reachable = Reachable(w.state, w.store)
            place = [second, first]

            async def turn(_: pace.Pace) -> None:
                # At each pause the file is where the walk is not.
                source, target = place
                place.reverse()
                assert w.tree.rename(source, b"file", target, b"file", 0, 1) is Status.OK

            monkeypatch.setattr(pace.Pace, "due", True)
            monkeypatch.setattr(pace.Pace, "turn", turn)
            await reachable.walk([w.root()])
            monkeypatch.undo()
            assert digest not in reachable.marks
            reachable.finish([w.root()])
            assert digest in reachable.marks

    run(test)


def test_open_files_are_held(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            await w.start()
            digest = await written(w, "file", b"open")
            file = w.at("file")
            assert isinstance(file, File)
            opened = w.content.open(file, writing=False)
            w.unlink("file")
            await settled()
            collects = collection(w)
            await collects.collect(Wish(garbage=True), dry_run=False)
            assert w.store.is_here(digest)
            assert bytes(w.content.read(opened, 0, 10)) == b"open"
            w.content.release(opened, writing=False)
            await collects.collect(Wish(garbage=True), dry_run=False)
            assert not w.store.is_here(digest)

    run(test)


def rows(tmp_path: Path) -> tuple[int, int]:
    with sqlite3.connect(f"{tmp_path}/state/state.db") as connection:
        found = connection.execute("SELECT (SELECT count(*) FROM directory), (SELECT count(*) FROM record)")
        directories, records = found.fetchone()
    connection.close()
    return directories, records


def test_the_state_database_forgets_what_no_output_path_needs(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            await w.start()
            for number in range(300):
                w.mkdir(f"d{number}")
                w.symlink(f"d{number}/link", str(number))
            await w.finalize("b1")
            assert rows(tmp_path) == (301, 301)
            await w.start("other", base="other")
            w.mkdir("kept", base="other")
            w.symlink("kept/link", "0", base="other")
            await w.finalize("other")
            await w.builds.clean(BASE)
            report = await collection(w).collect(Wish(garbage=True), dry_run=False)
            assert report.dropped >= 2 * 299
            assert rows(tmp_path) == (2, 2)
        async with world(tmp_path) as w:
            assert await w.listing("other") == {"kept/": None, "kept/link": b"0"}

    run(test)


def test_what_is_looked_for_or_sealed_during_a_sweep_stays(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            messages = {Digest.of(SHA256, data): data for data in (b"%d" % number for number in range(600))}
            first, second, *_ = messages
            w.state.keep_directories(messages)
            await w.state.drop_results([])  # whatever was kept is written by now
            w.state.begin_sweep()
            assert w.state.directory(first) == b"0"
            w.state.seal_directory(second, b"1")
            assert await w.state.sweep(frozenset()) == 598
            assert (w.state.directory(first), w.state.directory(second)) == (b"0", b"1")
            assert rows(tmp_path)[0] == 2
            w.state.begin_sweep()
            assert await w.state.sweep({first}) == 1
            assert rows(tmp_path)[0] == 1

    run(test)


def test_nothing_that_is_only_here_goes_when_the_state_was_damaged(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            await w.start()
            digest = await written(w, "file", b"content")
            await w.finalize("b1")
        (tmp_path / "state" / "state.db").write_bytes(b"damaged".ljust(8192))
        async with world(tmp_path) as w:
            await settled()
            report = await collection(w).collect(Wish(garbage=True), dry_run=False)
            assert kinds(report) == {"KEPT": 1}
            assert w.store.is_here(digest)

    run(test)


def test_output_paths_of_old_builds(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.finalize("b1")
            await w.start("b2", base="running")
            collects = collection(w)
            wish = Wish(garbage=True, unused_since=0.0, output_paths=True)
            assert (await collects.collect(wish, dry_run=False)).stale == []
            wish = Wish(garbage=True, unused_since=1e10, output_paths=True)
            assert [base.id for base in (await collects.collect(wish, dry_run=True)).stale] == [BASE]
            assert [base.id for base in w.builds.bases] == [BASE, "running"]
            assert [base.id for base in (await collects.collect(wish, dry_run=False)).stale] == [BASE]
            assert [base.id for base in w.builds.bases] == ["running"]

    run(test)


def test_the_task_keeps_the_store_below_its_mark_and_serves_who_waits_for_room(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            for number in range(8):
                data = bytes([number]) * 1000
                w.store.put(Digest.of(SHA256, data), data)
            collects = collection(w, Limits(keep_free=Amount(), high_mark=Amount(bytes=5000)))
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(collects.run())
                collects._wake.set()
                await until(lambda: 0 <= w.store.usage().blob_bytes <= 5000)
                # A writer in a thread of its own waits for what the task does.
                garbage = await upload(w, b"garbage" * 100)
                await settled()
                for digest in list(_cached(w)):
                    w.store.confirm_remote([digest])
                answers: list[bool] = []
                writer = threading.Thread(target=lambda: answers.append(w.store.relief.ask(1, str)))
                writer.start()
                await asyncio.to_thread(writer.join)
                writer = threading.Thread(target=lambda: answers.append(w.store.relief.ask(1, str)))
                writer.start()
                await asyncio.to_thread(writer.join)
                assert answers == [True, True]
                assert not w.store.is_here(garbage)
                task.cancel()

    run(test)


def _cached(w: World) -> list[Digest]:
    return [found.digest for fan in w.store.walk() for found in fan if not found.local_only]
