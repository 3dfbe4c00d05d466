"""The look-through at the start of a build: one question about everything, what is missing is gone, nothing else is touched."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

from outputd._proto import remote_execution_pb2 as reapi
from outputd.builds.staging import TreeReference
from outputd.digest import Digest
from outputd.errors import NotFound, TimedOut, Unavailable
from outputd.tree.node import Child, Directory, File
from outputd.tree.status import Status
from tests.unit.builds.world import BASE, NAMELESS, SECOND, SHA256, World, seen, until, world

A, B, C, D = (Digest.of(SHA256, data) for data in (b"a", b"bb", b"ccc", b"dddd"))


def _proto(digest: Digest) -> reapi.Digest:
    return reapi.Digest(hash=digest.hash_hex, size_bytes=digest.size)


def _directory(
    w: World, files: dict[str, Digest], directories: dict[str, Digest] | None = None, *, uploaded: bool = True
) -> Digest:
    message = reapi.Directory(
        files=[reapi.FileNode(name=name, digest=_proto(digest)) for name, digest in sorted(files.items())],
        directories=[
            reapi.DirectoryNode(name=name, digest=_proto(digest))
            for name, digest in sorted((directories or {}).items())
        ],
    ).SerializeToString()
    return w.cas.add(message) if uploaded else Digest.of(SHA256, message)


def test_the_first_build_asks_nobody(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            w.cas.down = Unavailable("no route to the CAS")
            await w.start()
            assert w.cas.asked == []

    asyncio.run(run())


def test_missing_files_are_removed_and_the_kernel_is_told(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("d/a", A), ("d/b", B), ("e/a", A), ("c", C))
            w.write("local", b"here")
            w.symlink("link", "d/b")
            await w.finalize("b1", successful=True)
            directory = w.at("d")
            assert isinstance(directory, Directory)
            seen(w, directory)
            w.cas.lost = {A, C}
            await w.start("b2")
            local = Digest.of(SHA256, b"here")
            assert w.cas.asked == [{A, B, C, local}]
            assert await w.listing() == {"d/": None, "d/b": B, "e/": None, "local": local, "link": b"d/b"}
            assert set(w.kernel.told) == {(f"outputs/{BASE}/d", b"a"), (f"outputs/{BASE}/d", None), NAMELESS}

    asyncio.run(run())


def test_after_a_restart_only_what_lacks_something_is_expanded(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("x/d/a", A), ("x/d/b", B), ("x/e/b", B), ("y/b", B), ("y/z/c", C))
        async with world(tmp_path) as w:
            w.cas.lost = {A}
            await w.start("b2")
            assert w.cas.asked == [{A, B, C}]
            root = w.root()
            x, y = w.tree.lookup(root, b"x"), w.tree.lookup(root, b"y")
            assert isinstance(x, Directory) and isinstance(y, Directory)
            assert x.children is not None
            assert y.children is None
            e = w.tree.lookup(x, b"e")
            assert isinstance(e, Directory)
            assert e.children is None
            assert await w.listing() == {
                "x/": None,
                "x/d/": None,
                "x/d/b": B,
                "x/e/": None,
                "x/e/b": B,
                "y/": None,
                "y/b": B,
                "y/z/": None,
                "y/z/c": C,
            }

    asyncio.run(run())


def test_when_nothing_is_missing_nothing_is_expanded_and_nothing_changes(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("x/d/a", A), ("y/b", B))
        async with world(tmp_path) as w:
            changes = w.root().volume.changes
            await w.start("b2")
            assert w.cas.asked == [{A, B}]
            assert w.root().children is None
            assert w.root().volume.changes == changes

    asyncio.run(run())


@pytest.mark.parametrize("by", ["tree", "root", "both"])
def test_lazy_directories_are_looked_through(by: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            leaf = reapi.Directory(
                files=[reapi.FileNode(name="a", digest=_proto(A)), reapi.FileNode(name="b", digest=_proto(B))]
            )
            leaf_digest = w.cas.add(leaf.SerializeToString())
            root = reapi.Directory(directories=[reapi.DirectoryNode(name="sub", digest=_proto(leaf_digest))])
            root_digest = w.cas.add(root.SerializeToString())
            tree = w.cas.add(reapi.Tree(root=root, children=[leaf]).SerializeToString())
            reference = TreeReference(tree if by != "root" else None, root_digest if by != "tree" else None)
            await w.stage(("t", reference), ("u", reference))
            await w.finalize("b1", successful=True)
            w.cas.lost = {A}
            await w.start("b2")
            assert w.cas.asked == [{A, B}]
            assert w.cas.instances == {"main"}
            assert await w.listing() == {
                f"{top}{rest}": content
                for top in "tu"
                for rest, content in (("/", None), ("/sub/", None), ("/sub/b", B))
            }

    asyncio.run(run())


def test_a_lazy_directory_whose_message_is_gone_is_emptied(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            gone = _directory(w, {"a": A}, uploaded=False)
            not_one = w.cas.add(b"no Directory message")
            holder = _directory(w, {"b": B}, {"gone": gone})
            await w.stage(
                ("gone", TreeReference(None, gone)),
                ("tree", TreeReference(D, None)),
                ("garbage", TreeReference(None, not_one)),
                ("holder", TreeReference(None, holder)),
            )
            await w.finalize("b1", successful=True)
            await w.start("b2")
            assert await w.listing() == {
                "gone/": None,
                "tree/": None,
                "garbage/": None,
                "holder/": None,
                "holder/gone/": None,
                "holder/b": B,
            }
        async with world(tmp_path) as w:
            assert len(await w.listing()) == 6

    asyncio.run(run())


def test_a_tree_that_doubles_at_each_level_is_looked_through_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            digest = _directory(w, {"a": A})
            for _ in range(60):
                digest = _directory(w, {}, {"left": digest, "right": digest})
            await w.stage(("t", TreeReference(None, digest)))
            await w.finalize("b1", successful=True)
            await w.start("b2")
            assert w.cas.asked == [{A}]
            assert len(w.cas.read_digests) == 61

    asyncio.run(run())


def test_a_cas_that_does_not_answer_fails_the_start_and_a_retry_looks_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("a", A), ("b", B))
            await w.finalize("b1", successful=True)
            w.cas.down = Unavailable("no route to the CAS")
            with pytest.raises(Unavailable, match="no route"):
                await w.start("b2")
            assert await w.listing() == {"a": A, "b": B}
            w.cas.down = None
            w.cas.lost = {A}
            await w.start("b2")
            assert await w.listing() == {"b": B}
            # Once it has succeeded, a repeated start is only that.
            await w.start("b2")
            assert len(w.cas.asked) == 2

    asyncio.run(run())


def test_what_is_changed_while_the_cas_thinks_is_left_alone(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("d/a", A), ("d/b", A), ("gone/a", A))
            await w.finalize("b1", successful=True)
            w.cas.lost = {A}
            w.cas.gate.clear()
            start = asyncio.create_task(w.start("b2"))
            await until(lambda: w.cas.asked)
            w.unlink("d/a")
            w.write("d/a", b"here")
            w.unlink("gone/a")
            w.cas.gate.set()
            await start
            await w.ingest.settle()
            assert await w.listing() == {"d/": None, "d/a": Digest.of(SHA256, b"here"), "gone/": None}

    asyncio.run(run())


def test_what_is_replaced_while_a_large_directory_is_gone_through_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outputd.builds.pace._SLICE", 0.0)

    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(*((f"f{index:03}", A) for index in range(600)))
            await w.finalize("b1", successful=True)
            w.cas.lost = {A}
            start = asyncio.create_task(w.start("b2"))
            await until(lambda: w.at("f000") is None)
            w.unlink("f599")
            w.write("f599", b"here")
            await start
            await w.ingest.settle()
            assert await w.listing() == {"f599": Digest.of(SHA256, b"here")}

    asyncio.run(run())


def test_the_loop_is_free_while_a_large_tree_is_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outputd.builds.pace._SLICE", 0.0)  # as on a machine that is slow enough

    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            digests = [Digest.of(SHA256, str(index).encode()) for index in range(5000)]
            await w.stage(*((f"d{index % 10}/{index}", digest) for index, digest in enumerate(digests)))
            await w.finalize("b1", successful=True)
            w.cas.lost = set(digests[::2])
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0)
                    turns += 1

            counter = asyncio.create_task(count())
            await w.start("b2")
            counter.cancel()
            assert turns >= 20  # ten directories, each gone through twice
            assert sum(content is not None for content in (await w.listing()).values()) == 2500

    asyncio.run(run())


def spread(directories: int, files: int) -> list[tuple[str, Digest]]:
    """Artifacts in as many directories, all different."""
    return [
        (f"d{d:02}/f{f}", Digest.of(SHA256, b"%d/%d" % (d, f)))
        for d in range(directories)
        for f in range(files)
    ]


def asked(w: World) -> int:
    """How many blobs were asked for since this was called last."""
    count = sum(map(len, w.cas.asked))
    w.cas.asked.clear()
    return count


def test_a_small_tree_is_always_asked_for_and_a_large_one_in_turns(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, always_asked=25) as w:
            await w.start()
            await w.stage(*spread(10, 10))
            await w.finalize("b1")
            await w.start("b2")
            assert asked(w) == 100  # nothing of it was asked for before
            in_turn: list[set[Digest]] = []
            for number in range(5):
                await w.finalize(f"b{number + 2}")
                await w.start(f"b{number + 3}")
                in_turn += w.cas.asked
                assert asked(w) == 20  # whole directories, as many as fit
            assert set().union(*in_turn) == {digest for _, digest in spread(10, 10)}

    asyncio.run(run())


def test_what_was_staged_or_changed_is_asked_for_beyond_the_budget(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, always_asked=0) as w:
            await w.start()
            await w.stage(*spread(10, 10))
            await w.finalize("b1")
            await w.start("b2")
            assert asked(w) == 100
            await w.stage(("d03/new", A), ("e/new", B), build_id="b2")
            w.write("d04/local", b"here")
            await w.finalize("b2")
            await w.start("b3")
            assert asked(w) == 11 + 1 + 11
            await w.finalize("b3")
            await w.start("b4")
            assert asked(w) == 0

    asyncio.run(run())


def test_a_lease_ends_and_outlives_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, always_asked=0, lease=100) as w:
            await w.start()
            await w.stage(*spread(3, 5))
            await w.finalize("b1")
            await w.start("b2")
            assert asked(w) == 15
            await w.finalize("b2")
        async with world(tmp_path, always_asked=0, lease=100) as w:
            await w.start("b3")
            assert asked(w) == 0
            assert w.root().children is None
            await w.finalize("b3")
            w.later = 101 * SECOND
            await w.start("b4")
            assert asked(w) == 15
            await w.finalize("b4")
            w.later = -101 * SECOND  # somebody sets the clock: a lease of the future says nothing
            await w.start("b5")
            assert asked(w) == 15

    asyncio.run(run())


def test_a_directory_s_lease_is_as_old_as_the_oldest_below_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, always_asked=20, lease=100) as w:
            await w.start()
            await w.stage(*spread(10, 10))
            for number, (later, count) in enumerate(((0, 100), (60, 20)), 1):
                await w.finalize(f"b{number}")
                w.later = later * SECOND
                await w.start(f"b{number + 1}")
                assert asked(w) == count
            await w.finalize("b3")
        async with world(tmp_path, always_asked=0, lease=100) as w:
            w.later = 110 * SECOND
            await w.start("b4")
            assert asked(w) == 80
            await w.finalize("b4")
            w.later = 165 * SECOND
            await w.start("b5")
            assert asked(w) == 20

    asyncio.run(run())


def test_what_is_trusted_is_not_looked_into(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, always_asked=0) as w:
            await w.start()
            await w.stage(*spread(10, 3), *((f"deep/{path}", digest) for path, digest in spread(10, 3)))
            await w.finalize("b1")
            await w.start("b2")
            await w.finalize("b2")
        async with world(tmp_path, always_asked=0) as w:
            await w.start("b3")
            await w.stage(("new", A), build_id="b3")
            await w.finalize("b3")
            looked: list[Directory] = []
            peek = w.loader.peek

            async def counting(directory: Directory) -> Mapping[bytes, Child]:
                looked.append(directory)
                return await peek(directory)

            w.loader.peek = counting  # type: ignore[method-assign]
            asked(w)
            await w.start("b4")
            assert (asked(w), looked) == (1, [])

    asyncio.run(run())


def test_looking_at_files_does_not_end_their_leases(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, always_asked=0) as w:
            await w.start()
            await w.stage(*spread(3, 5))
            await w.finalize("b1")
            await w.start("b2")
            await w.finalize("b2")
            asked(w)
            for name in ("d00", "d01"):
                directory = w.at(name)
                assert isinstance(directory, Directory)
                seen(w, directory)  # inode numbers are attributes: the records are outdated up to the root
            assert w.root().record is None
            await w.start("b3")
            assert asked(w) == 0

    asyncio.run(run())


def test_one_loss_in_the_budget_has_everything_asked_for(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, always_asked=10) as w:
            await w.start()
            items = spread(10, 10)
            await w.stage(*items)
            await w.finalize("b1")
            await w.start("b2")
            await w.finalize("b2")
            asked(w)
            w.cas.lost = {digest for _, digest in items}  # the remote has lost its disk
            await w.start("b3")
            assert asked(w) == 10 + 100  # what was lost in the first round has no lease in the second
            assert {path for path in await w.listing() if not path.endswith("/")} == set()

    asyncio.run(run())


def test_a_forgotten_blob_beyond_the_budget_is_found_when_its_turn_comes(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, always_asked=20) as w:
            await w.start()
            items = spread(10, 10)
            await w.stage(*items)
            await w.finalize("b1")
            await w.start("b2")
            (path, digest), *_ = items
            w.cas.lost = {digest}
            for number in range(2, 7):
                await w.finalize(f"b{number}")
                await w.start(f"b{number + 1}")
            assert path not in await w.listing()

    asyncio.run(run())


def test_entries_that_the_message_cannot_name_are_asked_for(tmp_path: Path) -> None:
    """A directory's digest says nothing of a name that is not UTF-8, so it has no lease by that digest."""

    async def run() -> None:
        async with world(tmp_path, always_asked=0) as w:
            await w.start()
            tree = TreeReference(_tree(w, C), None)
            # What is left of `d` will have the digest of `e`, which has a lease by then.
            await w.stage(("d/a", A), ("d/b", B), ("e/b", B), ("tree", tree))
            await w.finalize("b1")
            await w.start("b2")
            assert asked(w) == 3
            directory = w.at("d")
            assert isinstance(directory, Directory)
            assert w.tree.rename(directory, b"a", directory, b"\xff", 0, w.now()) is Status.OK
            await w.finalize("b2")
        async with world(tmp_path, always_asked=0) as w:
            w.cas.lost = {A, C}
            w.cas.asked.clear()
            await w.start("b3")
            assert A in set().union(*w.cas.asked)
            assert await w.listing() == {"d/": None, "d/b": B, "e/": None, "e/b": B, "tree/": None}

    asyncio.run(run())


