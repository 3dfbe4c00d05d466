"""A server that does not answer is given up and probed; one that stands still is not waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from outputd.errors import Denied, Throttled, TimedOut, Unavailable, Unreachable
from outputd.store.remote import RemoteOptions, RemoteStore
from outputd.store.remote import connection as connection_module
from outputd.store.remote.contact import Standing
from outputd.store.remote.failure import of_call
from outputd.store.remote.retry import Failure
from tests.unit.store.fake_remote import PIECE, FakeRemote, Fault
from tests.unit.store.remote.operations import OPERATIONS, absent, find, read_stream, stream
from tests.unit.store.worlds import BOUND, HASTY, IMPATIENT, remote_world, run, until

Code = grpc.StatusCode


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(connection_module, "_LAST_PAUSE", 0.02)


@asynccontextmanager
async def watched(options: RemoteOptions = HASTY) -> AsyncIterator[tuple[FakeRemote, RemoteStore]]:
    async with remote_world(options) as (fake, client), asyncio.TaskGroup() as tasks:
        watch = tasks.create_task(client.watch())
        await asyncio.sleep(0)
        yield fake, client
        watch.cancel()


async def standing(client: RemoteStore, wanted: Standing) -> None:
    await until(lambda: client.contact.standing is wanted)


def standing_of(client: RemoteStore) -> Standing:
    return client.contact.standing


class TestGivenUp:
    @pytest.mark.parametrize("method", OPERATIONS)
    def test_calls_fail_at_once_until_it_is_back(self, method: str) -> None:
        async def test() -> None:
            async with watched() as (fake, client):
                await fake.stop()
                while standing_of(client) is not Standing.GIVEN_UP:
                    with pytest.raises(Unreachable):
                        await OPERATIONS[method](fake, client)
                start = time.monotonic()
                for _ in range(100):
                    with pytest.raises(Unreachable, match="was given up, it has not answered since 20"):
                        await OPERATIONS[method](fake, client)
                # If they were tried again they would take a hundred times the patience of one.
                assert time.monotonic() - start < HASTY.retry_seconds * 50
                await fake.start()
                await standing(client, Standing.ON_TRIAL)
                fake.calls.clear()
                await OPERATIONS[method](fake, client)
                assert standing_of(client) is Standing.SERVING

        run(test)

    def test_who_has_just_timed_out_is_left_alone_then(self) -> None:
        async def test() -> None:
            async with remote_world() as (_, client):
                connection = client._connection
                call = asyncio.create_task(connection._step(asyncio.Event().wait(), 0))
                await asyncio.sleep(0)  # it waits
                await asyncio.sleep(0)  # its time is up; it is told in the next turn
                assert connection._steps
                connection._end_all()
                with pytest.raises(TimeoutError):
                    await call

        run(test)

    def test_all_that_wait_are_told_when_it_is(self) -> None:
        async def test() -> None:
            options = RemoteOptions(timeout=30, retry_seconds=0, max_concurrent=2)
            async with watched(options) as (fake, client):
                await client.abilities()
                fake.fail("Read", *[Fault(hang=True)] * 10)
                async with asyncio.TaskGroup() as tasks:
                    waiting = [tasks.create_task(fails(client, fake)) for _ in range(10)]
                    await fake.called_times(3)
                    fake.fail("GetCapabilities", Fault(code=Code.UNAVAILABLE))
                    for _ in range(2):  # as two calls that got no answer would
                        client._connection._unanswered(
                            Failure(Unreachable("x"), transient=True), time.monotonic()
                        )
                assert {type(task.result()) for task in waiting} == {Unreachable}

        run(test)

    def test_refusals_of_single_blobs_are_answers(self) -> None:
        async def test() -> None:
            async with watched() as (fake, client):
                for code in (Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED, Code.INTERNAL, Code.UNAUTHENTICATED):
                    fake.fail("FindMissingBlobs", *[Fault(code=code)] * 50)
                    with pytest.raises(Exception, match=code.name):
                        await find(fake, client)
                    fake.faults.clear()
                    assert standing_of(client) is Standing.SERVING

        run(test)

    def test_a_long_stream_that_breaks_is_no_long_outage(self) -> None:
        async def test() -> None:
            patient = RemoteOptions(timeout=5.0, retry_seconds=1.0)
            async with watched(patient) as (fake, client):
                data = bytes(5 * PIECE)
                digest = fake.add(data)
                broken = Fault(after=2 * PIECE, code=Code.UNAVAILABLE)
                fake.fail("Read", broken, Fault(code=Code.UNAVAILABLE), Fault(code=Code.UNAVAILABLE))
                received = 0
                async for piece in client.read_stream(digest):
                    received += len(piece)
                    if received <= 2 * PIECE:
                        await asyncio.sleep(0.6)  # together longer than the patience
                assert received == len(data)
                assert fake.calls.count("Read") == 4
                assert fake.calls.count("GetCapabilities") == 1, "it was suspected, and probed"

        run(test)

    def test_a_server_that_hangs_is_probed_on_a_new_connection(self) -> None:
        async def test() -> None:
            async with watched(IMPATIENT) as (fake, client):
                fake.fail("GetCapabilities", *[Fault(hang=True)] * 1000)
                while standing_of(client) is not Standing.GIVEN_UP:
                    with pytest.raises(Unavailable):
                        await client.abilities()
                fake.faults.clear()
                await standing(client, Standing.ON_TRIAL)
                for _ in range(100):  # it may be too impatient for a machine that stands still
                    try:
                        assert (await client.abilities()).api_version == "2.0-2.12"
                        break
                    except Unavailable:
                        await standing(client, Standing.ON_TRIAL)
                assert standing_of(client) is Standing.SERVING

        run(test)


class TestStandstill:
    def test_a_stream_that_trickles_is_no_stream(self) -> None:
        async def test() -> None:
            async with remote_world(RemoteOptions(timeout=0.3, retry_seconds=0.2)) as (fake, client):
                fake.fail("Read", *[Fault(trickle=0.05)] * 100)
                start = time.monotonic()
                with pytest.raises(TimedOut, match=r"it sent \d+ bytes in \d+\.\d s"):
                    await stream(client, fake.add(bytes(5000)))
                assert time.monotonic() - start < BOUND

        run(test)

    def test_a_receiver_that_takes_its_time_does_not_make_it_one(self) -> None:
        async def test() -> None:
            async with remote_world(RemoteOptions(timeout=1, retry_seconds=0)) as (fake, client):
                data = bytes(10)
                digest = fake.add(data)
                fake.fail("Read", Fault(trickle=0.001))
                received = b""
                async for piece in client.read_stream(digest):
                    received += piece
                    await asyncio.sleep(0.15)
                assert received == data

        run(test)


class TestMeaning:
    @pytest.mark.parametrize(
        "text",
        [
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Ssl handshake failed "
            "(TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED",
            "last error: UNAUTHENTICATED: Peer name cache.example.com is not in peer certificate",
            "Stream removed (SSL_ERROR_SSL: error:1000045c:SSL routines:OPENSSL_internal:TLSV1_ALERT_CERTIFICATE_REQUIRED)",
        ],
    )
    def test_a_certificate_that_is_not_trusted_is_no_outage(self, text: str) -> None:
        failure = of_call(unavailable(text), "read")
        assert isinstance(failure.error, Denied)
        assert not failure.transient

    @pytest.mark.parametrize(
        "text", ["Socket closed", "Connection refused", "recvmsg:Connection reset by peer"]
    )
    def test_a_lost_connection_is(self, text: str) -> None:
        failure = of_call(unavailable(text), "read")
        assert type(failure.error) is Unreachable
        assert failure.transient

    def test_a_limit_of_the_server_is_not_ours(self) -> None:
        async def test() -> None:
            async with remote_world(HASTY) as (fake, client):
                fake.fail("Read", *[Fault(code=Code.RESOURCE_EXHAUSTED)] * 100)
                with pytest.raises(Throttled):
                    await read_stream(fake, client)

        run(test)


async def fails(client: RemoteStore, fake: FakeRemote) -> Exception | None:
    try:
        await stream(client, absent(b"blob"))
    except Unreachable as error:
        return error
    return None


def unavailable(text: str) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(Code.UNAVAILABLE, nothing, nothing, text, "")
