"""What a server says of itself, and when it is asked."""

from __future__ import annotations

import asyncio
import time

import grpc
import grpc.aio
import pytest

from outputd.digest import DigestFunction
from outputd.errors import Unreachable, Unsupported
from tests.unit.store.fake_remote import Fault
from tests.unit.store.remote.operations import absent, source, stream
from tests.unit.store.worlds import BOUND, HASTY, PATIENT, remote_world, run

Code = grpc.StatusCode
SHA256 = DigestFunction.SHA256


class TestAbilities:
    def test_are_told_in_our_words_and_asked_for_once(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                cache = fake.capabilities.cache_capabilities
                fake.offer(DigestFunction.BLAKE3)
                cache.digest_functions.append(77)  # type: ignore[arg-type]
                cache.max_batch_total_size_bytes = 1 << 20
                cache.supported_compressors.extend([0, 1, 77])  # type: ignore[list-item]
                first, second = await asyncio.gather(client.abilities(), client.abilities())
                assert first == second
                assert first.digest_functions == {SHA256, DigestFunction.BLAKE3}
                assert first.max_batch_bytes == 1 << 20
                assert first.compressors == {"identity", "zstd"}
                assert first.api_version == "2.0-2.12"
                assert fake.calls == ["GetCapabilities"]

        run(test)

    @pytest.mark.parametrize("told", [0, 1 << 40])
    def test_our_own_batch_limit_holds(self, told: int) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                fake.limit_batches(told)
                assert (await client.abilities()).max_batch_bytes == PATIENT.max_batch_bytes

        run(test)

    def test_are_asked_for_anew_when_the_server_was_lost(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                await client.abilities()
                fake.fail("FindMissingBlobs", Fault(code=grpc.StatusCode.UNAVAILABLE))
                await client.find_missing([absent(b"x")])
                fake.offer(DigestFunction.BLAKE3)
                assert DigestFunction.BLAKE3 in (await client.abilities()).digest_functions
                assert fake.calls.count("GetCapabilities") == 2

        run(test)

    def test_all_who_ask_in_vain_are_told_at_once(self) -> None:
        async def test() -> None:
            async with remote_world(HASTY) as (fake, client):
                fake.fail("GetCapabilities", *[Fault(code=grpc.StatusCode.UNAVAILABLE)] * 10_000)
                start = time.monotonic()
                asked = [client.find_missing([absent(b"%d" % number)]) for number in range(500)]
                answers = await asyncio.gather(*asked, return_exceptions=True)
                assert {type(answer) for answer in answers} == {Unreachable}
                # One after the other they would take five hundred times the patience of one.
                assert time.monotonic() - start < BOUND
                fake.faults.clear()
                assert await client.find_missing([absent(b"x")]) == {absent(b"x")}

        run(test)

    def test_who_asks_may_be_cancelled_without_harm_to_the_next(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                fake.fail("GetCapabilities", Fault(hang=True))
                async with asyncio.TaskGroup() as group:
                    first = group.create_task(client.abilities())
                    second = group.create_task(client.abilities())
                    await fake.called("GetCapabilities")
                    first.cancel()
                assert second.result().api_version == "2.0-2.12"

        run(test)

    def test_a_plain_cas_is_taken_as_it_is(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                fake.fail("GetCapabilities", Fault(code=Code.UNIMPLEMENTED))
                digest = fake.add(b"data", DigestFunction.BLAKE3)
                assert await client.read_batch([digest]) == {digest: b"data"}
                assert (await client.abilities()).digest_functions == frozenset()

        run(test)

    def test_another_major_version_is_refused(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                fake.capabilities.low_api_version.major = 3
                fake.capabilities.high_api_version.major = 4
                with pytest.raises(Unsupported, match="speaks REv3 to REv4; outputd speaks REv2"):
                    await client.abilities()

        run(test)

    def test_a_function_that_is_not_offered_is_refused_before_any_byte_moves(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                digest = fake.add(b"data", DigestFunction.BLAKE3)
                for call in (
                    client.read_batch([digest]),
                    client.write_batch({digest: b"data"}),
                    client.write(digest, source(b"data")),
                    client.find_missing([digest]),
                    stream(client, digest),
                ):
                    with pytest.raises(
                        Unsupported, match="does not offer digest function BLAKE3, only SHA256"
                    ):
                        await call
                assert fake.calls == ["GetCapabilities"]

        run(test)
