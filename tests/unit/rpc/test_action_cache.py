from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

import grpc
import pytest
import uvloop

from outputd._proto import remote_execution_pb2 as reapi
from outputd.builds.write_back import WriteBack
from outputd.digest import Digest, empty_digest
from outputd.errors import (
    Denied,
    Exhausted,
    Invalid,
    NotFound,
    Unavailable,
)
from outputd.rpc import recent_results
from outputd.rpc.action_cache import ActionCache
from outputd.rpc.client import Stub
from outputd.rpc.digests import digest_message
from outputd.rpc.inlined import Inlined
from outputd.rpc.limits import MESSAGE_LIMIT
from outputd.rpc.referenced import ReferencedResults
from outputd.rpc.services import service_handler
from outputd.store.marks import Marks
from tests.unit.rpc.fakes import SHA256, FakeStore
from tests.unit.rpc.loopback import served
from tests.unit.rpc.played_remote import PlayedRemote, Refused, passing_to

SERVICE = reapi.DESCRIPTOR.services_by_name["ActionCache"]
ACTION = Digest.of(SHA256, b"action")
GONE = Digest.of(SHA256, b"gone")


class FakeResults:
    def __init__(self) -> None:
        self.results: dict[tuple[str, Digest], bytes] = {}

    async def get(self, instance: str, action: Digest) -> bytes | None:
        return self.results.get((instance, action))

    async def put(self, instance: str, action: Digest, result: bytes) -> None:
        if result == b"":
            raise Exhausted("disk full")
        self.results[instance, action] = result


def with_cache(
    store: FakeStore,
    use: Callable[[Stub], Awaitable[None]],
    *,
    results: FakeResults | None = None,
    played: PlayedRemote | None = None,
    check_results: bool = False,
    queue: Callable[[], AbstractAsyncContextManager[WriteBack | None]] = nullcontext,
) -> None:
    async def main() -> None:
        async with passing_to(played, "settings") as passing, queue() as waiting:
            cache = ActionCache(
                results or FakeResults(),
                store,
                passing,
                Inlined(store.local),
                check_results=lambda _: check_results,
                queue=waiting,
            )
            async with served(service_handler(SERVICE, cache)) as channel:
                await use(Stub(channel, SERVICE))

    uvloop.run(main())


async def get(stub: Stub, *, instance: str = "", action: Digest = ACTION) -> reapi.ActionResult:
    request = reapi.GetActionResultRequest(instance_name=instance, action_digest=digest_message(action))
    return await stub.call("GetActionResult", request, reapi.ActionResult, timeout=10)


async def update(stub: Stub, result: reapi.ActionResult, *, instance: str = "") -> reapi.ActionResult:
    request = reapi.UpdateActionResultRequest(
        instance_name=instance, action_digest=digest_message(ACTION), action_result=result
    )
    return await stub.call("UpdateActionResult", request, reapi.ActionResult, timeout=10)


def file_result(digest: Digest) -> reapi.ActionResult:
    result = reapi.ActionResult(exit_code=3)
    result.output_files.add(path="a", digest=digest_message(digest))
    return result


def directory(files: list[Digest], directories: list[Digest]) -> bytes:
    message = reapi.Directory()
    for number, digest in enumerate(files):
        message.files.add(name=f"f{number}", digest=digest_message(digest))
    for number, digest in enumerate(directories):
        message.directories.add(name=f"d{number}", digest=digest_message(digest))
    return message.SerializeToString(deterministic=True)


def test_a_result_is_found_in_its_own_instance_only() -> None:
    async def use(stub: Stub) -> None:
        with pytest.raises(NotFound, match="no result"):
            await get(stub)
        result = file_result(here)
        assert await update(stub, result, instance="main") == result
        assert await get(stub, instance="main") == result
        with pytest.raises(NotFound, match="no result"):
            await get(stub)
        with pytest.raises(NotFound, match="no result"):
            await get(stub, instance="main", action=here)

    store = FakeStore()
    here = store.add(b"here")
    with_cache(store, use)


