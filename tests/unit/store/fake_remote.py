"""A REv2 CAS in this process, over a real socket, that fails on demand; holds blobs in memory.

`faults[method]` is a queue: each call of the method takes the first fault, if there is one, and suffers it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
import grpc.aio

from outputd._proto import any_pb2, duration_pb2, error_details_pb2, status_pb2
from outputd._proto import bytestream_pb2 as bytestream
from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction
from outputd.store.zstd import compressed, decompressed

CAS = "build.bazel.remote.execution.v2.ContentAddressableStorage"
CAPABILITIES = "build.bazel.remote.execution.v2.Capabilities"
BYTE_STREAM = "google.bytestream.ByteStream"
PIECE = 64 << 10

Context = Any
"""grpc.aio gives a ServicerContext whose stub lacks half of its methods."""


@dataclass(frozen=True)
class Fault:
    """What befalls one call. Without any field set: nothing."""

    code: grpc.StatusCode | None = None
    """End the call with this status."""
    retry_delay: float = 0.0
    """Seconds in a RetryInfo beside the code."""
    after: int | None = None
    """A stream that is read: send so many bytes before the code, or before an end that looks well. A stream that is written:
    take so many bytes first."""
    blob: Digest | None = None
    """A batch: the code befalls this blob alone; without a code the reply leaves it out."""
    wrong: bool = False
    """Serve other bytes of the right length."""
    extra: bytes = b""
    """Serve these after the last byte."""
    empty: int = 0
    """Serve so many pieces of nothing but `raw` first."""
    raw: bytes = b""
    compressed: bool = False
    """Say that the data of a batch is zstd."""
    damaged: bool = False
    """What travels packed is no zstd; what is sent packed is refused as such."""
    bomb: int = 0
    """What travels packed stands for so many bytes."""
    garbage: bool = False
    """Reply with what is no message."""
    hang: bool = False
    """Never answer."""
    delay: float = 0.0
    """Seconds before anything else."""
    trickle: float = 0.0
    """A stream that is read: one byte a piece, so many seconds apart."""
    gate: asyncio.Event | None = None
    """Answer when this is set."""


class FakeRemote:
    """Use as an asynchronous context manager."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self.port = -1
        """On 127.0.0.1 as well, if it is set before the start; 0: any, which stands here from then on."""
        self.url = f"unix:{socket}"
        self.blobs: dict[Digest, bytes] = {}
        self.chunks: dict[Digest, Sequence[Digest]] = {}
        """What SplitBlob tells, by blob."""
        self.faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self.plan: Callable[[str], Fault] | None = None
        """What befalls a call of a method for which no fault waits."""
        self.calls: list[str] = []
        """Methods in the order they were called."""
        self.ends: list[str] = []
        """Methods whose calls were given up by the client while they hung."""
        self.requests: list[object] = []
        """Unary requests, and those that open a stream."""
        self.metadata: dict[str, str | bytes] = {}
        """Of the last call."""
        self.accepts: set[str] | None = None
        """What `authorization` must be, if it must be anything. Who has another one is told it, as a careless server would."""
        self.capabilities = reapi.ServerCapabilities()
        self.capabilities.low_api_version.major = 2
        self.capabilities.high_api_version.major = 2
        self.capabilities.high_api_version.minor = 12
        self.offer(DigestFunction.SHA256)
        self.committed_size: int | None = None
        """What a Write claims to have kept, in place of the truth."""
        self.also_missing: list[Digest] = []
        """What FindMissingBlobs names although nobody asked for it."""
        self._server: grpc.aio.Server | None = None
        self._called = asyncio.Condition()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        unary, up, down = (
            grpc.unary_unary_rpc_method_handler,
            grpc.stream_unary_rpc_method_handler,
            grpc.unary_stream_rpc_method_handler,
        )
        services = {
            CAPABILITIES: {"GetCapabilities": unary(self._unary("GetCapabilities", self._get_capabilities))},
            CAS: {
                "FindMissingBlobs": unary(self._unary("FindMissingBlobs", self._find_missing)),
                "BatchReadBlobs": unary(self._unary("BatchReadBlobs", self._batch_read)),
                "BatchUpdateBlobs": unary(self._unary("BatchUpdateBlobs", self._batch_update)),
                "SplitBlob": unary(self._unary("SplitBlob", self._split)),
            },
            BYTE_STREAM: {"Read": down(self._read), "Write": up(self._write)},
        }
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", 4 << 20)])
        self._server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items())
        )
        self._server.add_insecure_port(self.url)
        if self.port >= 0:
            self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def add(self, data: bytes, function: DigestFunction = DigestFunction.SHA256) -> Digest:
        digest = Digest.of(function, data)
        self.blobs[digest] = data
        return digest

    def offer(self, *functions: DigestFunction) -> None:
        for function in functions:
            number = reapi.DigestFunction.Value.Value(function.name)
            self.capabilities.cache_capabilities.digest_functions.append(number)

    def cut(self, digest: Digest, size: int) -> Sequence[Digest]:
        """Offer a blob in chunks of `size`, and have these; what it tells then is in `chunks`."""
        self.capabilities.cache_capabilities.split_blob_support = True
        data = self.blobs[digest]
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        self.chunks[digest] = [self.add(piece, digest.function) for piece in pieces]
        return self.chunks[digest]

    def offer_zstd(self) -> None:
        cache = self.capabilities.cache_capabilities
        cache.supported_compressors.append(reapi.Compressor.ZSTD)
        cache.supported_batch_update_compressors.append(reapi.Compressor.ZSTD)

    def limit_batches(self, size: int) -> None:
        self.capabilities.cache_capabilities.max_batch_total_size_bytes = size

    async def called(self, *methods: str) -> None:
        """Return when each of these was called."""
        async with self._called:
            await self._called.wait_for(lambda: set(methods) <= set(self.calls))

    async def ended(self, method: str) -> None:
        """Return when the client gave up a call that hung."""
        async with self._called:
            await self._called.wait_for(lambda: method in self.ends)

    async def called_times(self, times: int) -> None:
        """Return when there were so many calls of any method."""
        async with self._called:
            await self._called.wait_for(lambda: len(self.calls) >= times)

    def fail(self, method: str, *faults: Fault) -> None:
        self.faults[method].extend(faults)

    async def _begin(self, method: str, context: Context) -> Fault:
        async with self._called:
            self.calls.append(method)
            self._called.notify_all()
        self.metadata = dict(context.invocation_metadata())
        if self.accepts is not None and self.metadata.get("authorization") not in self.accepts:
            shown = self.metadata.get("authorization")
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"the token {shown!r} is not good")
        fault = Fault() if self.plan is None else self.plan(method)
        if self.faults[method]:
            fault = self.faults[method].popleft()
        if fault.delay:
            await asyncio.sleep(fault.delay)
        if fault.hang:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self.ends.append(method)
                async with self._called:
                    self._called.notify_all()
        if fault.gate is not None:
            await fault.gate.wait()
        if fault.code is not None and fault.after is None and fault.blob is None:
            await abort(context, fault)
        return fault

    def _unary(
        self, method: str, answer: Callable[[bytes, Fault, Context], Awaitable[Any]]
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def serve(request: bytes, context: Context) -> bytes:
            fault = await self._begin(method, context)
            reply = await answer(request, fault, context)
            return b"\xff\xff\xff" if fault.garbage else reply.SerializeToString()

        return serve

    async def _get_capabilities(self, raw: bytes, fault: Fault, context: Context) -> Any:
        self.requests.append(reapi.GetCapabilitiesRequest.FromString(raw))
        return self.capabilities

    async def _find_missing(self, raw: bytes, fault: Fault, context: Context) -> Any:
        request = reapi.FindMissingBlobsRequest.FromString(raw)
        self.requests.append(request)
        function = DigestFunction(request.digest_function)
        reply = reapi.FindMissingBlobsResponse()
        for digest in request.blob_digests:
            if parse(function, digest) not in self.blobs:
                reply.missing_blob_digests.append(digest)
        for other_digest in self.also_missing:
            reply.missing_blob_digests.add(hash=other_digest.hash_hex, size_bytes=other_digest.size)
        return reply

    async def _batch_read(self, raw: bytes, fault: Fault, context: Context) -> Any:
        request = reapi.BatchReadBlobsRequest.FromString(raw)
        self.requests.append(request)
        await self._within_limit(sum(digest.size_bytes for digest in request.digests), context)
        reply = reapi.BatchReadBlobsResponse()
        for message in request.digests:
            digest = parse(DigestFunction(request.digest_function), message)
            if digest == fault.blob and fault.code is None:
                continue
            answer = reply.responses.add(digest=message)
            if digest == fault.blob:
                answer.status.CopyFrom(status(fault))
            elif digest not in self.blobs:
                answer.status.code = 5
            else:
                data = self.blobs[digest]
                answer.data = other(data) if fault.wrong else data
                if reapi.Compressor.ZSTD in request.acceptable_compressors:
                    answer.data = packed(answer.data, fault)
                    answer.compressor = reapi.Compressor.ZSTD
                if fault.compressed:
                    answer.compressor = reapi.Compressor.ZSTD
        return reply

    async def _batch_update(self, raw: bytes, fault: Fault, context: Context) -> Any:
        request = reapi.BatchUpdateBlobsRequest.FromString(raw)
        self.requests.append(request)
        await self._within_limit(sum(len(item.data) for item in request.requests), context)
        reply = reapi.BatchUpdateBlobsResponse()
        for item in request.requests:
            digest = parse(DigestFunction(request.digest_function), item.digest)
            if digest == fault.blob and fault.code is None:
                continue
            answer = reply.responses.add(digest=item.digest)
            is_packed = item.compressor == reapi.Compressor.ZSTD
            data = decompressed(item.data, digest.size) if is_packed else item.data
            if digest == fault.blob:
                answer.status.CopyFrom(status(fault))
            elif Digest.of(digest.function, data) != digest or (is_packed and fault.damaged):
                answer.status.code = 3
            else:
                self.blobs[digest] = data
        return reply

    async def _split(self, raw: bytes, fault: Fault, context: Context) -> Any:
        request = reapi.SplitBlobRequest.FromString(raw)
        self.requests.append(request)
        digest = parse(DigestFunction(request.digest_function), request.blob_digest)
        if digest not in self.chunks:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no chunks are known")
        reply = reapi.SplitBlobResponse()
        for chunk in self.chunks[digest]:
            reply.chunk_digests.add(hash=chunk.hash_hex, size_bytes=chunk.size)
        return reply

    async def _within_limit(self, size: int, context: Context) -> None:
        limit = self.capabilities.cache_capabilities.max_batch_total_size_bytes
        if limit and size > limit:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"{size} bytes are over the limit of {limit}"
            )

    async def _read(self, raw: bytes, context: Context) -> AsyncIterator[bytes]:
        fault = await self._begin("Read", context)
        request = bytestream.ReadRequest.FromString(raw)
        self.requests.append(request)
        data = self.blobs.get(parse_name(request.resource_name))
        if data is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such blob")
            return
        if not 0 <= request.read_offset <= len(data):
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "offset outside of the blob")
        data = (other(data) if fault.wrong else data) + fault.extra
        for _ in range(fault.empty):
            yield bytestream.ReadResponse(data=fault.raw).SerializeToString()
        if fault.trickle:
            for at in range(request.read_offset, len(data)):
                yield bytestream.ReadResponse(data=data[at : at + 1]).SerializeToString()
                await asyncio.sleep(fault.trickle)
            return
        begin = request.read_offset
        if names_packed(request.resource_name):
            if request.read_limit:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a limit, and compressed")
            data, begin = packed(data[begin:], fault), 0
        end = len(data) if fault.after is None else begin + fault.after
        for start in range(begin, end, PIECE):
            yield bytestream.ReadResponse(data=data[start : min(start + PIECE, end)]).SerializeToString()
        if fault.code is not None:
            await abort(context, fault)
        if fault.garbage:
            yield b"\xff\xff\xff"

    async def _write(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        fault = await self._begin("Write", context)
        data = bytearray()
        name = ""
        finished = False
        async for raw in requests:
            request = bytestream.WriteRequest.FromString(raw)
            if not name:
                name = request.resource_name
                self.requests.append(request)
                if self.blobs.get(parse_upload_name(name)) is not None:
                    # REv2 allows an early end when the blob is there.
                    return bytestream.WriteResponse(committed_size=-1).SerializeToString()
            if finished or request.write_offset != len(data) or request.resource_name not in ("", name):
                await context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT, "wrong offset, name, or more after the end"
                )
            data += request.data
            finished = request.finish_write
            if fault.after is not None and len(data) >= fault.after:
                await abort(context, fault)
        digest = parse_upload_name(name)
        sent = len(data)
        if names_packed(name):
            if fault.damaged:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "cannot unpack")
            data = bytearray(decompressed(bytes(data), digest.size))
        if not finished or Digest.of(digest.function, data) != digest:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unfinished, or another digest")
        self.blobs[digest] = bytes(data)
        committed = sent if self.committed_size is None else self.committed_size
        self.committed_size = None
        return bytestream.WriteResponse(committed_size=committed).SerializeToString()


