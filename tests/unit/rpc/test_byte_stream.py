from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

import grpc
import grpc.aio
import pytest
import uvloop

from outputd._proto import bytestream_pb2 as bytestream
from outputd.digest import Digest, DigestFunction, empty_digest
from outputd.errors import Corrupt, Exhausted, Invalid, NotFound, Unavailable, Unsupported
from outputd.rpc.byte_stream import ByteStream
from outputd.rpc.client import Stub
from outputd.rpc.limits import PIECE
from outputd.rpc.passing import Passing
from outputd.rpc.resource_name import BlobName, UploadName
from outputd.rpc.services import service_handler
from outputd.store.zstd import Compressing, compressed, decompressed
from tests.unit.rpc.fakes import SHA256, FakeStore
from tests.unit.rpc.loopback import served

SERVICE = bytestream.DESCRIPTOR.services_by_name["ByteStream"]
DATA = bytes(range(256)) * 40
DIGEST = Digest.of(SHA256, DATA)
LARGE = bytes(range(251)) * 8000


class Use(Protocol):
    def __call__(self, stub: Stub, service: ByteStream) -> Awaitable[None]: ...


def with_stream(store: FakeStore, use: Use, *, patience: float = 5, upload_limit: int = 8) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            service = ByteStream(store, tasks, Passing(None), patience=patience, upload_limit=upload_limit)
            async with served(service_handler(SERVICE, service)) as channel:
                await use(Stub(channel, SERVICE), service)
            service.close()

    uvloop.run(main())


async def read(stub: Stub, name: str, offset: int = 0, limit: int = 0) -> list[bytes]:
    request = bytestream.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit)
    replies = stub.stream("Read", request, bytestream.ReadResponse, timeout=10)
    return [reply.data async for reply in replies]


def upload_name(digest: Digest = DIGEST, upload: str = "uuid") -> str:
    return str(UploadName("", upload, digest))


def message(offset: int, data: bytes, *, finish: bool = False, name: str = "") -> bytestream.WriteRequest:
    return bytestream.WriteRequest(resource_name=name, write_offset=offset, data=data, finish_write=finish)


async def write(stub: Stub, *requests: bytestream.WriteRequest) -> int:
    async def stream() -> AsyncGenerator[bytestream.WriteRequest, None]:
        for request in requests:
            yield request

    async with aclosing(stream()) as one:
        return (await stub.send("Write", one, bytestream.WriteResponse, timeout=10)).committed_size


async def status(stub: Stub, name: str) -> tuple[int, bool]:
    request = bytestream.QueryWriteStatusRequest(resource_name=name)
    reply = await stub.call("QueryWriteStatus", request, bytestream.QueryWriteStatusResponse, timeout=10)
    return reply.committed_size, reply.complete


class Call:
    """A Write that the test feeds piece by piece and may break."""

    def __init__(self, stub: Stub) -> None:
        invoke = stub._channel.stream_unary(
            f"/{SERVICE.full_name}/Write",
            bytestream.WriteRequest.SerializeToString,
            bytestream.WriteResponse.FromString,
        )
        self.call: grpc.aio.StreamUnaryCall[bytestream.WriteRequest, bytestream.WriteResponse] = invoke(
            None, timeout=10
        )

    async def send(self, request: bytestream.WriteRequest) -> None:
        await self.call.write(request)


async def until(stub: Stub, condition: Callable[[], bool]) -> None:
    """Talk to the server until it is so: what happens to other calls is noticed there in its own time."""
    async with asyncio.timeout(5):
        while not condition():
            await read(stub, str(BlobName("", empty_digest(SHA256))))


