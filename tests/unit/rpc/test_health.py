from __future__ import annotations

import pytest
import uvloop

from outputd._proto import health_pb2
from outputd.errors import NotFound
from outputd.rpc.client import Stub
from outputd.rpc.health import Health
from outputd.rpc.services import service_handler
from tests.unit.rpc.loopback import served

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"]
Status = health_pb2.HealthCheckResponse


async def check(stub: Stub, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return (await stub.call("Check", request, Status, timeout=10)).status


def test_the_server_and_its_services_have_one_truth() -> None:
    async def main() -> None:
        health = Health(["a.B"])
        async with served(service_handler(SERVICE, health)) as channel:
            stub = Stub(channel, SERVICE)
            assert await check(stub, "") == Status.NOT_SERVING
            health.set_serving(True)
            assert await check(stub, "") == Status.SERVING
            assert await check(stub, "a.B") == Status.SERVING
            with pytest.raises(NotFound, match=r"'c\.D'.*a\.B"):
                await check(stub, "c.D")

    uvloop.run(main())


def test_who_watches_hears_of_every_change() -> None:
    async def main() -> None:
        health = Health(["a.B"])
        async with served(service_handler(SERVICE, health)) as channel:
            stub = Stub(channel, SERVICE)
            known = stub.stream("Watch", health_pb2.HealthCheckRequest(service="a.B"), Status, timeout=10)
            assert (await anext(known)).status == Status.NOT_SERVING
            health.set_serving(True)
            assert (await anext(known)).status == Status.SERVING
            health.set_serving(False)
            assert (await anext(known)).status == Status.NOT_SERVING
            unknown = stub.stream("Watch", health_pb2.HealthCheckRequest(service="c.D"), Status, timeout=10)
            assert (await anext(unknown)).status == Status.SERVICE_UNKNOWN
            await known.aclose()
            await unknown.aclose()

    uvloop.run(main())