def results_with_everything(store: FakeStore, *, missing: str = "") -> reapi.ActionResult:
    """A result that refers to a blob in every way there is; the one named `missing` is absent."""

    def blob(name: str) -> Digest:
        return Digest.of(SHA256, name.encode()) if name == missing else store.add(name.encode())

    def stored(name: str, data: bytes) -> Digest:
        return Digest.of(SHA256, data) if name == missing else store.add(data)

    result = file_result(blob("file"))
    result.output_files.add(path="empty", digest=digest_message(empty_digest(SHA256)))
    result.stdout_digest.CopyFrom(digest_message(blob("stdout")))
    result.stderr_digest.CopyFrom(digest_message(blob("stderr")))
    inner = directory([blob("file in tree")], [])
    tree = reapi.Tree()
    tree.root.ParseFromString(directory([blob("file in root of tree")], [Digest.of(SHA256, inner)]))
    tree.children.add().ParseFromString(inner)
    tree_digest = stored("tree", tree.SerializeToString())
    result.output_directories.add(path="t", tree_digest=digest_message(tree_digest))
    below = stored("directory", directory([blob("file in directory")], [empty_digest(SHA256)]))
    root = stored("root", directory([], [below, below]))
    result.output_directories.add(path="d", root_directory_digest=digest_message(root))
    return result


def test_a_result_whose_blobs_are_all_here_is_answered() -> None:
    async def use(stub: Stub) -> None:
        result = results_with_everything(store)
        await update(stub, result)
        assert await get(stub) == result

    store = FakeStore()
    with_cache(store, use)


@pytest.mark.parametrize(
    "missing",
    [
        "file",
        "stdout",
        "stderr",
        "tree",
        "file in tree",
        "file in root of tree",
        "root",
        "directory",
        "file in directory",
    ],
)
def test_a_result_is_not_found_when_one_of_its_blobs_is_gone(missing: str) -> None:
    async def use(stub: Stub) -> None:
        await update(stub, results_with_everything(store, missing=missing))
        with pytest.raises(NotFound, match=r"gone|nowhere"):
            await get(stub)

    store = FakeStore()
    with_cache(store, use)


def test_trees_that_lie_make_a_result_useless_not_an_error() -> None:
    async def use(stub: Stub) -> None:
        for data in (
            b"\xff\xff",
            reapi.Tree(root=reapi.Directory(files=[reapi.FileNode()])).SerializeToString(),
        ):
            result = reapi.ActionResult()
            result.output_directories.add(path="t", tree_digest=digest_message(store.add(data)))
            await update(stub, result)
            with pytest.raises(NotFound, match="cannot be used"):
                await get(stub)
        huge = reapi.Digest(hash="a" * 64, size_bytes=1 << 40)
        result = reapi.ActionResult()
        result.output_directories.add(path="t", tree_digest=huge)
        await update(stub, result)
        with pytest.raises(NotFound, match="larger than"):
            await get(stub)

    store = FakeStore()
    with_cache(store, use)


def test_a_store_that_cannot_tell_is_no_miss() -> None:
    async def use(stub: Stub) -> None:
        await update(stub, file_result(here))
        store.broken = Unavailable("remote gone")
        with pytest.raises(Unavailable, match="remote gone"):
            await get(stub)

    store = FakeStore()
    here = store.add(b"here")
    with_cache(store, use)


def test_what_was_kept_and_cannot_be_read_is_a_miss() -> None:
    async def use(stub: Stub) -> None:
        with pytest.raises(NotFound, match="cannot be used"):
            await get(stub)

    results = FakeResults()
    results.results["", ACTION] = b"\xff"
    with_cache(FakeStore(), use, results=results)


def test_updates_that_are_refused() -> None:
    async def use(stub: Stub) -> None:
        request = reapi.UpdateActionResultRequest(action_digest=digest_message(ACTION))
        with pytest.raises(Invalid, match="action_result is not set"):
            await stub.call("UpdateActionResult", request, reapi.ActionResult, timeout=10)
        with pytest.raises(Invalid, match=r"action_result\.output_files\[0\]\.digest"):
            result = reapi.ActionResult()
            result.output_files.add(path="a", digest=reapi.Digest(hash="a" * 40))
            await update(stub, result)
        with pytest.raises(Invalid, match=r"action_result\.output_directories\[0\]\.tree_digest"):
            result = reapi.ActionResult()
            result.output_directories.add(path="a")
            await update(stub, result)
        with pytest.raises(Invalid, match="cannot be answered"):
            await update(stub, reapi.ActionResult(stdout_raw=bytes(MESSAGE_LIMIT)))
        with pytest.raises(Invalid, match="instance_name"):
            await update(stub, file_result(GONE), instance="blobs")
        with pytest.raises(Exhausted, match="disk full"):
            await update(stub, reapi.ActionResult())
        with pytest.raises(Invalid, match="action_digest"):
            await stub.call(
                "GetActionResult",
                reapi.GetActionResultRequest(action_digest=reapi.Digest(hash="A" * 64)),
                reapi.ActionResult,
                timeout=10,
            )

    with_cache(FakeStore(), use)


