"""What the admin service lists: everything that is old enough, the oldest first."""

from __future__ import annotations

import asyncio
import time

from outputd._proto import admin_pb2
from outputd._proto import bytestream_pb2 as bytestream
from outputd.digest import Digest, DigestFunction
from outputd.rpc.calls import Calls
from outputd.rpc.client import Stub
from outputd.rpc.operations import KernelRequest, Operations
from outputd.rpc.services import service_handler
from outputd.store.flight import Flight
from tests.unit.rpc.loopback import served

DIGEST = Digest.of(DigestFunction.SHA256, b"data")


def test_what_is_old_enough_the_oldest_first() -> None:
    async def test() -> None:
        now = time.monotonic()
        requests = [
            KernelRequest("READ", f"/m/{age}", 17, "cat", now - age, "blob") for age in (20.0, 30.0, 10.0)
        ]
        flight = Flight(DIGEST)
        flight.board()
        flight.received, flight.began = 3, now - 25
        calls = Calls()
        operations = Operations(
            lambda: requests, calls, lambda: [(flight, "inner")], {"inner": "grpc://h:1"}.__getitem__
        )
        with calls.entered("S.M", "peer"):
            found = operations.older_than(15)
            assert [request.path for request in found.kernel_requests] == ["/m/30.0", "/m/20.0"]
            assert 20 <= found.kernel_requests[1].age.seconds <= 22
            assert not found.calls
            fetch = found.fetches[0]
            assert (fetch.digest, fetch.received_bytes, fetch.size_bytes) == (f"sha256:{DIGEST}", 3, 4)
            assert (fetch.waiters, fetch.remote, fetch.instance_name) == (1, "grpc://h:1", "inner")
            assert [call.method for call in operations.older_than(0).calls] == ["S.M"]
        assert operations.older_than(60) == admin_pb2.ListOperationsResponse()
        flight.leave()

    asyncio.run(test())


def test_calls_are_known_while_they_are_served() -> None:
    class Slow:
        def __init__(self) -> None:
            self.gate = asyncio.Event()

        async def read(self, request: object, context: object) -> object:
            raise NotImplementedError

        async def write(self, requests: object, context: object) -> object:
            raise NotImplementedError

        async def query_write_status(
            self, request: bytestream.QueryWriteStatusRequest, context: object
        ) -> bytestream.QueryWriteStatusResponse:
            [call] = calls
            assert call.method == "google.bytestream.ByteStream.QueryWriteStatus"
            return bytestream.QueryWriteStatusResponse(committed_size=1)

    calls = Calls()
    service = bytestream.DESCRIPTOR.services_by_name["ByteStream"]

    async def test() -> None:
        async with served(service_handler(service, Slow(), calls)) as channel:
            reply = await Stub(channel, service).call(
                "QueryWriteStatus",
                bytestream.QueryWriteStatusRequest(resource_name="x"),
                bytestream.QueryWriteStatusResponse,
                timeout=5,
            )
            assert reply.committed_size == 1
        assert list(calls) == []

    asyncio.run(test())
