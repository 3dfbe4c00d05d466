from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
import uvloop

from outputd._proto import empty_pb2, error_details_pb2, status_pb2
from outputd._proto import operations_pb2 as longrunning
from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest
from outputd.errors import Invalid, NotFound, Unavailable, Unsupported
from outputd.rpc.client import Stub
from outputd.rpc.digests import digest_message
from outputd.rpc.execution import Execution, Operations
from outputd.rpc.inlined import Inlined
from outputd.rpc.services import service_handler
from outputd.store.remote.caller import REQUEST_METADATA
from tests.unit.rpc.fakes import SHA256, FakeStore
from tests.unit.rpc.loopback import served
from tests.unit.rpc.played_remote import SERVICES, PlayedRemote, Refused, packed, passing_to

ACTION = digest_message(Digest.of(SHA256, b"action"))


def with_execution(
    played: PlayedRemote | None,
    use: Callable[[grpc.aio.Channel], Awaitable[None]],
    store: FakeStore | None = None,
) -> None:
    async def main() -> None:
        async with passing_to(played, "settings") as passing:
            services = {
                "Execution": Execution(passing, Inlined((store or FakeStore()).local)),
                "Operations": Operations(passing),
            }
            handlers = [service_handler(SERVICES[name], service) for name, service in services.items()]
            async with served(*handlers) as channel:
                await use(channel)

    uvloop.run(main())


async def execute(channel: grpc.aio.Channel, instance: str = "") -> list[longrunning.Operation]:
    request = reapi.ExecuteRequest(instance_name=instance, action_digest=ACTION)
    stub = Stub(channel, SERVICES["Execution"])
    return [one async for one in stub.stream("Execute", request, longrunning.Operation, timeout=10)]


async def wait(channel: grpc.aio.Channel, name: str) -> list[longrunning.Operation]:
    request = reapi.WaitExecutionRequest(name=name)
    stub = Stub(channel, SERVICES["Execution"])
    return [one async for one in stub.stream("WaitExecution", request, longrunning.Operation, timeout=10)]


def done(name: str, result: reapi.ActionResult) -> longrunning.Operation:
    response = reapi.ExecuteResponse(result=result, cached_result=True)
    return longrunning.Operation(name=name, done=True, response=packed(response))


@pytest.mark.parametrize(("instance", "front"), [("", "operations/"), ("a/b", "a/b/operations/")])
def test_messages_pass_with_names_that_find_the_remote_again(instance: str, front: str) -> None:
    metadata = packed(reapi.ExecuteOperationMetadata(stage=reapi.ExecutionStage.QUEUED))
    queued = longrunning.Operation(name="x/operations/1", metadata=metadata)
    output = Digest.of(SHA256, b"inlined")
    result = reapi.ActionResult(exit_code=1)
    result.output_files.add(path="out", digest=digest_message(output), contents=b"inlined")
    played = PlayedRemote()
    played.answers = {
        "Execute": [queued, done("x/operations/1", result)],
        "WaitExecution": [done("x/operations/1", result)],
    }
    store = FakeStore()

    async def use(channel: grpc.aio.Channel) -> None:
        replies = await execute(channel, instance)
        assert {reply.name for reply in replies} == {f"{front}x/operations/1"}
        assert (replies[0].metadata, replies[1].response) == (metadata, done("", result).response)
        assert played.requests[0].instance_name == (instance or "settings")
        assert store.blobs[output] == b"inlined"
        assert (await wait(channel, replies[0].name)) == [replies[1]]
        assert played.requests[1].name == "x/operations/1"
        with pytest.raises(NotFound, match="no name that was given here"):
            await wait(channel, "x")

    with_execution(played, use, store)


def test_errors_pass_with_their_details() -> None:
    failure = error_details_pb2.PreconditionFailure()
    failure.violations.add(type="MISSING", subject=f"blobs/{ACTION.hash}/{ACTION.size_bytes}")
    details = status_pb2.Status(code=9, message="inputs are missing", details=[packed(failure)])
    trailer = ("grpc-status-details-bin", details.SerializeToString())
    played = PlayedRemote()
    played.answers["Execute"] = [
        longrunning.Operation(name="1"),
        Refused(grpc.StatusCode.FAILED_PRECONDITION, "inputs are missing", trailer),
    ]
    played.answers["WaitExecution"] = Refused(grpc.StatusCode.INTERNAL, "a fault of theirs")

    async def use(channel: grpc.aio.Channel) -> None:
        invoke = channel.unary_stream(
            "/build.bazel.remote.execution.v2.Execution/Execute",
            reapi.ExecuteRequest.SerializeToString,
            longrunning.Operation.FromString,
        )
        replies = invoke(reapi.ExecuteRequest(action_digest=ACTION))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            names = [reply.name async for reply in replies]
            assert names == ["operations/1"]
        error = caught.value
        assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "inputs are missing")
        trailing: Any = error.trailing_metadata()
        assert dict(trailing).items() >= {trailer}
        with pytest.raises(Unavailable, match="INTERNAL: a fault of theirs"):
            await wait(channel, "operations/1")

    with_execution(played, use)