def test_contents_are_inlined_as_far_as_they_are_here_and_fit() -> None:
    async def use(stub: Stub) -> None:
        result = reapi.ActionResult(stdout_digest=digest_message(out), stderr_digest=digest_message(err))
        for name, digest in (("a", small), ("b", large), ("c", small)):
            result.output_files.add(path=name, digest=digest_message(digest))
        await update(stub, result)
        request = reapi.GetActionResultRequest(action_digest=digest_message(ACTION), inline_stdout=True)
        request.inline_output_files.extend(["a", "b", "none"])
        came = await stub.call("GetActionResult", request, reapi.ActionResult, timeout=10)
        assert (came.stdout_raw, came.stderr_raw) == (b"out", b"")
        assert [file.contents for file in came.output_files] == [b"small", b"", b""]

    store = FakeStore()
    out, err, small = store.add(b"out"), store.add(b"err"), store.add(b"small")
    large = store.add(bytes(MESSAGE_LIMIT))
    with_cache(store, use)


def test_the_remote_is_asked_once_and_for_its_own_instance() -> None:
    async def use(stub: Stub) -> None:
        for _ in range(3):
            assert await get(stub) == file_result(GONE)
        assert [request.instance_name for request in played.requests] == ["settings"]
        with pytest.raises(NotFound):
            await get(stub, instance="other")
        assert played.requests[1].instance_name == "other"

    def answer(request: reapi.GetActionResultRequest) -> object:
        assert request.digest_function == reapi.DigestFunction.SHA256
        return file_result(GONE) if request.instance_name == "settings" else not_found

    not_found = Refused(grpc.StatusCode.NOT_FOUND, "no such action")
    played = PlayedRemote()
    played.answers = {"GetActionResult": answer}
    with_cache(FakeStore(), use, played=played)


def test_an_update_is_the_remotes_to_take() -> None:
    async def use(stub: Stub) -> None:
        with pytest.raises(Denied, match="not you"):
            await update(stub, file_result(GONE))
        with pytest.raises(NotFound):
            await get(stub)
        assert not results.results

    results = FakeResults()
    played = PlayedRemote()
    played.answers = {
        "UpdateActionResult": Refused(grpc.StatusCode.PERMISSION_DENIED, "not you"),
        "GetActionResult": Refused(grpc.StatusCode.NOT_FOUND, "no such action"),
    }
    with_cache(FakeStore(), use, results=results, played=played)


def test_what_the_remote_gave_is_answered_from_here() -> None:
    result = reapi.ActionResult(stdout_raw=b"out", stdout_digest=digest_message(Digest.of(SHA256, b"out")))

    async def use(stub: Stub) -> None:
        await update(stub, result)
        request = reapi.GetActionResultRequest(action_digest=digest_message(ACTION), inline_stdout=True)
        for _ in range(2):
            assert await stub.call("GetActionResult", request, reapi.ActionResult, timeout=10) == result
        assert not (await get(stub)).stdout_raw  # which need not be
        names = [type(request).__name__ for request in played.requests]
        assert names == ["UpdateActionResultRequest", "GetActionResultRequest"]

    played = PlayedRemote()
    played.answers = {"UpdateActionResult": lambda request: request.action_result, "GetActionResult": result}
    with_cache(FakeStore(), use, played=played)


def test_the_blobs_of_what_the_remote_answers_may_be_asked_for() -> None:
    async def use(stub: Stub) -> None:
        with pytest.raises(NotFound, match="1 blobs of its result are gone"):
            await get(stub)
        played.answers["GetActionResult"] = file_result(here)
        for _ in range(2):
            assert await get(stub) == file_result(here)
        assert len(played.requests) == 2

    store = FakeStore()
    here = store.add(b"here")
    played = PlayedRemote()
    played.answers["GetActionResult"] = file_result(GONE)
    with_cache(store, use, played=played, check_results=True)


