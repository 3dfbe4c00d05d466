"""Every failure ends in the right bytes or the documented error, in bounded time."""

from __future__ import annotations

import asyncio
import time

import grpc
import grpc.aio
import pytest

from outputd.digest import DigestFunction
from outputd.errors import (
    Corrupt,
    Denied,
    Invalid,
    NotFound,
    OutputdError,
    Precondition,
    Throttled,
    TimedOut,
    Unproven,
    Unreachable,
    Unsupported,
)
from tests.unit.store.fake_remote import Fault
from tests.unit.store.remote.operations import OPERATIONS, find
from tests.unit.store.worlds import BOUND, HASTY, IMPATIENT, remote_world, run

Code = grpc.StatusCode
SHA256 = DigestFunction.SHA256


PERMANENT: dict[grpc.StatusCode, type[OutputdError]] = {
    Code.CANCELLED: Unreachable,
    Code.INVALID_ARGUMENT: Invalid,
    Code.NOT_FOUND: NotFound,
    Code.ALREADY_EXISTS: Precondition,
    Code.PERMISSION_DENIED: Denied,
    Code.FAILED_PRECONDITION: Precondition,
    Code.OUT_OF_RANGE: Invalid,
    Code.UNIMPLEMENTED: Unsupported,
    Code.DATA_LOSS: Corrupt,
    Code.UNAUTHENTICATED: Unproven,
}
TRANSIENT: dict[grpc.StatusCode, type[OutputdError]] = {
    Code.UNKNOWN: Unreachable,
    Code.DEADLINE_EXCEEDED: TimedOut,
    Code.RESOURCE_EXHAUSTED: Throttled,
    Code.ABORTED: Unreachable,
    Code.INTERNAL: Unreachable,
    Code.UNAVAILABLE: Unreachable,
}


class TestFailures:
    def test_every_code_has_a_meaning(self) -> None:
        assert set(PERMANENT) | set(TRANSIENT) == set(Code) - {Code.OK}

    @pytest.mark.parametrize("method", ["FindMissingBlobs", "Read"])
    @pytest.mark.parametrize("code", PERMANENT)
    def test_permanent_codes_are_told_at_once(self, method: str, code: grpc.StatusCode) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                fake.fail(method, Fault(code=code))
                with pytest.raises(PERMANENT[code], match=f"at {fake.url}: {code.name}: as told") as caught:
                    await OPERATIONS[method](fake, client)
                assert type(caught.value) is PERMANENT[code]
                assert isinstance(caught.value.__cause__, grpc.aio.AioRpcError)
                assert fake.calls.count(method) == 1

        run(test)

    @pytest.mark.parametrize("method", OPERATIONS)
    def test_a_moment_of_any_transient_failure_is_got_over(self, method: str) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                fake.fail(method, *[Fault(code=code) for code in TRANSIENT])
                await OPERATIONS[method](fake, client)
                assert fake.calls.count(method) == len(TRANSIENT) + 1

        run(test)

    @pytest.mark.parametrize("method", OPERATIONS)
    def test_a_lasting_failure_ends_in_its_error(self, method: str) -> None:
        async def test() -> None:
            async with remote_world(HASTY) as (fake, client):
                fake.fail(method, *[Fault(code=Code.RESOURCE_EXHAUSTED)] * 10_000)
                start = time.monotonic()
                with pytest.raises(
                    Throttled, match=r"RESOURCE_EXHAUSTED: as told \(tried \d+ times in \d+\.\d s\)"
                ):
                    await OPERATIONS[method](fake, client)
                assert time.monotonic() - start < BOUND

        run(test)

    @pytest.mark.parametrize("method", OPERATIONS)
    def test_a_server_that_hangs_is_waited_for_so_long_and_no_longer(self, method: str) -> None:
        async def test() -> None:
            async with remote_world(IMPATIENT) as (fake, client):
                fake.fail(method, *[Fault(hang=True)] * 100)
                start = time.monotonic()
                with pytest.raises(TimedOut):
                    await OPERATIONS[method](fake, client)
                assert time.monotonic() - start < BOUND

        run(test)

    @pytest.mark.parametrize("method", ["FindMissingBlobs", "Read"])
    def test_the_server_says_how_long_to_wait(self, method: str) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                fake.fail(method, Fault(code=Code.RESOURCE_EXHAUSTED, retry_delay=0.25))
                start = time.monotonic()
                await OPERATIONS[method](fake, client)
                assert time.monotonic() - start >= 0.25

        run(test)

    def test_a_blob_in_a_batch_may_say_it_too(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                one = fake.add(b"one")
                fake.fail("BatchReadBlobs", Fault(code=Code.RESOURCE_EXHAUSTED, retry_delay=0.25, blob=one))
                start = time.monotonic()
                assert await client.read_batch([one]) == {one: b"one"}
                assert time.monotonic() - start >= 0.25

        run(test)

    def test_a_wait_beyond_our_patience_is_not_begun(self) -> None:
        async def test() -> None:
            async with remote_world(HASTY) as (fake, client):
                fake.fail("FindMissingBlobs", Fault(code=Code.RESOURCE_EXHAUSTED, retry_delay=3600))
                with pytest.raises(Throttled, match="tried 1 times"):
                    await find(fake, client)

        run(test)

    def test_nobody_there(self) -> None:
        async def test() -> None:
            async with remote_world(HASTY) as (fake, client):
                await fake.stop()
                for operation in OPERATIONS.values():
                    start = time.monotonic()
                    with pytest.raises(Unreachable, match=f"at {fake.url}: UNAVAILABLE"):
                        await operation(fake, client)
                    assert time.monotonic() - start < BOUND

        run(test)

    @pytest.mark.parametrize("method", OPERATIONS)
    def test_a_server_that_comes_back_is_found(self, method: str) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                await OPERATIONS[method](fake, client)
                await fake.stop()
                async with asyncio.TaskGroup() as group:
                    group.create_task(OPERATIONS[method](fake, client))
                    await asyncio.sleep(0.05)
                    await fake.start()

        run(test)
