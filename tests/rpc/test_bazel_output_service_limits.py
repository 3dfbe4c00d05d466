"""BazelOutputService at its limits: huge requests, bytes that are no request, many calls at once, calls given up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import grpc.aio
import pytest

from outputd._proto import bazel_output_service_pb2 as bos
from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest
from outputd.errors import OutputdError
from outputd.tree.node import File, Local
from tests.rpc.client import (
    digest_of,
    file,
    finalized,
    proto,
    service,
    tree,
)
from tests.unit.builds.world import BASE, SHA256, seen, until

A, B = (Digest.of(SHA256, data) for data in (b"a", b"bb"))
OTHER = "f" * 32
MEBIBYTE = 1 << 20


def test_requests_beyond_four_mebibytes(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (_, client):
            await client.start()
            count = 30_000
            many = [
                file(
                    f"k8-fastbuild/bin/some/package/d{index // 100}/f{index}",
                    Digest.make(SHA256, index.to_bytes(32), index),
                )
                for index in range(count)
            ]
            assert bos.StageArtifactsRequest(build_id="b1", artifacts=many).ByteSize() > 5 * MEBIBYTE
            assert len(await client.stage(many)) == count
            artifacts = [finalized(item.path, A) for item in many]
            await client.finalize_artifacts(artifacts)
            # The reply would be larger than Bazel takes: its end is without locators.
            stats = await client.stat(*(item.path for item in many))
            assert len(stats) == count
            assert all(stat.stat.HasField("file") for stat in stats)
            located = [stat.stat.file.HasField("locator") for stat in stats]
            assert located[0]
            assert 25_000 < sum(located) < count
            assert not any(located[located.index(False) :])

    asyncio.run(run())


def test_a_hundred_thousand_paths_in_one_call(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (_, client):
            await client.start()
            await client.stage([file("d/f", A)])
            stats = await client.stat(*(f"d/{'f' if index % 2 else index}" for index in range(100_000)))
            assert [stat.HasField("stat") for stat in stats] == [bool(index % 2) for index in range(100_000)]

    asyncio.run(run())


def test_more_than_any_reply_can_hold_is_refused_before_anything_happens(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (w, client):
            await client.start()
            head = bos.StageArtifactsRequest(build_id="b1").SerializeToString()
            many = head + b"\x12\x00" * 700_000
            for method, field in (("StageArtifacts", "artifacts"), ("BatchStat", "paths")):
                call = client.raw(method)
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await call(many, timeout=30)
                assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert f"{field}: 700000 are too many for one reply of 4 MiB, which holds 698" in str(
                    raised.value.details()
                )
            assert await w.listing() == {}

    asyncio.run(run())


@pytest.mark.parametrize(
    "method", ["StageArtifacts", "BatchStat", "FinalizeArtifacts", "StartBuild", "Clean", "FinalizeBuild"]
)
def test_bytes_that_are_no_request(method: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (_, client):
            await client.start()
            call = client.raw(method)
            for data in (b"\xff", b"\x12\x05ab", b"\x0a\x02\xff\xfe"):
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await call(data, timeout=10)
                assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert len(await client.stage([file("still", A)])) == 1

    asyncio.run(run())


def test_a_directory_nobody_has_fails_what_lies_below_it_and_nothing_else(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (_, client):
            await client.start()
            liar = tree("lie", Digest.of(SHA256, b"nobody has this Tree"))
            assert (await client.stage([liar]))[0].status.code == 0
            below, fine, stat = await client.stage([file("lie/x", A), file("fine", A), file("lie/y", A)])
            assert (below.status.code, fine.status.code, stat.status.code) == (5, 0, 5)
            in_lie, lie, good = await client.stat("lie/x", "lie", "fine")
            assert in_lie.HasField("stat")
            assert in_lie.stat.WhichOneof("type") is None
            assert lie.stat.HasField("directory")
            assert digest_of(good.stat) == A

    asyncio.run(run())


def test_a_tree_that_lies_is_data_loss_for_its_item(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (w, client):
            await client.start()
            message = reapi.Directory(
                files=[reapi.FileNode(name="../up", digest=proto(A))]
            ).SerializeToString()
            digest = w.cas.add(message)
            assert (await client.stage([tree("d", None, digest)]))[0].status.code == 0
            (response,) = await client.stage([file("d/x", A)])
            assert response.status.code == grpc.StatusCode.DATA_LOSS.value[0]
            assert "'../up' cannot be the name of an entry" in response.status.message

    asyncio.run(run())


def test_many_calls_at_once_on_several_bases(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (w, client):
            bases = [f"{index:032x}" for index in range(4)]

            async def one_build(base: str) -> None:
                build_id = f"build-{base}"
                await client.start(build_id, base)
                async with asyncio.TaskGroup() as actions:
                    for action in range(20):
                        actions.create_task(one_action(build_id, action))
                await client.finalize_build(build_id)

            async def one_action(build_id: str, action: int) -> None:
                digests = [Digest.of(SHA256, f"{build_id}/{action}/{index}".encode()) for index in range(20)]
                artifacts = [
                    file(f"d{action % 3}/a{action}/f{index}", digest) for index, digest in enumerate(digests)
                ]
                assert all(response.status.code == 0 for response in await client.stage(artifacts, build_id))
                for artifact, digest in zip(artifacts, digests, strict=True):
                    assert digest_of((await client.stat(artifact.path, build_id=build_id))[0].stat) == digest
                await client.finalize_artifacts(
                    [finalized(a.path, d) for a, d in zip(artifacts, digests, strict=True)], build_id
                )

            async with asyncio.TaskGroup() as builds:
                for base in bases:
                    builds.create_task(one_build(base))
            for base in bases:
                listing = await w.listing(base)
                assert sum(content is not None for content in listing.values()) == 400

    asyncio.run(run())


def test_a_request_given_up_midway_leaves_files_that_can_be_replaced(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (w, client):
            await client.start()
            message = reapi.Directory(files=[reapi.FileNode(name="f", digest=proto(A))])
            lazy = w.cas.add(message.SerializeToString())
            await client.stage([tree("lazy", None, lazy), file("a", B)])
            seen(w, w.root())
            w.cas.gate.clear()
            call = asyncio.create_task(client.stage([file("a", A), file("lazy/x", A), file("b", A)]))
            await until(lambda: w.cas.read_digests)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await until(lambda: (f"outputs/{BASE}", b"a") in w.kernel.told)
            w.cas.gate.set()
            # The action runs instead and truncates what was staged.
            node = w.at("a")
            assert isinstance(node, File)
            opened = w.content.open(node, writing=True, truncate=True)
            w.content.write(opened, 0, memoryview(b"from the action"), append=False)
            assert isinstance(node.content, Local)
            w.content.release(opened, writing=True)
            assert digest_of((await client.stat("a"))[0].stat) == Digest.of(SHA256, b"from the action")

    asyncio.run(run())


def test_a_start_given_up_while_the_cas_thinks_is_repeated(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (w, client):
            await client.start("b1")
            await client.stage([file("a", A)])
            w.cas.gate.clear()
            call = asyncio.create_task(client.start("b2"))
            await until(lambda: w.cas.asked)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            w.cas.gate.set()
            await client.start("b2")
            assert digest_of((await client.stat("a", build_id="b2"))[0].stat) == A

    asyncio.run(run())


def test_no_error_here_is_retried_by_bazel(tmp_path: Path) -> None:
    """The codes that Bazel's retrier takes as passing: none of them for what a retry cannot change."""
    retried = (
        "CANCELLED",
        "UNKNOWN",
        "DEADLINE_EXCEEDED",
        "ABORTED",
        "INTERNAL",
        "UNAVAILABLE",
        "RESOURCE_EXHAUSTED",
    )

    async def run() -> None:
        async with service(tmp_path) as (_, client):
            await client.start()
            for call in (
                client.start("", BASE),
                client.start("b1", OTHER),
                client.start("b2", "a/b"),
                client.clean("a/b"),
                client.stage([], build_id="nobody"),
                client.stat("x", build_id="nobody"),
                client.finalize_artifacts([], build_id="nobody"),
            ):
                with pytest.raises(OutputdError) as raised:
                    await call
                assert not any(f": {code}: " in str(raised.value) for code in retried)

    asyncio.run(run())


def test_the_root_of_a_cleaned_base_is_gone_at_once_whatever_it_holds(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (w, client):
            await client.start()
            await client.stage([file(f"d{index // 100}/f{index}", A) for index in range(20_000)])
            root = w.root()
            changes = root.volume.changes
            await client.clean()
            assert root.parent is None
            assert root.volume.changes == changes  # nothing was removed one by one before the answer

    asyncio.run(run())