def test_reads_come_in_pieces_and_slices() -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        name = str(BlobName("any/instance", digest))
        pieces = await read(stub, name)
        assert [len(piece) for piece in pieces] == [PIECE, PIECE, 5]
        assert b"".join(pieces) == data
        assert await read(stub, name, offset=len(data) - 3) == [data[-3:]]
        assert await read(stub, name, offset=2, limit=3) == [data[2:5]]
        assert b"".join(await read(stub, name, offset=7, limit=1 << 40)) == data[7:]
        assert await read(stub, name, offset=len(data)) == []

    store = FakeStore()
    data = bytes(range(256)) * (2 * PIECE // 256) + b"tail."
    digest = store.add(data)
    with_stream(store, use)


def test_a_remote_that_talks_nonsense_is_not_the_clients_fault() -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        with pytest.raises(Corrupt, match="no FindMissingBlobsResponse"):
            await write(stub, message(0, DATA[:1], name=upload_name()), message(1, DATA[1:], finish=True))

    store = FakeStore()
    store.broken = Corrupt("the reply is no FindMissingBlobsResponse")
    with_stream(store, use)


def test_the_empty_blob_needs_no_store() -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        assert await read(stub, str(BlobName("", empty_digest(SHA256)))) == []

    store = FakeStore()
    store.broken = Unavailable("remote gone")
    with_stream(store, use)


def test_reads_that_fail() -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        name = str(BlobName("", digest))
        for offset in (-1, 5):
            with pytest.raises(Invalid, match="OUT_OF_RANGE: read_offset"):
                await read(stub, name, offset=offset)
        with pytest.raises(Invalid, match="INVALID_ARGUMENT: read_limit"):
            await read(stub, name, limit=-1)
        with pytest.raises(NotFound, match="nowhere"):
            await read(stub, str(BlobName("", DIGEST)))
        with pytest.raises(Invalid, match="resource_name"):
            await read(stub, "no/such/name")
        with pytest.raises(Unsupported, match="brotli"):
            await read(stub, str(BlobName("", digest, "brotli")))

    store = FakeStore()
    digest = store.add(b"here")
    with_stream(store, use)


@pytest.mark.parametrize("data", [DATA, b""])
@pytest.mark.parametrize("function", [DigestFunction.SHA256, DigestFunction.BLAKE3, DigestFunction.MD5])
def test_a_blob_in_one_message(data: bytes, function: DigestFunction) -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        name = str(UploadName("main", "uuid", digest)) + "/meta/data"
        assert await write(stub, message(0, data, finish=True, name=name)) == len(data)
        assert store.blobs[digest] == data
        assert await status(stub, name) == (len(data), True)

    store = FakeStore()
    digest = Digest.of(function, data)
    with_stream(store, use)


def test_a_blob_in_many_messages() -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        name = upload_name()
        committed = await write(
            stub,
            message(0, DATA[:1000], name=name),
            message(1000, DATA[1000:5000]),
            message(5000, b"", name=name),
            message(5000, DATA[5000:]),
            message(len(DATA), b"", finish=True),
        )
        assert committed == len(DATA)
        assert store.blobs[DIGEST] == DATA

    store = FakeStore()
    with_stream(store, use)


@pytest.mark.parametrize(
    ("requests", "says"),
    [
        ([], "empty"),
        ([message(0, b"")], "resource_name"),
        ([message(0, DATA[:10], finish=True, name=upload_name())], "finish_write after 10 bytes"),
        ([message(0, DATA + b"x", finish=True, name=upload_name())], "finish_write after 10241 bytes"),
        ([message(0, bytes(len(DATA)), finish=True, name=upload_name())], "another SHA256"),
        ([message(5, DATA, finish=True, name=upload_name())], "write_offset 5: expected 0"),
        ([message(-1, DATA, name=upload_name())], "write_offset -1: expected 0"),
        ([message(0, DATA, name=upload_name())], "without finish_write"),
        ([message(0, DATA[:9], name=upload_name()), message(8, DATA[8:])], "write_offset 8: expected 9"),
        ([message(0, DATA[:9], name=upload_name()), message(9, DATA)], "more than the 10240 bytes"),
        (
            [message(0, DATA[:9], name=upload_name()), message(9, b"", finish=True)],
            "finish_write after 9 bytes",
        ),
        ([message(0, DATA[:9], name=upload_name()), message(9, DATA[9:], name="other")], "'other'"),
        (
            [message(0, DATA[:9], name=upload_name()), message(9, bytes(len(DATA) - 9), finish=True)],
            "another SHA256",
        ),
    ],
)
def test_writes_that_are_refused_leave_nothing(requests: list[bytestream.WriteRequest], says: str) -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        with pytest.raises(Invalid, match=says):
            await write(stub, *requests)
        assert not store.blobs
        # and stand in nobody's way
        assert await write(stub, message(0, DATA[:1], name=upload_name()), message(1, DATA[1:], finish=True))
        assert store.blobs[DIGEST] == DATA

    store = FakeStore()
    with_stream(store, use)


def zstd_name(digest: Digest = DIGEST) -> str:
    return str(UploadName("", "uuid", digest, "zstd"))


def test_other_compressors_than_zstd_are_unimplemented() -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        name = str(UploadName("", "uuid", DIGEST, "deflate"))
        with pytest.raises(Unsupported, match="deflate"):
            await write(stub, message(0, b"x", finish=True, name=name))
        with pytest.raises(Unsupported, match="deflate"):
            await status(stub, name)

    with_stream(FakeStore(), use)


def test_compressed_reads_begin_anywhere_and_have_no_limit() -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        for digest, data in ((large, LARGE), (empty_digest(SHA256), b"")):
            for offset in {0, len(data) // 3, len(data)}:
                came = b"".join(await read(stub, str(BlobName("", digest, "zstd")), offset))
                assert decompressed(came, len(data) - offset) == data[offset:]
        with pytest.raises(Invalid, match="read_limit 1: expected 0"):
            await read(stub, str(BlobName("", large, "zstd")), 0, 1)

    store = FakeStore()
    large = store.add(LARGE)
    with_stream(store, use)


@pytest.mark.parametrize("piece", [1 << 20, 4096, 7])
def test_a_compressed_upload(piece: int) -> None:
    packed = compressed(DATA)

    async def use(stub: Stub, service: ByteStream) -> None:
        requests = [
            message(offset, packed[offset : offset + piece], finish=offset + piece >= len(packed))
            for offset in range(0, len(packed), piece)
        ]
        requests[0].resource_name = zstd_name()
        # In one message the server needs no offsets; it may say -1, as for a blob that it had.
        assert await write(stub, *requests) in (len(packed), -1)
        assert store.blobs[DIGEST] == DATA
        assert await write(stub, message(0, packed[:1], name=zstd_name())) == -1

    store = FakeStore()
    with_stream(store, use)


def test_a_compressed_upload_goes_on_at_an_offset_of_the_blob() -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        call = Call(stub)
        frame = Compressing()
        await call.send(message(0, frame.push(DATA[:4000]) + frame.end(), name=zstd_name()))
        await until(stub, lambda: any(upload.received == 4000 for upload, _ in service._uploads.values()))
        call.call.cancel()
        assert await status(stub, zstd_name()) == (4000, False)
        rest = compressed(DATA[4000:])
        second = message(4000 + 5, rest[5:], finish=True)
        assert await write(stub, message(4000, rest[:5], name=zstd_name()), second) == 4000 + len(rest)
        assert store.blobs[DIGEST] == DATA

    store = FakeStore()
    with_stream(store, use)


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (compressed(DATA + b"x"), "more than"),
        (compressed(DATA[:-1]), f"stand for {len(DATA) - 1} bytes"),
        (compressed(DATA)[:-1], "end within a frame"),
        (compressed(bytes(len(DATA))), "another SHA256"),
        (compressed(bytes(50_000_000)), "more than"),
        (DATA, "not Zstandard"),
    ],
)
def test_compressed_uploads_that_are_refused(sent: bytes, says: str) -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        for requests in (
            [message(0, sent, finish=True, name=zstd_name())],
            [message(0, sent, name=zstd_name()), message(len(sent), b"", finish=True)],
        ):
            with pytest.raises(Invalid, match=says):
                await write(stub, *requests)
        assert not store.blobs

    store = FakeStore()
    with_stream(store, use)


