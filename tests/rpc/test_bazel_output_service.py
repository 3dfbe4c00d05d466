"""BazelOutputService over a real socket: the checklist of the protocol, every error of its table, and sizes at the limits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from outputd._proto import any_pb2
from outputd._proto import bazel_output_service_pb2 as bos
from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction, empty_digest
from outputd.errors import Exhausted, Invalid, Precondition, Unavailable
from tests.rpc.client import (
    TYPE,
    digest_of,
    file,
    finalized,
    service,
    tree,
)
from tests.unit.builds.world import BASE, EXECROOT, PREFIX, SHA256, until

A, B = (Digest.of(SHA256, data) for data in (b"a", b"bb"))
OTHER = "f" * 32


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


def test_an_error_far_back_in_a_request_names_its_item(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (_, client):
            await client.start()
            bad = bos.StageArtifactsRequest.Artifact(path="bad")
            responses = await client.stage([*(file(f"{index}", A) for index in range(777)), bad])
            assert "artifacts[777].locator: is missing" in responses[777].status.message

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


def test_contents_persist_over_a_restart_and_an_unfinished_build_goes_on(tmp_path: Path) -> None:
    async def run() -> None:
        async with service(tmp_path) as (w, client):
            await client.start("b1")
            await client.stage([file("d/a", A)])
            w.write("d/local", b"here")
            await client.finalize_build()
            await client.start("b2")
        async with service(tmp_path) as (_, client):
            stats = await client.stat("d/a", "d/local", build_id="b2")
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
