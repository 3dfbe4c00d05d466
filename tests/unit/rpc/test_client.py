from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest

from outputd._proto import health_pb2 as health
from outputd.errors import OutputdError, TimedOut, Unavailable
from outputd.rpc import client, edge
from outputd.rpc.client import Stub

HEALTH = health.DESCRIPTOR.services_by_name["Health"]


def test_every_code_but_ok_has_a_word_of_ours() -> None:
    assert {*client._ERRORS, grpc.StatusCode.OK} == set(grpc.StatusCode)


@pytest.mark.parametrize("kind", edge.CODES)
def test_our_errors_survive_the_way_over_the_wire(kind: type[OutputdError]) -> None:
    assert issubclass(kind, client._ERRORS[edge.CODES[kind]])


def test_a_server_that_is_not_there_is_unavailable_before_the_deadline() -> None:
    async def main() -> None:
        async with grpc.aio.insecure_channel("unix:/nonexistent/outputd.sock") as channel:
            stub = Stub(channel, HEALTH)
            with pytest.raises(Unavailable, match=r"/grpc\.health\.v1\.Health/Check: UNAVAILABLE") as caught:
                await stub.call("Check", health.HealthCheckRequest(), health.HealthCheckResponse, timeout=10)
            assert not isinstance(caught.value, TimedOut)

    asyncio.run(main())


def test_a_reply_of_the_wrong_class_is_a_bug_of_the_caller() -> None:
    async def main() -> None:
        async with grpc.aio.insecure_channel("unix:/nonexistent/outputd.sock") as channel:
            with pytest.raises(AssertionError, match=r"grpc\.health\.v1\.HealthCheckResponse"):
                await Stub(channel, HEALTH).call(
                    "Check", health.HealthCheckRequest(), health.HealthCheckRequest, timeout=1
                )

    asyncio.run(main())