def _tree(w: World, digest: Digest) -> Digest:
    root = reapi.Directory(files=[reapi.FileNode(name="c", digest=_proto(digest))])
    return w.cas.add(reapi.Tree(root=root).SerializeToString())


def test_what_the_remote_lost_and_we_hold_stays_and_is_uploaded(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w, asyncio.TaskGroup() as tasks:
            healing = tasks.create_task(w.healing.run())
            await w.start()
            held = w.cas.add(b"fetched once")
            w.write("made", b"made here")
            await w.stage(("d/held", held), ("d/a", A))
            await w.cas.fetch(held)
            await w.finalize("b1")
            made = Digest.of(SHA256, b"made here")
            w.cas.lost = {held, made, A}
            await w.start("b2")
            assert await w.listing() == {"d/": None, "d/held": held, "made": made}
            await until(lambda: w.healing.of("").blobs)
            assert w.cas.uploaded == [held]  # what was made here was never there
            healed = w.healing.of("")
            assert (healed.blobs, healed.bytes, len(healed.queue)) == (1, 12, 0)
            healing.cancel()

    asyncio.run(run())


def test_when_the_time_is_up_the_build_starts_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("outputd.builds.presence._BLOBS_A_BATCH", 10)
    monkeypatch.setattr("outputd.builds.presence._BATCHES", 1)

    async def run() -> None:
        async with world(tmp_path, always_asked=0, patience=SECOND // 5) as w:
            await w.start()
            items = spread(10, 10)
            await w.stage(*items)
            await w.finalize("b1")
            first = asyncio.Event()
            ask = w.cas.missing_remotely

            async def slow(digests: Collection[Digest]) -> set[Digest]:
                if w.cas.asked:
                    first.set()
                    await asyncio.Event().wait()
                return await ask(digests)

            w.cas.missing_remotely = slow  # type: ignore[method-assign]
            await w.start("b2")
            assert first.is_set()
            assert asked(w) == 10
            base = w.builds.live()[0]
            assert base.obtainable.lease is None
            assert base.obtainable.due is not None
            w.cas.missing_remotely = ask  # type: ignore[method-assign]
            checked = await w.presence.prolong(w.root(), w.now() - 3600 * SECOND, 0)
            assert (asked(w), checked.missing) == (90, 0)
            assert checked.lease is not None
            assert checked.lease.blobs == 100
            await w.finalize("b2")
            await w.start("b3")
            assert asked(w) == 0

    asyncio.run(run())
    assert "told of 10 blobs" in caplog.text


def test_a_cas_that_says_nothing_at_all_fails_the_start(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, patience=SECOND // 10) as w:
            await w.start()
            await w.stage(("a", A))
            await w.finalize("b1")
            w.cas.gate.clear()
            with pytest.raises(TimedOut, match="did not tell"):
                await w.start("b2")
            w.cas.gate.set()
            await w.start("b2")
            assert await w.listing() == {"a": A}

    asyncio.run(run())


def test_who_reads_what_is_nowhere_has_it_asked_for(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, always_asked=0) as w:
            await w.start()
            await w.stage(*spread(3, 5), ("d00/a", A))
            await w.finalize("b1")
            await w.start("b2")
            asked(w)
            w.cas.lost = {A}
            file = w.at("d00/a")
            assert isinstance(file, File)
            with pytest.raises(NotFound):
                await w.content.localise(file, writable=False)
            await w.finalize("b2")
            await w.start("b3")
            assert asked(w) == 6 + 6 + 10  # the directory, and when that had a loss, everything
            assert "d00/a" not in await w.listing()

    asyncio.run(run())