def test_what_only_the_remote_lacks_goes_there_from_here() -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        with pytest.raises(NotFound):
            await status(stub, upload_name())
        call = Call(stub)
        await call.send(message(0, b"", name=upload_name()))
        assert (await call.call).committed_size == len(DATA)  # without a byte from the client
        assert not store.unsent
        assert await status(stub, upload_name()) == (len(DATA), True)

    store = FakeStore()
    store.unsent.add(store.add(DATA))
    with_stream(store, use)


def test_an_upload_ends_early_when_the_blob_is_here() -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        call = Call(stub)
        await call.send(message(0, DATA[:10], name=upload_name()))
        assert (await call.call).committed_size == len(DATA)  # though nothing was finished

    store = FakeStore()
    store.add(DATA)
    with_stream(store, use)


def test_a_broken_upload_goes_on_where_it_was() -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        name = upload_name()
        with pytest.raises(NotFound, match="begin at 0"):
            await status(stub, name)
        first = Call(stub)
        await first.send(message(0, DATA[:4000], name=name))
        await store.writing.wait()
        first.call.cancel()
        assert await status(stub, name) == (4000, False)
        with pytest.raises(Invalid, match="write_offset 3999: expected 4000"):
            await write(stub, message(3999, DATA[3999:], name=name))
        assert await write(stub, message(4000, DATA[4000:], finish=True, name=name)) == len(DATA)
        assert store.blobs[DIGEST] == DATA
        assert await status(stub, name) == (len(DATA), True)

    store = FakeStore()
    with_stream(store, use)


