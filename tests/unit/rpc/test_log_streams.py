"""Log streams of several remotes: each is made, read and written at its own, by the names that clients were told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import grpc.aio

from outputd._proto import bytestream_pb2 as bytestream
from outputd._proto import operations_pb2 as longrunning
from outputd._proto import remote_execution_pb2 as reapi
from outputd._proto import remote_logstream_pb2 as logstream
from outputd.rpc.byte_stream import ByteStream
from outputd.rpc.client import Stub
from outputd.rpc.execution import Execution
from outputd.rpc.inlined import Inlined
from outputd.rpc.log_streams import LogStreamService
from outputd.rpc.passing import Passing
from outputd.rpc.services import service_handler
from outputd.store.remote import RemoteStore
from outputd.store.remote.relays import Relays
from outputd.store.routing import Route, Routes
from tests.unit.rpc.fakes import FakeStore
from tests.unit.rpc.loopback import served
from tests.unit.rpc.played_remote import SERVICES, PlayedRemote, packed
from tests.unit.rpc.test_passing import serving
from tests.unit.store.worlds import run


def _named(request: logstream.CreateLogStreamRequest) -> logstream.LogStream:
    return logstream.LogStream(
        name=f"{request.parent}/logStreams/1", write_resource_name=f"{request.parent}/logStreams/1/w"
    )


def _playing(word: bytes) -> PlayedRemote:
    about = reapi.ExecuteOperationMetadata(
        stdout_stream_name="main/logStreams/2", stderr_stream_name="main/blobs/abc/3"
    )
    played = PlayedRemote()
    played.answers = {
        "CreateLogStream": _named,
        "Read": [bytestream.ReadResponse(data=word)],
        "Write": bytestream.WriteResponse(committed_size=2),
        "QueryWriteStatus": bytestream.QueryWriteStatusResponse(committed_size=len(word)),
        "Execute": [
            longrunning.Operation(name="op", metadata=packed(about)),
            longrunning.Operation(name="op"),
        ],
    }
    return played


async def _pieces(name: str) -> AsyncGenerator[bytestream.WriteRequest, None]:
    yield bytestream.WriteRequest(resource_name=name, data=b"a")
    yield bytestream.WriteRequest(resource_name=name, write_offset=1, data=b"b", finish_write=True)


async def _use(channel: grpc.aio.Channel, one: PlayedRemote, two: PlayedRemote) -> None:
    logs, streams = Stub(channel, SERVICES["LogStreamService"]), Stub(channel, SERVICES["ByteStream"])
    for parent, played, there, word in (
        ("p", one, "p", b"one"),
        ("lab", two, "main", b"second"),
        ("lab/x", two, "main/x", b"second"),
        ("laboratory", one, "laboratory", b"one"),
        ("", one, "", b"one"),
    ):
        played.requests.clear()
        create = logstream.CreateLogStreamRequest(parent=parent)
        made = await logs.call("CreateLogStream", create, logstream.LogStream, timeout=10)
        ask = bytestream.ReadRequest(resource_name=made.name)
        read = [one.data async for one in streams.stream("Read", ask, bytestream.ReadResponse, timeout=10)]
        assert read == [word]
        await streams.send("Write", _pieces(made.write_resource_name), bytestream.WriteResponse, timeout=10)
        status = bytestream.QueryWriteStatusRequest(resource_name=made.write_resource_name)
        known = await streams.call(
            "QueryWriteStatus", status, bytestream.QueryWriteStatusResponse, timeout=10
        )
        assert known.committed_size == len(word)
        assert played.requests[0].parent == there
        assert [request.resource_name for request in played.requests[1:]] == [
            f"{there}/logStreams/1",
            *[f"{there}/logStreams/1/w"] * 3,
        ]

    # What an action says while it runs has a name that leads to the remote it runs at.
    for instance, prefix in (("lab", "lab/"), ("", "")):
        execute = reapi.ExecuteRequest(instance_name=instance)
        told = [
            operation
            async for operation in Stub(channel, SERVICES["Execution"]).stream(
                "Execute", execute, longrunning.Operation, timeout=10
            )
        ]
        about = reapi.ExecuteOperationMetadata()
        assert told[0].metadata.Unpack(about)
        assert about.stdout_stream_name == f"{prefix}main/logStreams/2"
        assert about.stderr_stream_name == "main/blobs/abc/3"
        assert not told[1].HasField("metadata")


def test_each_goes_to_its_own_remote() -> None:
    async def test() -> None:
        one, two = _playing(b"one"), _playing(b"second")
        async with serving(one) as first, serving(two) as second:
            stores = [RemoteStore(first), RemoteStore(second, "main")]
            routes = Routes([Route("", stores[0], None), Route("lab", stores[1], "main")])
            relays = Relays(routes, {"": stores[0].relay(), "lab": stores[1].relay()})
            passing, store = Passing(relays), FakeStore()
            async with asyncio.TaskGroup() as tasks:
                services = {
                    "LogStreamService": LogStreamService(passing),
                    "ByteStream": ByteStream(store, tasks, passing),
                    "Execution": Execution(passing, Inlined(store.local)),
                }
                handlers = [service_handler(SERVICES[name], service) for name, service in services.items()]
                async with served(*handlers) as channel:
                    await _use(channel, one, two)
            await relays.close()
            await routes.close()

    run(test)
