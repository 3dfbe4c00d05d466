"""Action results while their remote is away: they wait, are answered from there, and keep their order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import grpc
import pytest
import uvloop

from outputd._proto import remote_execution_pb2 as reapi
from outputd.builds.queued_rows import Key
from outputd.builds.write_back import WriteBack
from outputd.errors import (
    Corrupt,
    Denied,
    Invalid,
    NotFound,
    OutputdError,
    Throttled,
    Unavailable,
    Unproven,
    Unreachable,
)
from outputd.rpc.action_cache import ActionCache
from outputd.rpc.client import Stub
from outputd.rpc.digests import digest_message
from outputd.rpc.inlined import Inlined
from outputd.rpc.queued_results import QueuedResults
from outputd.rpc.services import service_handler
from tests.unit.builds.test_uploads import Remote
from tests.unit.builds.test_write_back import world
from tests.unit.rpc.fakes import FakeStore
from tests.unit.rpc.loopback import served
from tests.unit.rpc.played_remote import PlayedRemote, Refused, passing_to
from tests.unit.rpc.test_action_cache import (
    ACTION,
    GONE,
    SERVICE,
    FakeResults,
    file_result,
    get,
    update,
    with_cache,
)


def away(request: reapi.UpdateActionResultRequest) -> Refused:
    return Refused(grpc.StatusCode.UNAVAILABLE, "away")


def queueing(path: Path, limit: int = 1 << 20) -> Callable[[], AbstractAsyncContextManager[WriteBack]]:
    @asynccontextmanager
    async def made() -> AsyncIterator[WriteBack]:
        async with world(path, Remote(), limit) as w:
            yield w.queue

    return made


def test_an_update_that_finds_no_remote_waits_and_is_answered_from_there(tmp_path: Path) -> None:
    async def use(stub: Stub) -> None:
        for result in (first, second):
            assert await update(stub, result, instance="main") == result
            assert await get(stub, instance="main") == result
        assert len(played.requests) == 1, "the second takes the place of the first, before the remote has it"
        assert await update(stub, file_result(GONE), instance="main") == file_result(GONE)
        with pytest.raises(NotFound, match="no result"):
            await get(stub, instance="main")  # its blobs are not here, so the remote is asked
        with pytest.raises(Unavailable, match="away"):
            await update(stub, first, instance="team/x")

    store = FakeStore()
    first, second = file_result(store.add(b"first")), file_result(store.add(b"second"))
    played = PlayedRemote()
    played.answers = {
        "UpdateActionResult": away,
        "GetActionResult": Refused(grpc.StatusCode.NOT_FOUND, "no result"),
    }
    with_cache(store, use, played=played, queue=queueing(tmp_path))


def test_a_result_does_not_overtake_its_blobs(tmp_path: Path) -> None:
    async def run(stub: Stub, queue: WriteBack) -> None:
        plain, large = store.add(b"plain"), store.add(b"waits")
        await queue.keep_blobs("main", [large])
        await update(stub, file_result(plain), instance="main")
        assert len(played.requests) == 1
        await update(stub, file_result(large), instance="main")
        tree = reapi.ActionResult()
        tree.output_directories.add(path="d", tree_digest=digest_message(store.add(b"")))
        await update(stub, tree, instance="main")
        assert len(played.requests) == 1, "what is in a tree may wait, too"
        assert queue.facts("").results == 1

    async def main() -> None:
        async with queueing(tmp_path)() as queue, passing_to(played) as passing:
            cache = ActionCache(
                FakeResults(),
                store,
                passing,
                Inlined(store.local),
                check_results=lambda _: False,
                queue=queue,
            )
            async with served(service_handler(SERVICE, cache)) as channel:
                await run(Stub(channel, SERVICE), queue)

    store = FakeStore()
    played = PlayedRemote()
    played.answers = {"UpdateActionResult": lambda request: request.action_result}
    uvloop.run(main())


def test_a_full_queue_leaves_the_error_as_it_was(tmp_path: Path) -> None:
    async def use(stub: Stub) -> None:
        with pytest.raises(Unavailable, match="away; the offline queue is full: 0 of 10 bytes"):
            await update(stub, file_result(here), instance="main")

    store = FakeStore()
    here = store.add(b"here")
    played = PlayedRemote()
    played.answers = {"UpdateActionResult": away}
    with_cache(store, use, played=played, queue=queueing(tmp_path, limit=10))


def test_one_that_may_answer_the_next_time_is_to_be_asked_again(tmp_path: Path) -> None:
    async def use(stub: Stub) -> None:
        with pytest.raises(Unavailable):
            await get(stub, instance="main")  # once more may help

    with_cache(FakeStore(), use, played=PlayedRemote(), queue=queueing(tmp_path))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, Denied),
        (grpc.StatusCode.UNAUTHENTICATED, Unproven),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Throttled),
        (grpc.StatusCode.INVALID_ARGUMENT, Invalid),
        (grpc.StatusCode.UNAVAILABLE, Unreachable),
    ],
)
def test_what_becomes_of_a_queued_result(code: grpc.StatusCode, kind: type[OutputdError]) -> None:
    async def main() -> None:
        async with passing_to(played, "settings") as passing:
            queued = QueuedResults(store, passing, results)
            assert await queued.named(key, asked.SerializeToString()) == {here}
            await queued.update(key, asked.SerializeToString())
            (sent,) = played.requests
            assert (sent.instance_name, sent.results_cache_policy.priority) == ("settings", 7)
            assert sent.action_result == asked.action_result
            played.answers["UpdateActionResult"] = Refused(code, "no")
            with pytest.raises(kind) as failed:
                await queued.update(key, asked.SerializeToString())
            assert type(failed.value) is kind
            played.answers["UpdateActionResult"] = Refused(grpc.StatusCode.UNIMPLEMENTED, "a CAS and no more")
            await queued.update(key, asked.SerializeToString())
            assert results.results == {("", ACTION): asked.action_result.SerializeToString()}
            with pytest.raises(Corrupt):
                await queued.named(key, b"\xff")

    store, results = FakeStore(), FakeResults()
    here = store.add(b"here")
    key = Key("", ACTION, is_result=True)
    asked = reapi.UpdateActionResultRequest(
        action_digest=digest_message(ACTION), action_result=file_result(here)
    )
    asked.results_cache_policy.priority = 7
    played = PlayedRemote()
    played.answers = {"UpdateActionResult": lambda request: request.action_result}
    uvloop.run(main())