def test_a_broken_upload_may_be_begun_anew() -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        name = upload_name()
        first = Call(stub)
        await first.send(message(0, bytes(4000), name=name))
        await store.writing.wait()
        assert await write(stub, message(0, DATA[:1], name=name), message(1, DATA[1:], finish=True)) == len(
            DATA
        )
        assert store.blobs[DIGEST] == DATA
        # The call that was left behind learns of it, or of the blob that is here by now.
        await first.send(message(4000, bytes(10)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await first.call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    store = FakeStore()
    with_stream(store, use)


def test_a_call_that_was_overtaken_learns_of_it() -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        name = upload_name()
        first, second = Call(stub), Call(stub)
        await first.send(message(0, DATA[:10], name=name))
        await store.writing.wait()
        await second.send(message(10, DATA[10:20], name=name))

        [(upload, _)] = service._uploads.values()
        await until(stub, lambda: upload.received == 20)
        await first.send(message(20, DATA[20:]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await first.call
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await second.send(message(20, DATA[20:], finish=True))
        assert (await second.call).committed_size == len(DATA)

    store = FakeStore()
    with_stream(store, use)


def test_an_upload_nobody_continues_is_given_up() -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        call = Call(stub)
        await call.send(message(0, DATA[:10], name=upload_name()))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.call
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "nothing came for 0.01 s after 10 bytes" in (caught.value.details() or "")

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await Call(stub).call  # nothing at all
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "after 0 bytes" in (caught.value.details() or "")
        await until(stub, lambda: not service._uploads)
        with pytest.raises(NotFound):
            await status(stub, upload_name())

    with_stream(FakeStore(), use, patience=0.01)


def test_what_the_store_says_of_a_stream_is_what_the_client_hears() -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        with pytest.raises(Exhausted, match="disk full"):
            await write(stub, message(0, DATA[:10], name=upload_name()), message(10, DATA[10:], finish=True))
        with pytest.raises(Exhausted, match="disk full"):
            await write(stub, message(0, DATA, finish=True, name=upload_name()))
        assert not service._uploads

    store = FakeStore()
    store.failing[DIGEST] = Exhausted("disk full")
    with_stream(store, use)


def test_a_store_that_stops_reading_does_not_hang_the_client() -> None:
    class Full(FakeStore):
        async def write(self, digest: Digest, data: AsyncIterator[bytes]) -> None:
            await anext(data)
            raise Exhausted("disk full")

    async def use(stub: Stub, service: ByteStream) -> None:
        pieces = [message(n * 100, DATA[n * 100 : n * 100 + 100], name=upload_name()) for n in range(100)]
        with pytest.raises(Exhausted, match="disk full"):
            await write(stub, *pieces)

    with_stream(Full(), use)


def test_a_store_that_has_the_blob_meanwhile_ends_the_call_early() -> None:
    class Knowing(FakeStore):
        async def write(self, digest: Digest, data: AsyncIterator[bytes]) -> None:
            await anext(data)

    async def use(stub: Stub, service: ByteStream) -> None:
        pieces = [message(n * 100, DATA[n * 100 : n * 100 + 100], name=upload_name()) for n in range(100)]
        assert await write(stub, *pieces) == len(DATA)

    with_stream(Knowing(), use)


def test_a_bug_in_the_store_ends_the_call_and_not_the_group(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeStore):
        async def write(self, digest: Digest, data: AsyncIterator[bytes]) -> None:
            await anext(data)
            raise ZeroDivisionError

    async def use(stub: Stub, service: ByteStream) -> None:
        with pytest.raises(Unavailable, match="INTERNAL: a fault of outputd"):
            await write(stub, message(0, DATA[:10], name=upload_name()), message(10, DATA[10:], finish=True))
        assert await read(stub, str(BlobName("", empty_digest(SHA256)))) == []

    with_stream(Broken(), use)
    assert len(caplog.records) == 1


def test_the_same_blob_may_come_from_several_clients_at_once() -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        async def one(number: int) -> int:
            name = upload_name(upload=f"u{number}")
            half = len(DATA) // 2
            return await write(
                stub, message(0, DATA[:half], name=name), message(half, DATA[half:], finish=True)
            )

        async with asyncio.TaskGroup() as tasks:
            results = [tasks.create_task(one(number)) for number in range(5)]
        assert {result.result() for result in results} == {len(DATA)}
        assert store.blobs == {DIGEST: DATA}

    store = FakeStore()
    with_stream(store, use)


def test_uploads_are_limited_and_abandoned_ones_make_room() -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        calls = [Call(stub), Call(stub)]
        for number, call in enumerate(calls):
            await call.send(message(0, DATA[:10], name=upload_name(upload=f"u{number}")))

        await until(stub, lambda: len(service._uploads) == 2)
        with pytest.raises(Exhausted, match="2 uploads are under way"):
            await write(stub, message(0, DATA[:10], name=upload_name(upload="u2")))
        calls[0].call.cancel()

        await until(stub, lambda: any(upload.feeder is None for upload, _ in service._uploads.values()))
        third = Call(stub)
        await third.send(message(0, DATA[:10], name=upload_name(upload="u2")))
        await third.send(message(10, DATA[10:], finish=True))
        assert (await third.call).committed_size == len(DATA)

    with_stream(FakeStore(), use, upload_limit=2)


def test_closing_gives_up_what_is_not_complete() -> None:
    async def use(stub: Stub, service: ByteStream) -> None:
        call = Call(stub)
        await call.send(message(0, DATA[:10], name=upload_name()))
        await store.writing.wait()
        service.close()
        await call.send(message(10, DATA[10:], finish=True))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not store.blobs

    store = FakeStore()
    with_stream(store, use)
