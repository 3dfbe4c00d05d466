from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import grpc
import grpc.aio
import pytest
import uvloop

from outputd._proto import bytestream_pb2 as bytestream
from outputd._proto import remote_asset_pb2 as asset
from outputd._proto import remote_logstream_pb2 as logstream
from outputd.errors import Invalid, Unsupported
from outputd.rpc.assets import Fetch, Push
from outputd.rpc.byte_stream import ByteStream
from outputd.rpc.client import Stub
from outputd.rpc.log_streams import LogStreamService
from outputd.rpc.services import service_handler
from tests.unit.rpc.fakes import FakeStore
from tests.unit.rpc.loopback import served
from tests.unit.rpc.played_remote import SERVICES, PlayedRemote, Refused, passing_to


def with_assets(played: PlayedRemote | None, use: Callable[[grpc.aio.Channel], Awaitable[None]]) -> None:
    async def main() -> None:
        async with passing_to(played, "settings") as passing, asyncio.TaskGroup() as tasks:
            services = {
                "Fetch": Fetch(passing),
                "Push": Push(passing),
                "LogStreamService": LogStreamService(passing),
                "ByteStream": ByteStream(FakeStore(), tasks, passing),
            }
            handlers = [service_handler(SERVICES[name], service) for name, service in services.items()]
            async with served(*handlers) as channel:
                await use(channel)

    uvloop.run(main())


def test_assets_are_the_remotes() -> None:
    played = PlayedRemote()
    played.answers = {
        "FetchBlob": asset.FetchBlobResponse(uri="http://here"),
        "FetchDirectory": asset.FetchDirectoryResponse(uri="http://here"),
        "PushBlob": asset.PushBlobResponse(),
        "PushDirectory": Refused(grpc.StatusCode.INVALID_ARGUMENT, "no uris"),
    }

    async def use(channel: grpc.aio.Channel) -> None:
        fetch, push = Stub(channel, SERVICES["Fetch"]), Stub(channel, SERVICES["Push"])
        ask = asset.FetchBlobRequest(uris=["http://here"])
        assert (await fetch.call("FetchBlob", ask, asset.FetchBlobResponse, timeout=10)).uri == "http://here"
        ask_directory = asset.FetchDirectoryRequest(uris=["http://here"], instance_name="a")
        reply = await fetch.call("FetchDirectory", ask_directory, asset.FetchDirectoryResponse, timeout=10)
        assert reply.uri == "http://here"
        await push.call("PushBlob", asset.PushBlobRequest(), asset.PushBlobResponse, timeout=10)
        with pytest.raises(Invalid, match="no uris"):
            await push.call(
                "PushDirectory", asset.PushDirectoryRequest(), asset.PushDirectoryResponse, timeout=10
            )
        assert [request.instance_name for request in played.requests] == ["settings", "a", *["settings"] * 2]

    with_assets(played, use)


def test_log_streams_are_made_read_and_written_at_the_remote() -> None:
    played = PlayedRemote()
    played.answers = {
        "CreateLogStream": logstream.LogStream(name="p/logstreams/1", write_resource_name="secret"),
        "Read": [bytestream.ReadResponse(data=b"so "), bytestream.ReadResponse(data=b"far")],
        "Write": bytestream.WriteResponse(committed_size=3),
        "QueryWriteStatus": bytestream.QueryWriteStatusResponse(committed_size=3),
    }

    async def use(channel: grpc.aio.Channel) -> None:
        logs, streams = Stub(channel, SERVICES["LogStreamService"]), Stub(channel, SERVICES["ByteStream"])
        create = logstream.CreateLogStreamRequest(parent="p")
        made = await logs.call("CreateLogStream", create, logstream.LogStream, timeout=10)
        ask = bytestream.ReadRequest(resource_name=made.name)
        replies = [one.data async for one in streams.stream("Read", ask, bytestream.ReadResponse, timeout=10)]
        assert replies == [b"so ", b"far"]

        async def pieces() -> AsyncGenerator[bytestream.WriteRequest, None]:
            yield bytestream.WriteRequest(resource_name=made.write_resource_name, data=b"ab")
            yield bytestream.WriteRequest(write_offset=2, data=b"c", finish_write=True)

        written = await streams.send("Write", pieces(), bytestream.WriteResponse, timeout=10)
        assert written.committed_size == 3
        status = bytestream.QueryWriteStatusRequest(resource_name="secret")
        known = await streams.call(
            "QueryWriteStatus", status, bytestream.QueryWriteStatusResponse, timeout=10
        )
        assert known.committed_size == 3
        names = [getattr(request, "resource_name", None) for request in played.requests]
        assert names == [None, "p/logstreams/1", "secret", "", "secret"]
        header = "build.bazel.remote.execution.v2.resource-name"
        assert [sent.get(header) for sent in played.metadata][2] == "secret"

    with_assets(played, use)


def test_without_a_remote_they_are_unimplemented() -> None:
    async def use(channel: grpc.aio.Channel) -> None:
        for service, request, reply in (
            ("Fetch", asset.FetchBlobRequest(), asset.FetchBlobResponse),
            ("Push", asset.PushBlobRequest(), asset.PushBlobResponse),
            ("LogStreamService", logstream.CreateLogStreamRequest(), logstream.LogStream),
        ):
            stub = Stub(channel, SERVICES[service])
            with pytest.raises(Unsupported, match="there is no remote"):
                await stub.call(type(request).__name__.removesuffix("Request"), request, reply, timeout=10)
        with pytest.raises(Invalid, match="resource_name"):
            ask = bytestream.ReadRequest(resource_name="p/logstreams/1")
            async for _ in Stub(channel, SERVICES["ByteStream"]).stream(
                "Read", ask, bytestream.ReadResponse, timeout=10
            ):
                pass

    with_assets(None, use)