def test_who_asked_is_passed_on() -> None:
    played = PlayedRemote()
    played.answers["Execute"] = [longrunning.Operation(name="1")]
    described = reapi.RequestMetadata(tool_invocation_id="build", target_id="//a:b").SerializeToString()

    async def use(channel: grpc.aio.Channel) -> None:
        invoke = channel.unary_stream("/build.bazel.remote.execution.v2.Execution/Execute", None, None)
        request = reapi.ExecuteRequest(action_digest=ACTION).SerializeToString()
        metadata = ((REQUEST_METADATA, described), ("authorization", "Bearer x"), ("grpc-other", "y"))
        async for _ in invoke(request, metadata=grpc.aio.Metadata(*metadata)):
            pass
        await execute(channel)
        first, second = played.metadata
        assert (first[REQUEST_METADATA], first["authorization"]) == (described, "Bearer x")
        assert "authorization" not in second
        made = second[REQUEST_METADATA]
        assert isinstance(made, bytes)
        assert reapi.RequestMetadata.FromString(made).tool_details.tool_name == "outputd"

    with_execution(played, use)


def test_a_client_that_leaves_ends_the_remotes_call() -> None:
    ended = asyncio.Event()

    class Silent:
        async def execute(self, request: reapi.ExecuteRequest, context: object) -> object:
            try:
                yield longrunning.Operation(name="1")
                await asyncio.get_running_loop().create_future()
            finally:
                ended.set()

        async def wait_execution(self, request: reapi.WaitExecutionRequest, context: object) -> object:
            yield longrunning.Operation()

    class Server(PlayedRemote):
        def handlers(self) -> list[grpc.GenericRpcHandler[bytes, bytes]]:
            return [service_handler(SERVICES["Execution"], Silent())]

    async def use(channel: grpc.aio.Channel) -> None:
        invoke = channel.unary_stream("/build.bazel.remote.execution.v2.Execution/Execute", None, None)
        call = invoke(reapi.ExecuteRequest(action_digest=ACTION).SerializeToString())
        first = await call.read()
        assert isinstance(first, bytes)
        assert longrunning.Operation.FromString(first).name == "operations/1"
        call.cancel()
        async with asyncio.timeout(10):
            await ended.wait()

    with_execution(Server(), use)


def test_more_executions_than_one_connection_carries_run_at_once() -> None:
    gate = asyncio.Event()
    waiting: list[int] = []

    class Slow:
        async def execute(self, request: reapi.ExecuteRequest, context: object) -> object:
            waiting.append(1)
            if len(waiting) == 150:
                gate.set()
            await gate.wait()
            yield longrunning.Operation(name="1", done=True)

        async def wait_execution(self, request: reapi.WaitExecutionRequest, context: object) -> object:
            yield longrunning.Operation()

    class Server(PlayedRemote):
        def handlers(self) -> list[grpc.GenericRpcHandler[bytes, bytes]]:
            return [service_handler(SERVICES["Execution"], Slow())]

    async def use(channel: grpc.aio.Channel) -> None:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            for _ in range(150):
                group.create_task(execute(channel))

    with_execution(Server(), use)


def test_operations_are_found_and_stopped_by_the_names_that_were_given() -> None:
    played = PlayedRemote()
    played.answers = {
        "GetOperation": lambda request: longrunning.Operation(name=request.name),
        "CancelOperation": empty_pb2.Empty(),
        "DeleteOperation": empty_pb2.Empty(),
        "ListOperations": longrunning.ListOperationsResponse(operations=[longrunning.Operation(name="1")]),
    }

    async def use(channel: grpc.aio.Channel) -> None:
        stub = Stub(channel, SERVICES["Operations"])
        name = "a/operations/1"
        get = longrunning.GetOperationRequest(name=name)
        assert (await stub.call("GetOperation", get, longrunning.Operation, timeout=10)).name == name
        cancel = longrunning.CancelOperationRequest(name=name)
        await stub.call("CancelOperation", cancel, empty_pb2.Empty, timeout=10)
        delete = longrunning.DeleteOperationRequest(name=name)
        await stub.call("DeleteOperation", delete, empty_pb2.Empty, timeout=10)
        for parent in ("a", "a/operations"):
            ask = longrunning.ListOperationsRequest(name=parent)
            page = await stub.call("ListOperations", ask, longrunning.ListOperationsResponse, timeout=10)
            assert [operation.name for operation in page.operations] == [name]
        assert [request.name for request in played.requests] == ["1", "1", "1", "a", "a"]

    with_execution(played, use)


def test_without_a_remote_it_is_unimplemented() -> None:
    async def use(channel: grpc.aio.Channel) -> None:
        with pytest.raises(Unsupported, match="there is no remote"):
            await execute(channel)
        with pytest.raises(Unsupported, match="there is no remote"):
            await wait(channel, "operations/1")
        with pytest.raises(Invalid, match="reserved"):
            await execute(channel, "a/operations")

    with_execution(None, use)


def test_a_remote_that_does_not_execute_says_so_by_its_name() -> None:
    played = PlayedRemote()
    played.answers["GetCapabilities"] = reapi.ServerCapabilities()

    async def use(channel: grpc.aio.Channel) -> None:
        with pytest.raises(Unsupported, match=r"unix:/.* does not offer .*Execution/Execute"):
            await execute(channel)

    with_execution(played, use)


def test_a_remote_that_is_away_is_unavailable() -> None:
    async def use(channel: grpc.aio.Channel) -> None:
        with pytest.raises(Unavailable, match=r"cannot pass on Execute at unix:/"):
            await execute(channel)

    with_execution(PlayedRemote(), use)
