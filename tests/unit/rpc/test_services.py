from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
import uvloop

from outputd._proto import bytestream_pb2 as bytestream
from outputd._proto import health_pb2 as health
from outputd.errors import Invalid, NotFound
from outputd.rpc.client import Stub
from outputd.rpc.edge import Context
from outputd.rpc.services import gives_bytes, service_handler, takes_bytes
from tests.unit.rpc.loopback import served

BYTE_STREAM = bytestream.DESCRIPTOR.services_by_name["ByteStream"]
HEALTH = health.DESCRIPTOR.services_by_name["Health"]


class Echo:
    """A ByteStream that plays back what it is told."""

    def __init__(self) -> None:
        self.reading = asyncio.Event()
        self.closed = asyncio.Event()

    async def read(
        self, request: bytestream.ReadRequest, _context: Context
    ) -> AsyncIterator[bytestream.ReadResponse]:
        if request.resource_name == "missing":
            raise NotFound("missing: never heard of")
        if request.resource_name == "bug":
            raise ZeroDivisionError
        try:
            yield bytestream.ReadResponse(data=b"one")
            if request.resource_name == "half":
                raise Invalid("half: no second")
            if request.resource_name == "endless":
                self.reading.set()
                await asyncio.Event().wait()
            yield bytestream.ReadResponse(data=b"two")
        finally:
            self.closed.set()

    async def write(
        self, requests: AsyncIterator[bytestream.WriteRequest], _context: Context
    ) -> bytestream.WriteResponse:
        total = 0
        async for request in requests:
            total += len(request.data)
            if request.finish_write:
                break  # leave before the client has sent everything
        return bytestream.WriteResponse(committed_size=total)

    @takes_bytes
    @gives_bytes
    async def query_write_status(self, request: bytes, _context: Context) -> bytes:
        assert isinstance(request, bytes)
        name = bytestream.QueryWriteStatusRequest.FromString(request).resource_name
        return bytestream.QueryWriteStatusResponse(committed_size=len(name)).SerializeToString()


def read(name: str) -> list[bytes]:
    async def main() -> list[bytes]:
        async with served(service_handler(BYTE_STREAM, Echo())) as channel:
            request = bytestream.ReadRequest(resource_name=name)
            replies = Stub(channel, BYTE_STREAM).stream("Read", request, bytestream.ReadResponse, timeout=10)
            return [reply.data async for reply in replies]

    return uvloop.run(main())


def test_a_stream_of_replies() -> None:
    assert read("x") == [b"one", b"two"]


def test_errors_before_and_amid_replies_have_their_codes() -> None:
    with pytest.raises(NotFound, match="missing: never heard of"):
        read("missing")
    with pytest.raises(Invalid, match="half: no second"):
        read("half")


def test_a_bug_ends_the_call_with_internal_and_the_server_lives(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> grpc.StatusCode:
        async with served(service_handler(BYTE_STREAM, Echo())) as channel:
            call = channel.unary_stream("/google.bytestream.ByteStream/Read", None, None)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(bytestream.ReadRequest(resource_name="bug").SerializeToString(), timeout=10).read()
            alive = channel.unary_stream("/google.bytestream.ByteStream/Read", None, None)
            assert await alive(b"", timeout=10).read() == b"\x52\x03one"
            code: grpc.StatusCode = caught.value.code()
            return code

    assert uvloop.run(main()) is grpc.StatusCode.INTERNAL
    assert [record.name for record in caplog.records] == ["outputd.rpc.edge"]


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_unary"])
def test_undecodable_requests_are_invalid_arguments_in_every_kind_of_call(kind: str) -> None:
    async def main() -> None:
        handlers = service_handler(BYTE_STREAM, Echo()), service_handler(HEALTH, Well())
        async with served(*handlers) as channel:
            if kind == "unary_unary":
                await channel.unary_unary("/grpc.health.v1.Health/Check", None, None)(b"\xff", timeout=10)
            elif kind == "unary_stream":
                await channel.unary_stream("/google.bytestream.ByteStream/Read", None, None)(
                    b"\xff", timeout=10
                ).read()
            else:

                async def requests() -> AsyncIterator[bytes]:
                    yield b"\x52\x03one"
                    yield b"\xff"

                await channel.stream_unary("/google.bytestream.ByteStream/Write", None, None)(
                    requests(), timeout=10
                )

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        uvloop.run(main())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


class Well:
    async def check(
        self, _request: health.HealthCheckRequest, _context: Context
    ) -> health.HealthCheckResponse:
        return health.HealthCheckResponse()

    async def watch(
        self, _request: health.HealthCheckRequest, _context: Context
    ) -> AsyncIterator[health.HealthCheckResponse]:
        yield health.HealthCheckResponse()


def test_methods_may_speak_bytes_and_answer_early() -> None:
    async def main() -> None:
        async with served(service_handler(BYTE_STREAM, Echo())) as channel:
            stub = Stub(channel, BYTE_STREAM)
            status = await stub.call(
                "QueryWriteStatus",
                bytestream.QueryWriteStatusRequest(resource_name="four"),
                bytestream.QueryWriteStatusResponse,
                timeout=10,
            )
            assert status.committed_size == 4

            async def requests() -> AsyncIterator[bytestream.WriteRequest]:
                yield bytestream.WriteRequest(data=b"abc")
                yield bytestream.WriteRequest(data=b"de", finish_write=True)
                await asyncio.Event().wait()

            reply = await stub.send("Write", requests(), bytestream.WriteResponse, timeout=10)
            assert reply.committed_size == 5

    uvloop.run(main())


def test_a_generator_is_closed_at_once_when_its_client_goes_away() -> None:
    async def main() -> None:
        echo = Echo()
        async with served(service_handler(BYTE_STREAM, echo)) as channel:
            call = channel.unary_stream("/google.bytestream.ByteStream/Read", None, None)(
                bytestream.ReadRequest(resource_name="endless").SerializeToString(), timeout=10
            )
            await call.read()
            await echo.reading.wait()
            call.cancel()
            await asyncio.wait_for(echo.closed.wait(), 5)

    uvloop.run(main())


def test_every_method_of_the_service_has_to_be_there() -> None:
    class Half:
        async def check(self, _request: object, _context: Context) -> None:
            raise AssertionError

    with pytest.raises(AttributeError, match="watch"):
        service_handler(HEALTH, Half())
