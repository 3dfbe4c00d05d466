"""BazelOutputService over a real socket: the checklist of the protocol, every error of its table, and sizes at the limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from outputd._proto import any_pb2
from outputd._proto import bazel_output_service_pb2 as bos
from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction, empty_digest
from outputd.errors import Exhausted, Invalid, OutputdError, Precondition, Unavailable
from outputd.tree.node import File, Local
from tests.rpc.client import (
    TYPE,
    Client,
    connected,
    digest_of,
    file,
    finalized,
    proto,
    tree,
)
from tests.unit.builds.world import BASE, EXECROOT, PREFIX, SHA256, World, seen, until, world

A, B = (Digest.of(SHA256, data) for data in (b"a", b"bb"))
OTHER = "f" * 32
MEBIBYTE = 1 << 20


@asynccontextmanager
async def service(path: Path, **options: Any) -> AsyncIterator[tuple[World, Client]]:
    async with world(path, **options) as w, connected(w.builds) as client:
        yield w, client


# 1. Clean


def test_clean(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (w, client):
            await client.clean("never heard of")
            with pytest.raises(Invalid, match="INVALID_ARGUMENT: output_base_id 'a/b'"):
                await client.clean("a/b")
            await client.start()
            await client.stage([file("a", A)])
            w.write("local", b"here")
            await client.clean()
            await client.clean()
            with pytest.raises(Precondition, match="FAILED_PRECONDITION: build_id 'b1': no such build runs"):
                await client.stat("a")
            await client.start("b2")
            assert not (await client.stat("a", build_id="b2"))[0].HasField("stat")
            await until(lambda: not w.private_files())

    asyncio.run(run())


# 2. and 3. StartBuild


def test_start_again_another_and_in_parallel(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (w, client):
            assert (await client.start()).output_path_suffix == BASE
            await client.stage([file("a", A)])
            reply = await client.start()
            assert reply.output_path_suffix == BASE
            assert not reply.HasField("initial_output_path_contents")
            assert digest_of((await client.stat("a"))[0].stat) == A
            await client.start("o1", OTHER)
            await client.stage([file("b", B)], build_id="o1")
            await client.start("b2")
            for call in (
                client.stage([]),
                client.stat(),
                client.finalize_artifacts([]),
            ):
                with pytest.raises(Precondition, match="FAILED_PRECONDITION"):
                    await call
            assert digest_of((await client.stat("b", build_id="o1"))[0].stat) == B
            assert digest_of((await client.stat("a", build_id="b2"))[0].stat) == A
            assert {base.decode() for base in w.tree.children(w.tree.outputs)} == {BASE, OTHER}

    asyncio.run(run())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"version": 0}, "version 0: expected 1"),
        ({"version": 2}, "version 2: expected 1"),
        ({"output_base_id": ""}, "output_base_id '': expected one path component"),
        ({"output_base_id": ".."}, "output_base_id"),
        ({"output_base_id": "a/b"}, "output_base_id"),
        ({"build_id": ""}, "build_id: is empty"),
        ({"output_path_prefix": ""}, "output_path_prefix"),
        ({"output_path_prefix": "relative/prefix"}, "output_path_prefix"),
        ({"output_path_aliases": {"relative": "."}}, "output_path_aliases"),
        ({"output_path_aliases": {"/x/..": "."}}, "output_path_aliases"),
        ({"output_path_aliases": {"/x": "/abs"}}, "output_path_aliases"),
        ({"output_path_aliases": {f"{PREFIX}/{BASE}/in": "."}}, "output_path_aliases"),
        ({"output_path_aliases": {"/x": ".", "/x/y": "."}}, "output_path_aliases"),
        ({"args": None}, "args: is missing"),
        ({"args": any_pb2.Any(type_url=f"{TYPE}FileArtifactLocator")}, "args.type_url"),
        ({"args": any_pb2.Any(type_url=f"{TYPE}StartBuildArgs", value=b"\xff")}, "args.value"),
        ({"args": {"digest_function": reapi.DigestFunction.UNKNOWN}}, "args.digest_function: is UNKNOWN"),
        ({"args": {"digest_function": reapi.DigestFunction.VSO}}, "digest_function VSO"),
        ({"args": {"digest_function": 4711}}, "digest_function 4711"),
        ({"args": {"instance_name": "a//b"}}, "instance_name 'a//b'"),
        ({"args": {"instance_name": "a/blobs"}}, "instance_name 'a/blobs'"),
    ],
)
def test_a_bad_start_is_never_retried_and_leaves_nothing(
    changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
    async def run() -> None:
        async with service(tmp_path) as (w, client):
            with pytest.raises(Invalid) as raised:
                await client.start(
                    **({"base": changes["output_base_id"]} if "output_base_id" in changes else changes)
                )
            assert "INVALID_ARGUMENT: " in str(raised.value)
            assert text in str(raised.value)
            assert await w.builds.describe() == []

    asyncio.run(run())


def test_the_cas_out_of_reach_at_the_start_is_worth_a_retry(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (w, client):
            await client.start("b1")
            await client.stage([file("a", A), file("b", B)])
            await client.finalize_build()
            w.cas.down = Unavailable("grpc://cache.example.com: connection refused")
            with pytest.raises(Unavailable, match="UNAVAILABLE: grpc://cache"):
                await client.start("b2")
            w.cas.down = None
            w.cas.lost = {A}
            await client.start("b2")
            first, second = await client.stat("a", "b", build_id="b2")
            assert not first.HasField("stat")
            assert digest_of(second.stat) == B

    asyncio.run(run())


@pytest.mark.parametrize("function", [function for function in DigestFunction if function.supported])
def test_every_digest_function(function: DigestFunction, tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (w, client):
            await client.start(args={"digest_function": int(function)})
            staged = Digest.of(function, b"staged")
            (response,) = await client.stage([file("staged", staged)])
            assert response.status.code == 0
            w.write("written", b"written")
            w.write("empty", b"")
            stats = await client.stat("staged", "written", "empty")
            assert [digest_of(stat.stat, function) for stat in stats] == [
                staged,
                Digest.of(function, b"written"),
                empty_digest(function),
            ]
        async with service(tmp_path) as (w, client):
            await client.start("b2", args={"digest_function": int(function)})
            stats = await client.stat("staged", "written", build_id="b2")
            assert [digest_of(stat.stat, function) for stat in stats] == [
                staged,
                Digest.of(function, b"written"),
            ]

    asyncio.run(run())


# 4. StageArtifacts


def test_stage_nothing_one_and_ten_thousand(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (_, client):
            await client.start()
            assert len(await client.stage([])) == 0
            assert [response.status.code for response in await client.stage([file("one", A)])] == [0]
            digests = [Digest.of(SHA256, str(index).encode()) for index in range(10_000)]
            many = [file(f"d{index // 100}/f{index}", digest) for index, digest in enumerate(digests)]
            responses = await client.stage(many)
            assert len(responses) == 10_000
            assert not any(response.HasField("status") for response in responses)
            stats = await client.stat(*(artifact.path for artifact in many))
            assert [digest_of(stat.stat) for stat in stats] == digests

    asyncio.run(run())


def test_each_item_has_its_own_status_in_order(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path, max_tree_bytes=1000) as (w, client):
            await client.start()
            w.symlink("link", "elsewhere")
            w.write("old", b"old")
            w.mkdir("directory")
            artifact = bos.StageArtifactsRequest.Artifact
            items = [
                (file("good/1", A), 0, ""),
                (file("", A), 3, "resolves to a directory"),
                (file("/absolute", A), 3, "is absolute"),
                (file("a/../../up", A), 3, "climbs above"),
                (artifact(path="x"), 3, "artifacts[4].locator: is missing"),
                (
                    artifact(path="x", locator=any_pb2.Any(type_url="a/b")),
                    3,
                    "artifacts[5].locator.type_url 'a/b'",
                ),
                (
                    artifact(
                        path="x",
                        locator=any_pb2.Any(type_url=f"{TYPE}FileArtifactLocator", value=b"\x0a\xff"),
                    ),
                    3,
                    "artifacts[6].locator.value",
                ),
                (
                    artifact(path="x", locator=any_pb2.Any(type_url=f"{TYPE}FileArtifactLocator")),
                    3,
                    "artifacts[7].locator.digest",
                ),
                (tree("x", Digest.make(SHA256, bytes(32), 1001)), 3, "max_tree_bytes"),
                (tree("x", None), 3, "neither"),
                (file("link/below", A), 0, ""),
                (file("old", B), 0, ""),
                (file("directory", B), 0, ""),
                (tree("tree", None, A), 0, ""),
                (file("good/2", B), 0, ""),
            ]
            responses = await client.stage([item for item, _, _ in items])
            assert [response.status.code for response in responses] == [code for _, code, _ in items]
            for response, (_, _, text) in zip(responses, items, strict=True):
                assert text in response.status.message
            stats = await client.stat("good/1", "link/below", "old", "directory", "good/2", "x", "tree")
            assert [digest_of(stat.stat) for stat in stats[:5]] == [A, A, B, B, B]
            assert not stats[5].HasField("stat")
            assert stats[6].stat.HasField("directory")

    asyncio.run(run())


def test_an_absent_blob_is_not_found_where_the_local_store_is_the_cas(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path, local_only=True) as (w, client):
            w.cas.vouches = False
            w.store.put(A, b"a")
            await client.start()
            responses = await client.stage([file("a", A), file("b", B), tree("t", B)])
            assert [response.status.code for response in responses] == [0, 5, 5]
            assert str(B) in responses[1].status.message

    asyncio.run(run())


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


def test_the_same_request_again_is_harmless(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (w, client):
            await client.start()
            for _ in range(3):
                assert [
                    response.status.code for response in await client.stage([file("d/a", A), file("d/b", B)])
                ] == [0, 0]
                await client.finalize_artifacts([finalized("d/a", A)])
            assert await w.listing() == {"d/": None, "d/a": A, "d/b": B}
            for _ in range(3):
                await client.finalize_build()

    asyncio.run(run())


# 5. and 6. BatchStat


def test_stats_of_every_kind_without_a_download(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (w, client):
            await client.start()
            await client.stage([file("hello/x", A), file("file", B)])
            w.mkdir("nested")
            w.symlink("nested/rel_file", "../file")
            w.symlink("nested/alias", f"{EXECROOT}/bazel-out/hello")
            w.symlink("nested/abs", f"{PREFIX}/{BASE}/hello")
            w.symlink("nested/ext", "/etc/passwd")
            w.symlink("loop", "loop")
            w.symlink("dangling", "nowhere")
            w.write("local", b"here")
            opened = w.write("open", b"", close=False)
            paths = {
                "file": "file",
                "hello": "directory",
                "": "directory",
                "nested/rel_file": "symlink",
                "nested/alias/x": "file",
                "nested/abs/x": "file",
                "dangling": "symlink",
                "local": "file",
                "open": "file",
                "nested/ext/y": None,
                "../foo": None,
                "/etc/passwd": None,
                "loop/": None,
            }
            stats = await client.stat(*paths, "missing", "file/x")
            assert [stat.stat.WhichOneof("type") for stat in stats[:-2]] == list(paths.values())
            assert all(stat.HasField("stat") for stat in stats[:-2])
            assert not any(stat.HasField("stat") for stat in stats[-2:])
            found = dict(zip(paths, stats, strict=False))
            assert digest_of(found["local"].stat) == Digest.of(SHA256, b"here")
            assert digest_of(found["nested/alias/x"].stat) == A
            assert found["nested/rel_file"].stat.symlink.target == "../file"
            assert not found["open"].stat.file.HasField("locator")
            assert w.cas.read_digests == []
            w.close(opened)

    asyncio.run(run())


# 9. to 11. FinalizeBuild, restart, contents lost


def test_after_the_end_a_build_id_is_unknown(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (_, client):
            await client.finalize_build("nobody", successful=False)
            await client.start()
            await client.finalize_build()
            for call in (client.stage([file("a", A)]), client.stat("a"), client.finalize_artifacts([])):
                with pytest.raises(Precondition, match="FAILED_PRECONDITION: build_id 'b1'"):
                    await call

    asyncio.run(run())


def test_a_failure_to_save_never_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with service(tmp_path, crash=True) as (w, client):
            await client.start()
            await client.stage([file("a", A)])

            async def fails(*_: object) -> None:
                raise Exhausted("no room")

            monkeypatch.setattr(w.state, "save", fails)
            await client.finalize_build()

    asyncio.run(run())


def test_contents_persist_over_a_restart_and_an_unfinished_build_is_unknown(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (w, client):
            await client.start("b1")
            await client.stage([file("d/a", A)])
            w.write("d/local", b"here")
            await client.finalize_build()
            await client.start("b2")
        async with service(tmp_path) as (_, client):
            with pytest.raises(Precondition, match="outputd was restarted since StartBuild"):
                await client.stat("d/a", build_id="b2")
            await client.start("b3")
            stats = await client.stat("d/a", "d/local", build_id="b3")
            assert [digest_of(stat.stat) for stat in stats] == [A, Digest.of(SHA256, b"here")]

    asyncio.run(run())


def test_what_was_finalized_and_changed_is_told_when_wanted(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path, initial_contents=True) as (w, client):
            assert not (await client.start("b1")).HasField("initial_output_path_contents")
            await client.stage([file("d/a", A), file("d/b", B)])
            await client.finalize_artifacts([finalized("d/a", A), finalized("d/b", B)])
            await client.finalize_build()
            w.unlink("d/b")
            contents = (await client.start("b2")).initial_output_path_contents
            assert contents.build_id == "b1"
            assert list(contents.modified_path_prefixes) == ["d/b"]
            await client.finalize_build("b2")
            reply = await client.start("b3")
            assert reply.HasField("initial_output_path_contents")  # tracked, and nothing has changed
            assert reply.initial_output_path_contents.build_id == "b2"
            assert not reply.initial_output_path_contents.modified_path_prefixes

    asyncio.run(run())


def test_a_finalized_artifact_without_a_digest_is_refused(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (_, client):
            await client.start()
            bad = bos.FinalizeArtifactsRequest.Artifact(path="b")
            with pytest.raises(Invalid, match=r"artifacts\[1\]\.locator: is missing"):
                await client.finalize_artifacts([finalized("a", A), bad])

    asyncio.run(run())


# What no client should send


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


# Concurrency


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