def other(data: bytes) -> bytes:
    """As long, and wrong at the end."""
    return data[:-1] + bytes([data[-1] ^ 1])


def packed(data: bytes, fault: Fault) -> bytes:
    return b"\0" * len(data) if fault.damaged else compressed(bytes(fault.bomb) or data)


def names_packed(name: str) -> bool:
    return "compressed-blobs/zstd/" in name


def parse(function: DigestFunction, message: reapi.Digest) -> Digest:
    return Digest.parse(function, message.hash, message.size_bytes)


def parse_name(name: str) -> Digest:
    """`[{instance}/]blobs/[{function}/]{hash}/{size}`, with an instance name of one part at most, or the same packed."""
    parts = name.replace("compressed-blobs/zstd/", "blobs/").split("/")
    if parts[0] != "blobs":
        parts = parts[1:]
    assert parts[0] == "blobs", name
    if len(parts) == 4:
        function = DigestFunction[parts[1].upper()]
        assert function > DigestFunction.MURMUR3, name
    else:
        by_length = {32: "MD5", 40: "SHA1", 64: "SHA256", 96: "SHA384", 128: "SHA512"}
        function = DigestFunction[by_length[len(parts[1])]]
    return Digest.parse(function, parts[-2], int(parts[-1]))


def parse_upload_name(name: str) -> Digest:
    before, _, rest = name.partition("uploads/")
    number, _, blob = rest.partition("/")
    assert uuid.UUID(number).version == 4, name
    return parse_name(before + blob)


def status(fault: Fault) -> status_pb2.Status:
    assert fault.code is not None
    result = status_pb2.Status(code=fault.code.value[0], message="as told")
    if fault.retry_delay:
        seconds = int(fault.retry_delay)
        delay = duration_pb2.Duration(seconds=seconds, nanos=int((fault.retry_delay - seconds) * 1e9))
        info = error_details_pb2.RetryInfo(retry_delay=delay).SerializeToString()
        result.details.append(any_pb2.Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=info))
    return result


async def abort(context: Context, fault: Fault) -> NoReturn:
    details = (("grpc-status-details-bin", status(fault).SerializeToString()),)
    assert fault.code is not None
    await context.abort(fault.code, "as told", details if fault.retry_delay else ())
    raise AssertionError("abort raises")