def test_before_a_plain_cas_it_is_the_cache() -> None:
    async def use(stub: Stub) -> None:
        with pytest.raises(NotFound, match="no result is kept"):
            await get(stub)
        assert await update(stub, file_result(here)) == file_result(here)
        assert await get(stub) == file_result(here)

    store = FakeStore()
    here = store.add(b"here")
    played = PlayedRemote()
    played.answers["GetCapabilities"] = reapi.ServerCapabilities()
    with_cache(store, use, played=played)


def test_what_is_remembered_of_the_remote_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_results, "_BYTES", 5000)
    recent = recent_results.RecentResults()
    actions = [Digest.of(SHA256, bytes([number])) for number in range(20)]
    for action in [*actions, *actions[::-1]]:
        recent.gave("", action, bytes(100))
        assert recent._size == 500 * len(recent._kept) <= 5000
    assert [recent.fresh("", action) is None for action in actions] == [False] * 10 + [True] * 10
    recent.took("", actions[0], b"taken")
    assert (recent.fresh("", actions[0]), recent.last("", actions[0])) == (None, b"taken")
    recent.has_none("", actions[0])
    assert recent.last("", actions[0]) is None


def test_without_an_answer_what_is_whole_here_is_still_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_results, "_FRESH", 0.0)

    async def use(stub: Stub) -> None:
        await update(stub, file_result(here))
        played.answers["GetActionResult"] = Refused(grpc.StatusCode.UNAVAILABLE, "away")
        assert await get(stub) == file_result(here)
        await update(stub, file_result(GONE))
        with pytest.raises(Unavailable, match="away"):
            await get(stub)

    store = FakeStore()
    here = store.add(b"here")
    played = PlayedRemote()
    played.answers = {"UpdateActionResult": lambda request: request.action_result}
    with_cache(store, use, played=played)


class Kept:
    """Results as the state keeps them, two at a time."""

    def __init__(self, results: dict[bytes, reapi.ActionResult]) -> None:
        self.rows = {Digest.of(SHA256, name): result.SerializeToString() for name, result in results.items()}

    def results(self, after: tuple[str, bytes]) -> list[tuple[str, Digest, bytes]]:
        return [("", action, self.rows[action]) for action in sorted(self.rows) if action > after[1]][:2]

    async def drop_results(self, results: Sequence[tuple[str, Digest, bytes]]) -> None:
        for _, action, result in results:
            assert self.rows.pop(action) == result


def test_what_results_name_is_marked_and_useless_ones_are_dropped() -> None:
    store = FakeStore()
    file, inner, lost = (store.add(data) for data in (b"file", b"inner", b"lost"))
    below = store.add(directory([inner], []))
    tree_message = reapi.Tree()
    tree_message.root.ParseFromString(directory([inner], []))
    tree = store.add(tree_message.SerializeToString())
    in_tree, in_directory = reapi.ActionResult(), reapi.ActionResult()
    in_tree.output_directories.add(path="t", tree_digest=digest_message(tree))
    in_directory.output_directories.add(path="d", root_directory_digest=digest_message(below))
    kept = Kept(
        {
            b"plain": file_result(file),
            b"tree": in_tree,
            b"directory": in_directory,
            b"gone": file_result(GONE),
            b"partly": file_result(lost),
            b"nothing": reapi.ActionResult(),
        }
    )
    marks = Marks()
    del store.blobs[lost]
    uvloop.run(ReferencedResults(kept, store).mark(marks, store.blobs.__contains__))
    assert all(digest in marks for digest in (file, tree, below, inner))
    assert GONE not in marks
    assert set(kept.rows) == {
        Digest.of(SHA256, name) for name in (b"plain", b"tree", b"directory", b"nothing")
    }


def test_a_result_that_is_no_message_is_dropped() -> None:
    kept = Kept({})
    kept.rows[ACTION] = b"\xff\xff"
    uvloop.run(ReferencedResults(kept, FakeStore()).mark(Marks(), lambda _: True))
    assert kept.rows == {}
