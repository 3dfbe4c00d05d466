"""The life of builds: start, ends of every kind, clean, two workspaces, and what a client may repeat."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from outputd.builds.builds import Started
from outputd.digest import Digest, DigestFunction
from outputd.errors import Exhausted, Invalid, Precondition
from outputd.tree.node import Node
from tests.unit.builds.world import BASE, PREFIX, SHA256, Kernel, World, request, seen, until, world

A, B = (Digest.of(SHA256, data) for data in (b"a", b"bb"))
OTHER = "0" * 32


def test_a_started_build_has_an_output_path_named_after_its_base(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            assert await w.builds.start(request("b1")) == Started(BASE, None)
            assert await w.listing() == {}
            assert w.root().volume.function is SHA256

    asyncio.run(run())


def test_the_kernel_learns_of_a_new_output_path(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            w.tree.remember(w.tree.outputs, w.tree.root)
            w.tree.outputs.negatives = {BASE.encode()}
            await w.start()
            assert ("outputs", BASE.encode()) in w.kernel.told

    asyncio.run(run())


def test_starting_again_with_the_same_id_goes_on(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("a", A))
            staging = w.builds.staging("b1")
            await w.start()
            async with staging:
                assert await staging.place([(b"b", B)]) == [None]
            assert await w.listing() == {"a": A, "b": B}

    asyncio.run(run())


def test_starting_twice_at_once_is_one_build(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start("b0")
            await w.stage(("a", A), build_id="b0")
            w.cas.gate.clear()
            first, second = (asyncio.create_task(w.start("b1")) for _ in range(2))
            await until(lambda: w.cas.asked)
            w.cas.gate.set()
            await first
            await second
            assert len(w.cas.asked) == 1
            assert await w.stage(("b", B)) == [None]

    asyncio.run(run())


def test_another_build_on_the_same_base_ends_the_first(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start("b1")
            await w.stage(("a", A))
            await w.start("b2")
            for refused in (w.builds.staging, w.builds.stats, w.builds.function):
                with pytest.raises(Precondition, match="build_id 'b1': no such build runs"):
                    refused("b1")
            with pytest.raises(Precondition):
                w.builds.finalize_artifacts("b1", [])
            await w.finalize("b1", successful=True)  # unknown by now, and that is fine
            assert await w.listing() == {"a": A}
            assert await w.stage(("b", B), build_id="b2") == [None]

    asyncio.run(run())


def test_a_build_that_was_never_finalized_is_ended_by_the_next_start_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start("b1")
            await w.stage(("a", A))
            w.write("local", b"here")
            await w.start("b2")
            await w.stage(("later", B), build_id="b2")
        async with world(tmp_path) as w:
            assert await w.listing() == {"a": A, "local": Digest.of(SHA256, b"here"), "later": B}
            (base,) = await w.builds.describe()
            assert (base.last_build_id, base.running_build_id) == ("b1", "b2")
            with pytest.raises(Precondition):
                await w.stage(("x", A), build_id="b1")
            assert await w.stage(("x", A), build_id="b2") == [None]

    asyncio.run(run())


def test_a_build_id_belongs_to_one_base(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start("b1")
            with pytest.raises(Precondition, match=f"build_id b1: is running on output base {BASE}"):
                await w.start("b1", OTHER)

    asyncio.run(run())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "x" * 256])
def test_an_output_base_id_is_one_component(name: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            with pytest.raises(
                Invalid, match=r"output_base_id .*: expected one path component of 1 to 255 bytes"
            ):
                await w.start("b1", name)
            with pytest.raises(Invalid, match="output_base_id"):
                await w.builds.clean(name)
            assert await w.builds.describe() == []

    asyncio.run(run())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prefix": "outputs"}, "output_path_prefix"),
        ({"prefix": ""}, "output_path_prefix"),
        ({"aliases": {"relative": "."}}, r"output_path_aliases\['relative'\]"),
        ({"aliases": {"/a": "/absolute"}}, r"output_path_aliases\['/a'\]"),
        ({"aliases": {PREFIX: "."}}, "output_path_aliases"),
    ],
)
def test_a_bad_request_names_its_field_and_leaves_nothing_behind(
    changes: dict[str, Any], field: str, tmp_path: Path
) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            with pytest.raises(Invalid, match=field):
                await w.start("b1", **changes)
            with pytest.raises(Invalid, match="build_id: is empty"):
                await w.start("")
            assert await w.builds.describe() == []

    asyncio.run(run())


def test_two_bases_do_not_disturb_each_other(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start("b1")
            await w.start("o1", OTHER)
            await w.stage(("a", A))
            await w.stage(("b", B), build_id="o1")
            await w.finalize("b1", successful=True)
            w.cas.gate.clear()
            stuck = asyncio.create_task(w.start("b2"))
            await until(lambda: w.cas.asked)
            # The first base waits for its CAS; the second one goes through everything meanwhile.
            await w.stage(("c", B), build_id="o1")
            await w.finalize("o1", successful=True)
            await w.builds.clean(OTHER)
            await w.start("o2", OTHER)
            assert not stuck.done()
            w.cas.gate.set()
            await stuck
            assert await w.listing() == {"a": A}
            assert await w.listing(OTHER) == {}

    asyncio.run(run())


def test_clean_takes_the_tree_the_build_and_what_was_saved(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start("b0")
            await w.stage(("d/a", A), build_id="b0")
            w.write("d/local", b"here", close=True)
            await w.finalize("b0", successful=True)
            await w.start("b1")
            w.write("d/open", b"here")
            w.tree.remember(w.tree.outputs, w.tree.root)
            seen(w, w.root())
            number = w.root().volume.number
            await w.builds.clean(BASE)
            await w.builds.clean(BASE)
            assert ("outputs", BASE.encode()) in w.kernel.told
            assert w.tree.lookup(w.tree.outputs, BASE.encode()) is None
            with pytest.raises(Precondition):
                w.builds.staging("b1")
            assert await w.builds.describe() == []
            await until(lambda: not w.private_files())
            await w.start("b1")
            assert await w.listing() == {}
            assert w.root().volume.number != number
            await w.builds.clean(BASE)
        async with world(tmp_path) as w:
            assert await w.builds.describe() == []
            await w.builds.clean(BASE)

    asyncio.run(run())


def test_clean_of_a_base_that_was_not_looked_at_since_the_restart(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("a", A))
        async with world(tmp_path, crash=True) as w:
            await w.builds.clean(BASE)
        async with world(tmp_path) as w:
            assert await w.builds.describe() == []

    asyncio.run(run())


def test_clean_does_not_wait_for_a_start_and_ends_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start("b1")
            await w.stage(("a", A))
            w.cas.gate.clear()
            start = asyncio.create_task(w.start("b2"))
            await until(lambda: w.cas.asked)
            await w.builds.clean(BASE)
            w.cas.gate.set()
            with pytest.raises(Precondition, match="build b2: it was ended"):
                await start
            assert await w.builds.describe() == []

    asyncio.run(run())


def test_clean_while_the_base_is_being_saved_wins(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start()
            await w.stage(*((f"d{index}/f", A) for index in range(3000)))
            end = asyncio.create_task(w.finalize("b1", successful=True))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not end.done()
            await w.builds.clean(BASE)
            await end
        async with world(tmp_path) as w:
            assert await w.builds.describe() == []

    asyncio.run(run())


def test_a_clean_that_cannot_be_written_is_told_and_can_be_repeated(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start()
            await w.finalize("b1", successful=True)
            w.state._writing_connection.execute("PRAGMA query_only=1")
            with pytest.raises(Exception, match="readonly"):
                await w.builds.clean(BASE)
            w.state._writing_connection.execute("PRAGMA query_only=0")
            await w.builds.clean(BASE)
        async with world(tmp_path) as w:
            assert await w.builds.describe() == []

    asyncio.run(run())


@pytest.mark.parametrize(
    "changes",
    [{"function": DigestFunction.BLAKE3}, {"instance_name": "another"}],
    ids=["function", "instance"],
)
def test_contents_of_another_function_or_instance_are_dropped(
    changes: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start("b1")
            await w.stage(("d/a", A))
            w.write("local", b"here")
            await w.finalize("b1", successful=True)
            await w.start("b2", **changes)
            assert await w.listing() == {}
            assert w.cas.asked == []
            w.write("local", b"here")
            await w.finalize("b2", successful=True)
        async with world(tmp_path) as w:
            await w.start("b3", **changes)
            function = changes.get("function", SHA256)
            assert isinstance(function, DigestFunction)
            assert await w.listing() == {"local": Digest.of(function, b"here")}

    asyncio.run(run())
    assert sum("its contents are dropped" in record.getMessage() for record in caplog.records) == 1


def test_finalizing_is_harmless_twice_and_for_nobody(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.finalize("nobody", successful=False)
            await w.start()
            await w.stage(*((f"d{index}/f", A) for index in range(300)))
            first = asyncio.create_task(w.finalize("b1", successful=True))
            await asyncio.sleep(0)
            await w.finalize("b1", successful=True)
            (base,) = await w.builds.describe()
            assert not base.dirty  # the repeated call has waited until it was saved
            await first
            await w.finalize("b1", successful=True)
            with pytest.raises(Precondition):
                w.builds.stats("b1")

    asyncio.run(run())


def test_a_failure_to_save_does_not_fail_the_build(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with world(tmp_path, crash=True) as w:
            await w.start()
            await w.stage(("a", A))

            async def full(*_: object) -> None:
                raise Exhausted("the disk is full")

            monkeypatch.setattr(w.state, "save", full)
            await w.finalize("b1", successful=True)
            (base,) = await w.builds.describe()
            assert base.dirty
            assert base.save_error == "the disk is full"
            monkeypatch.undo()
            await w.start("b2")
            await w.finalize("b2", successful=True)
            (base,) = await w.builds.describe()
            assert not base.dirty
            assert base.save_error == ""
        async with world(tmp_path) as w:
            assert await w.listing() == {"a": A}

    asyncio.run(run())
    assert any("has no new checkpoint" in record.getMessage() for record in caplog.records)


def test_status(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start("b1")
            await w.start("o1", OTHER)
            await w.stage(("d/a", A), ("d/b", B))
            await w.finalize("o1", successful=True)
            other, base = await w.builds.describe()
            assert (base.id, base.running_build_id, base.last_build_id, base.entries, base.dirty) == (
                BASE,
                "b1",
                "",
                3,
                False,
            )
            assert (other.id, other.running_build_id, other.last_build_id, other.dirty) == (
                OTHER,
                "",
                "o1",
                False,
            )
            assert base.last_build_time == 0
            assert other.last_build_time > 0

    asyncio.run(run())


class _SlowKernel(Kernel):
    """Takes its time, as a notification does that must wait for a lock of the kernel's."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def invalidate(self, stale: list[tuple[Node, bytes | None]]) -> None:
        await self.gate.wait()
        await super().invalidate(stale)


def test_no_answer_before_the_kernel_was_told(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("a", A))
            seen(w, w.root())
            slow = _SlowKernel()
            w.builds._kernel = slow
            call = asyncio.create_task(_stage_one(w))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not call.done()
            slow.gate.set()
            await call
            assert (f"outputs/{BASE}", b"a") in slow.told

    asyncio.run(run())


async def _stage_one(w: World) -> None:
    await w.stage(("a", B))


def test_a_build_outlives_checkpoints_after_which_nothing_was_written(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("staged", w.cas.add(b"x")))
        for _ in range(2):
            async with world(tmp_path) as w:
                assert w.builds.function("b1") is SHA256
                assert list(await w.listing()) == ["staged"]

    asyncio.run(main())
