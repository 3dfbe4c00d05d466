"""Headers, limits, cancellation, the end of a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
import pytest

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import DigestFunction
from outputd.errors import OutputdError, Unavailable
from outputd.store.remote import RemoteOptions, build_id
from tests.unit.store.fake_remote import Fault
from tests.unit.store.remote.operations import OPERATIONS, find, read_stream
from tests.unit.store.worlds import remote_world, run

Code = grpc.StatusCode
SHA256 = DigestFunction.SHA256


class TestCalls:
    def test_headers_go_with_every_call(self) -> None:
        async def test() -> None:
            options = RemoteOptions(headers={"Authorization": "Bearer secret"})
            async with remote_world(options) as (fake, client):
                build_id.set("build-17")
                for method, operation in OPERATIONS.items():
                    fake.blobs.clear()
                    await operation(fake, client)
                    assert fake.calls[-1] == method
                    assert fake.metadata["authorization"] == "Bearer secret"
                    assert str(fake.metadata["user-agent"]).startswith("outputd/")
                    raw = fake.metadata["build.bazel.remote.execution.v2.requestmetadata-bin"]
                    assert isinstance(raw, bytes)
                    request = reapi.RequestMetadata.FromString(raw)
                    assert request.tool_details.tool_name == "outputd"
                    assert request.tool_details.tool_version
                    assert request.tool_invocation_id == "build-17"

        run(test)

    def test_no_more_calls_at_once_than_allowed(self) -> None:
        async def test() -> None:
            async with remote_world(RemoteOptions(max_concurrent=2)) as (fake, client):
                await client.abilities()
                gate = asyncio.Event()
                fake.fail("FindMissingBlobs", *[Fault(gate=gate)] * 5)
                fake.fail("Read", Fault(gate=gate))
                async with asyncio.TaskGroup() as group:
                    for _ in range(5):
                        group.create_task(find(fake, client))
                    group.create_task(read_stream(fake, client))
                    await fake.called_times(3)
                    await asyncio.sleep(0.05)
                    assert len(fake.calls) == 3
                    gate.set()
                assert len(fake.calls) == 7

        run(test)

    @pytest.mark.parametrize("method", OPERATIONS)
    def test_a_call_may_be_cancelled(self, method: str) -> None:
        async def test() -> None:
            async with remote_world(RemoteOptions(max_concurrent=1)) as (fake, client):
                fake.fail(method, Fault(hang=True))
                async with asyncio.TaskGroup() as group:
                    task = group.create_task(OPERATIONS[method](fake, client))
                    await fake.called(method)
                    task.cancel()
                assert task.cancelled()
                # The only slot is free again.
                await OPERATIONS[method](fake, client)

        run(test)

    @pytest.mark.parametrize("method", OPERATIONS)
    def test_closing_ends_calls_with_an_error_and_not_as_if_cancelled(self, method: str) -> None:
        async def test() -> None:
            # Waiting for the deadline would take longer than this test may.
            async with remote_world(RemoteOptions(timeout=60)) as (fake, client):
                fake.fail(method, Fault(hang=True))
                with pytest.raises(Unavailable, match="closed"):
                    async with asyncio.TaskGroup() as group:
                        task = group.create_task(swallow(OPERATIONS[method](fake, client)))
                        await fake.called(method)
                        await client.close()
                    raise task.result()
                with pytest.raises(Unavailable, match="closed"):
                    await OPERATIONS[method](fake, client)

        run(test)

    def test_a_reader_that_stops_early_gives_its_slot_back(self) -> None:
        async def test() -> None:
            async with remote_world(RemoteOptions(max_concurrent=1)) as (fake, client):
                digest = fake.add(bytes(1_000_000))
                async with aclosing(client.read_stream(digest)) as pieces:
                    await anext(pieces)
                await find(fake, client)

        run(test)


async def swallow(operation: Coroutine[Any, Any, None]) -> OutputdError:
    try:
        await operation
    except OutputdError as error:
        return error
    raise AssertionError("it should have failed")
