from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import grpc
import pytest
import uvloop

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, empty_digest
from outputd.errors import Invalid, NotFound, Unavailable
from outputd.rpc import chunks as chunks_room
from outputd.rpc.capabilities import RemoteCapabilities
from outputd.rpc.cas import ContentAddressableStorage
from outputd.rpc.chunks import Chunks
from outputd.rpc.client import Stub
from outputd.rpc.digests import digest_message
from outputd.rpc.services import service_handler
from tests.unit.rpc.fakes import SHA256, FakeStore
from tests.unit.rpc.loopback import served
from tests.unit.rpc.played_remote import PlayedRemote, Refused, passing_to, plain_cache

CAS = reapi.DESCRIPTOR.services_by_name["ContentAddressableStorage"]
AVERAGE = 1 << 10
DATA = hashlib.shake_128(b"chunks").digest(20_000)


def with_chunks(
    store: FakeStore, use: Callable[[Stub], Awaitable[None]], played: PlayedRemote | None = None
) -> None:
    async def main() -> None:
        async with passing_to(played, "settings") as passing:
            chunks = Chunks(store, passing, RemoteCapabilities(passing))
            async with served(service_handler(CAS, ContentAddressableStorage(store, chunks))) as channel:
                await use(Stub(channel, CAS))

    uvloop.run(main())


async def split(stub: Stub, digest: Digest) -> list[reapi.Digest]:
    request = reapi.SplitBlobRequest(blob_digest=digest_message(digest))
    reply = await stub.call("SplitBlob", request, reapi.SplitBlobResponse, timeout=20)
    assert reply.chunking_function == reapi.ChunkingFunction.FAST_CDC_2020
    return list(reply.chunk_digests)


async def splice(stub: Stub, digest: Digest, *chunks: Digest) -> None:
    request = reapi.SpliceBlobRequest(
        blob_digest=digest_message(digest), chunk_digests=map(digest_message, chunks)
    )
    reply = await stub.call("SpliceBlob", request, reapi.SpliceBlobResponse, timeout=20)
    assert reply.blob_digest == digest_message(digest)


def remote(*, split: bool = False, splice: bool = False) -> PlayedRemote:
    told = plain_cache()
    told.cache_capabilities.split_blob_support = split
    told.cache_capabilities.splice_blob_support = splice
    told.cache_capabilities.fast_cdc_2020_params.avg_chunk_size_bytes = AVERAGE
    played = PlayedRemote()
    played.answers["GetCapabilities"] = told
    return played


def joined(store: FakeStore, messages: list[reapi.Digest]) -> bytes:
    return b"".join(
        store.blobs[Digest.parse(SHA256, message.hash, message.size_bytes)] for message in messages
    )


def test_a_blob_is_cut_as_the_remote_does_and_its_chunks_can_be_read() -> None:
    async def use(stub: Stub) -> None:
        chunks = await split(stub, blob)
        assert len(chunks) > 5
        assert max(chunk.size_bytes for chunk in chunks) <= 4 * AVERAGE
        assert joined(store, chunks) == DATA
        assert await split(stub, blob) == chunks

    store = FakeStore()
    blob = store.add(DATA)
    with_chunks(store, use, remote())


def test_small_and_absent_blobs() -> None:
    async def use(stub: Stub) -> None:
        assert await split(stub, small) == [digest_message(small)]
        assert await split(stub, empty_digest(SHA256)) == []
        with pytest.raises(NotFound):
            await split(stub, Digest.of(SHA256, b"absent"))

    store = FakeStore()
    small = store.add(DATA)  # below four times our own average
    with_chunks(store, use)


def test_of_a_huge_blob_only_known_chunks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks_room, "_LARGEST", len(DATA) - 1)

    async def use(stub: Stub) -> None:
        with pytest.raises(NotFound, match="read it whole"):
            await split(stub, blob)
        del store.blobs[blob]
        await splice(stub, blob, *halves)
        assert await split(stub, blob) == list(map(digest_message, halves))
        del store.blobs[halves[0]]
        with pytest.raises(NotFound, match="read it whole"):
            await split(stub, blob)

    store = FakeStore()
    blob = store.add(DATA)
    halves = [store.add(DATA[:9000]), store.add(DATA[9000:])]
    with_chunks(store, use, remote())


def test_what_is_remembered_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks_room, "_REMEMBERED", 10)

    async def main() -> None:
        async with passing_to(None) as passing:
            chunks = Chunks(FakeStore(), passing, RemoteCapabilities(passing))
            for number in range(20):
                chunks._remember(Digest.of(SHA256, bytes([number % 15])), [Digest.of(SHA256, b"")] * 3)
                assert chunks._count == sum(map(len, chunks._known.values())) <= 10

    uvloop.run(main())


def test_a_blob_is_put_together_and_verified() -> None:
    async def use(stub: Stub) -> None:
        await splice(stub, blob, *halves)
        assert store.blobs[blob] == DATA
        await splice(stub, blob, *halves)
        with pytest.raises(Invalid, match="together they have another SHA256"):
            await splice(stub, Digest.of(SHA256, bytes(len(DATA))), *halves)
        with pytest.raises(Invalid, match="20000 bytes; expected 20001"):
            await splice(stub, Digest.of(SHA256, bytes(len(DATA) + 1)), *halves)
        with pytest.raises(NotFound):
            await splice(stub, Digest.of(SHA256, bytes(len(DATA))), Digest.of(SHA256, bytes(9000)), halves[1])

    store = FakeStore()
    blob = Digest.of(SHA256, DATA)
    halves = [store.add(DATA[:9000]), store.add(DATA[9000:])]
    with_chunks(store, use)


def test_a_remote_that_splits_is_asked_for_what_is_not_here() -> None:
    async def use(stub: Stub) -> None:
        request = reapi.SplitBlobRequest(blob_digest=digest_message(blob))
        assert await stub.call("SplitBlob", request, reapi.SplitBlobResponse, timeout=20) == told
        assert played.requests[-1].instance_name == "settings"
        assert played.requests[-1].digest_function == reapi.DigestFunction.SHA256
        played.answers["SplitBlob"] = Refused(grpc.StatusCode.UNAVAILABLE, "away")
        with pytest.raises(Unavailable, match="away"):
            await split(stub, blob)
        store.add(DATA)
        assert len(await split(stub, blob)) > 5

    store = FakeStore()
    blob = Digest.of(SHA256, DATA)
    told = reapi.SplitBlobResponse(
        chunk_digests=[digest_message(blob)], chunking_function=reapi.ChunkingFunction.FAST_CDC_2020
    )
    played = remote(split=True)
    played.answers["SplitBlob"] = told
    with_chunks(store, use, played)


def test_a_remote_that_splices_does_it_and_so_do_we() -> None:
    async def use(stub: Stub) -> None:
        await splice(stub, blob, *halves)
        assert len(played.requests) == 2
        assert store.blobs[blob] == DATA

    store = FakeStore()
    blob = Digest.of(SHA256, DATA)
    halves = [store.add(DATA[:9000]), store.add(DATA[9000:])]
    played = remote(splice=True)
    played.answers["SpliceBlob"] = reapi.SpliceBlobResponse(blob_digest=digest_message(blob))
    with_chunks(store, use, played)
