"""Finding and reading blobs: batches and streams."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import grpc
import grpc.aio
import pytest

from outputd._proto import bytestream_pb2 as bytestream
from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction, empty_digest
from outputd.errors import Corrupt, Denied, NotFound
from outputd.store.remote import RemoteOptions, RemoteStore, retry
from tests.unit.store.fake_remote import Fault
from tests.unit.store.remote.operations import absent, source, stream
from tests.unit.store.worlds import HASTY, remote_world, run

Code = grpc.StatusCode
SHA256 = DigestFunction.SHA256


class TestFindMissing:
    def test_names_what_is_not_there(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                here, gone = fake.add(b"here"), absent(b"gone")
                assert await client.find_missing([here, gone, empty_digest(SHA256)]) == {gone}
                [request] = fake.requests[1:]
                assert isinstance(request, reapi.FindMissingBlobsRequest)
                assert len(request.blob_digests) == 2
                assert request.digest_function == reapi.DigestFunction.Value.Value("SHA256")

        run(test)

    def test_what_nobody_asked_for_is_not_named(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                fake.also_missing.append(absent(b"something else"))
                assert await client.find_missing([absent(b"gone")]) == {absent(b"gone")}

        run(test)

    def test_one_call_has_digests_of_one_function(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                fake.offer(DigestFunction.SHA1, DigestFunction.BLAKE3)
                digests = [
                    Digest.of(function, b"x")
                    for function in (SHA256, DigestFunction.SHA1, DigestFunction.BLAKE3)
                ]
                assert await client.find_missing(digests) == set(digests)
                assert fake.calls.count("FindMissingBlobs") == 3

        run(test)

    def test_many_go_in_several_calls(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                digests = [Digest.make(SHA256, number.to_bytes(32), 1) for number in range(20_001)]
                fake.blobs = dict.fromkeys(digests[::2], b"x")
                assert await client.find_missing(digests) == set(digests[1::2])
                assert fake.calls.count("FindMissingBlobs") == 3

        run(test)

    def test_nothing_to_ask_is_no_call(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                assert await client.find_missing([empty_digest(SHA256)]) == set()
                assert fake.calls == []

        run(test)

    def test_a_reply_that_is_none_is_corrupt(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                fake.fail("FindMissingBlobs", Fault(garbage=True))
                with pytest.raises(Corrupt, match="the reply is no FindMissingBlobsResponse"):
                    await client.find_missing([absent(b"x")])

        run(test)


class TestReadBatch:
    def test_every_digest_has_an_answer_of_its_own(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                one, two, gone, empty = (
                    fake.add(b"one"),
                    fake.add(b"two"),
                    absent(b"gone"),
                    empty_digest(SHA256),
                )
                answers = await client.read_batch([one, two, gone, empty, one])
                assert set(answers) == {one, two, gone, empty}
                assert (answers[one], answers[two], answers[empty]) == (b"one", b"two", b"")
                assert isinstance(answers[gone], NotFound)
                assert gone.hash_hex in str(answers[gone])
                assert fake.url in str(answers[gone])
                assert await client.read_batch([]) == {}
                assert fake.calls == ["GetCapabilities", "BatchReadBlobs"]

        run(test)

    def test_calls_keep_to_the_limit_and_larger_blobs_are_streamed(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                fake.limit_batches(1000)
                blobs = {fake.add(b"%03d" % i * 60): b"%03d" % i * 60 for i in range(20)}
                large = fake.add(b"large" * 300)
                exact = fake.add(b"x" * 1000)
                answers = await client.read_batch([*blobs, large, exact])
                assert answers == blobs | {large: b"large" * 300, exact: b"x" * 1000}
                # 180 bytes and their overhead: three to a call. The fake refuses more than the limit.
                assert fake.calls.count("BatchReadBlobs") == 8
                assert fake.calls.count("Read") == 1

        run(test)

    def test_wrong_bytes_are_told_of_the_one_blob(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                good, bad = fake.add(b"good"), fake.add(b"bad")
                fake.blobs[bad] = b"BAD"
                answers = await client.read_batch([good, bad])
                assert answers[good] == b"good"
                assert isinstance(answers[bad], Corrupt)
                fake.blobs[bad] = b""
                assert isinstance((await client.read_batch([good, bad]))[bad], Corrupt)

        run(test)

    def test_a_large_batch_is_verified_too(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                blobs = {fake.add(bytes([i]) * 50_000): bytes([i]) * 50_000 for i in range(4)}
                assert await client.read_batch(blobs) == blobs
                fake.fail("BatchReadBlobs", Fault(wrong=True))
                assert {type(answer) for answer in (await client.read_batch(blobs)).values()} == {Corrupt}

        run(test)

    @pytest.mark.parametrize("fault", [Fault(code=Code.ABORTED), Fault()])
    def test_a_blob_that_failed_for_a_moment_is_asked_for_again_alone(self, fault: Fault) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                one, two = fake.add(b"one"), fake.add(b"two")
                fake.fail("BatchReadBlobs", Fault(code=fault.code, blob=two))
                assert await client.read_batch([one, two]) == {one: b"one", two: b"two"}
                second = fake.requests[-1]
                assert isinstance(second, reapi.BatchReadBlobsRequest)
                assert [digest.hash for digest in second.digests] == [two.hash_hex]

        run(test)

    def test_a_blob_that_fails_for_good_does_not_harm_the_others(self) -> None:
        async def test() -> None:
            async with remote_world(HASTY) as (fake, client):
                one, two = fake.add(b"one"), fake.add(b"two")
                fake.fail("BatchReadBlobs", Fault(code=Code.PERMISSION_DENIED, blob=two))
                answers = await client.read_batch([one, two])
                assert answers[one] == b"one"
                assert isinstance(answers[two], Denied)
                fake.fail("BatchReadBlobs", *[Fault(blob=two)] * 1000)
                answers = await client.read_batch([one, two])
                assert answers[one] == b"one"
                assert isinstance(answers[two], Corrupt)
                assert "the reply leaves it out (tried" in str(answers[two])

        run(test)

    @pytest.mark.parametrize("code", [Code.UNIMPLEMENTED, Code.INVALID_ARGUMENT])
    def test_a_server_without_batches_is_asked_blob_by_blob(self, code: grpc.StatusCode) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                one, gone = fake.add(b"one"), absent(b"gone")
                fake.fail("BatchReadBlobs", Fault(code=code))
                answers = await client.read_batch([one, gone])
                assert answers[one] == b"one"
                assert isinstance(answers[gone], NotFound)

        run(test)

    def test_compression_nobody_asked_for_is_corrupt(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                one = fake.add(b"one")
                fake.fail("BatchReadBlobs", Fault(compressed=True))
                answer = (await client.read_batch([one]))[one]
                assert isinstance(answer, Corrupt)
                assert "compressed" in str(answer)

        run(test)


class TestReadStream:
    DATA = bytes(range(256)) * 2000

    @pytest.mark.parametrize("size", [1, 64 << 10, (64 << 10) + 1, 500_000])
    def test_all_bytes_from_any_offset(self, size: int) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                data = self.DATA[:size]
                digest = fake.add(data)
                assert await stream(client, digest) == data
                assert await stream(client, digest, size // 2) == data[size // 2 :]
                assert await stream(client, digest, size) == b""

        run(test)

    def test_the_empty_blob_is_not_asked_for(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                assert await stream(client, empty_digest(SHA256)) == b""
                assert fake.calls == []

        run(test)

    @pytest.mark.parametrize(
        "code",
        [
            Code.UNAVAILABLE,
            Code.INTERNAL,
            Code.UNKNOWN,
            Code.ABORTED,
            Code.DEADLINE_EXCEEDED,
            Code.RESOURCE_EXHAUSTED,
            None,
        ],
    )
    def test_a_broken_or_truncated_stream_goes_on_where_it_broke(self, code: grpc.StatusCode | None) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                digest = fake.add(self.DATA)
                fake.fail("Read", *[Fault(code=code, after=after) for after in (0, 100_001, 0, 7)])
                assert await stream(client, digest) == self.DATA
                offsets = [
                    request.read_offset
                    for request in fake.requests
                    if isinstance(request, bytestream.ReadRequest)
                ]
                assert offsets == [0, 0, 100_001, 100_001, 100_008]

        run(test)

    def test_patience_begins_anew_with_every_byte(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def test() -> None:
            async with remote_world(RemoteOptions(retry_seconds=10)) as (fake, client):
                digest = fake.add(self.DATA)
                fake.fail("Read", *[Fault(code=Code.UNAVAILABLE, after=1000)] * 30)
                await client.abilities()
                # A clock that goes on by a second whenever somebody looks at it.
                clock = SimpleNamespace(monotonic=map(float, itertools.count()).__next__)
                monkeypatch.setattr(retry, "time", clock)
                assert await stream(client, digest) == self.DATA

        run(test)

    def test_a_stream_that_breaks_after_the_last_byte_was_whole(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                digest = fake.add(self.DATA)
                fake.fail("Read", Fault(code=Code.UNAVAILABLE, after=len(self.DATA)))
                assert await stream(client, digest) == self.DATA
                assert fake.calls.count("Read") == 1

        run(test)

    def test_a_stream_that_always_ends_early_is_corrupt_in_the_end(self) -> None:
        async def test() -> None:
            async with remote_world(HASTY) as (fake, client):
                digest = fake.add(self.DATA)
                fake.blobs[digest] = self.DATA[:1000]
                with pytest.raises(
                    Corrupt, match=r"ended after 1000 of 512000 bytes \(tried \d+ times in \d+\.\d s\)"
                ):
                    await stream(client, digest)

        run(test)

    def test_more_bytes_than_the_digest_says_are_never_passed_on(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                digest = fake.add(self.DATA)
                fake.fail("Read", Fault(extra=b"x"))
                got = bytearray()
                with pytest.raises(Corrupt, match="more than 512000 bytes"):
                    async for piece in client.read_stream(digest):
                        got += piece
                assert self.DATA.startswith(got)

        run(test)

    def test_some_pieces_may_be_empty_but_not_without_end(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                digest = fake.add(self.DATA)
                fake.fail("Read", Fault(empty=10), Fault(empty=100_000))
                assert await stream(client, digest) == self.DATA
                with pytest.raises(Corrupt, match="without a byte"):
                    await stream(client, digest)

        run(test)

    def test_a_piece_that_is_no_message_is_corrupt(self) -> None:
        async def test() -> None:
            async with remote_world() as (fake, client):
                digest = fake.add(self.DATA)
                fake.fail("Read", Fault(garbage=True, after=10))
                with pytest.raises(Corrupt, match=f"{digest.hash_hex}.*no ReadResponse"):
                    await stream(client, digest)

        run(test)

    @pytest.mark.parametrize(
        "function", [SHA256, DigestFunction.SHA512, DigestFunction.BLAKE3, DigestFunction.SHA256TREE]
    )
    @pytest.mark.parametrize("instance", ["", "main"])
    def test_resource_names(self, function: DigestFunction, instance: str) -> None:
        async def test() -> None:
            async with remote_world() as (fake, _):
                fake.offer(function)
                digest = fake.add(b"data", function)
                client = RemoteStore(fake.url, instance)
                assert await stream(client, digest) == b"data"
                request = fake.requests[-1]
                assert isinstance(request, bytestream.ReadRequest)
                named = {DigestFunction.BLAKE3: "blake3/", DigestFunction.SHA256TREE: "sha256tree/"}.get(
                    function, ""
                )
                expected = f"{instance}/blobs/{named}{digest}".removeprefix("/")
                assert request.resource_name == expected
                assert fake.metadata["build.bazel.remote.execution.v2.resource-name"] == expected
                del fake.blobs[digest]
                await client.write(digest, source(b"data"))
                assert fake.blobs[digest] == b"data"
                await client.close()

        run(test)
