"""google.bytestream.ByteStream over a blob store; never holds a whole blob in memory.

Source: REv2, comments of ContentAddressableStorage, and bytestream.proto. Blobs travel as they are, or as Zstandard where
their name says `compressed-blobs/zstd`. What is no blob but a log stream is passed on to the remote (LogStream).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

from outputd._proto import bytestream_pb2 as bytestream
from outputd.digest import Digest, empty_digest
from outputd.errors import (
    Corrupt,
    Exhausted,
    Invalid,
    NotFound,
    Precondition,
    TimedOut,
    Unsupported,
)
from outputd.rpc.blob_pieces import blob_pieces
from outputd.rpc.edge import Context, OutOfRange, decode
from outputd.rpc.log_streams import asked
from outputd.rpc.passing import Passing
from outputd.rpc.resource_name import UploadName, names_no_blob, parse_blob_name, parse_upload_name
from outputd.rpc.upload import Upload
from outputd.store.base import BlobStore, ServedBlobs
from outputd.store.waiting import in_thread
from outputd.store.zstd import Compressing, Decompressing, decompressed

_METHODS: Final = bytestream.DESCRIPTOR.services_by_name["ByteStream"].methods_by_name
_PATIENCE: Final = 120.0
_UPLOADS: Final = 512


class ByteStream:
    """The service.

    A broken upload can be continued for `patience` seconds; it is kept by a task in `tasks`, which `close` ends.
    """

    def __init__(
        self,
        store: ServedBlobs,
        tasks: asyncio.TaskGroup,
        passing: Passing,
        *,
        patience: float = _PATIENCE,
        upload_limit: int = _UPLOADS,
    ) -> None:
        self._store = store
        self._tasks = tasks
        self._passing = passing
        self._patience = patience
        self._upload_limit = upload_limit
        # By resource name, oldest first. An upload leaves when its task ends.
        self._uploads: dict[str, tuple[Upload, asyncio.Task[None]]] = {}

    def close(self) -> None:
        """Give up all uploads that are not complete. Their calls end with UNAVAILABLE."""
        for _, task in self._uploads.values():
            task.cancel()

    async def read(
        self, request: bytestream.ReadRequest, context: Context
    ) -> AsyncIterator[bytestream.ReadResponse]:
        if self._passing.remote and names_no_blob(request.resource_name):
            method = _METHODS["Read"]
            prefix, request.resource_name = asked(self._passing, request.resource_name)
            replies = self._passing.stream(method, request, bytestream.ReadResponse, context, prefix)
            async with aclosing(replies):
                async for reply in replies:
                    yield reply
            return
        name = parse_blob_name(request.resource_name)
        _check_compressor(name.compressor)
        digest = name.digest
        if not 0 <= request.read_offset <= digest.size:
            raise OutOfRange(
                f"read_offset {request.read_offset}: expected 0 to {digest.size}, the size of the blob"
            )
        if request.read_limit < 0:
            raise Invalid(f"read_limit {request.read_limit}: expected 0 (no limit) or more")
        if request.read_limit and name.compressor:
            # REv2: a limit would count bytes of the blob, and a frame cannot be cut at one of them.
            raise Invalid(f"read_limit {request.read_limit}: expected 0 for a compressed blob")
        end = digest.size
        if request.read_limit:
            end = min(end, request.read_offset + request.read_limit)
        store = self._store.of_instance(name.instance)
        if digest != empty_digest(digest.function):
            await store.fetch(digest)
        async with aclosing(blob_pieces(store.local, digest, request.read_offset, end)) as pieces:
            if not name.compressor:
                async for piece in pieces:
                    yield bytestream.ReadResponse(data=piece)
                return
            frame = Compressing()
            async for piece in pieces:
                if packed := await in_thread(frame.push, piece):
                    yield bytestream.ReadResponse(data=packed)
            yield bytestream.ReadResponse(data=await in_thread(frame.end))

    async def write(
        self, requests: AsyncIterator[bytestream.WriteRequest], context: Context
    ) -> bytestream.WriteResponse:
        first = await self._next(requests, 0)
        if first is None:
            raise Invalid("the stream of requests is empty; expected resource_name in a first one")
        if self._passing.remote and names_no_blob(first.resource_name):
            prefix, name_there = asked(self._passing, first.resource_name)
            async with aclosing(_serialized(first, requests, name_there)) as data:
                reply = await self._passing.send(_METHODS["Write"], data, name_there, context, prefix)
            return decode(bytestream.WriteResponse, reply)
        name = parse_upload_name(first.resource_name)
        _check_compressor(name.compressor)
        store = self._store.of_instance(name.instance)
        digest = name.digest
        # What an early answer says (REv2): clients stop sending, and count the upload as complete.
        committed = -1 if name.compressor else digest.size
        whole = first.finish_write and not first.write_offset
        if not whole and not await store.provide([digest]):
            return bytestream.WriteResponse(committed_size=committed)
        try:
            if whole:
                await self._write_whole(store, name, first.data)
            elif store.local.has(digest):
                # Only the remote lacks it: it gets it from here, and the client's bytes need not come.
                await store.write(digest, _nothing())
            else:
                committed = await self._write_stream(store, name, first, requests)
        except Corrupt as error:
            raise Invalid(f"{digest}: the bytes that came have another {digest.function.name}") from error
        return bytestream.WriteResponse(committed_size=committed)

    async def query_write_status(
        self, request: bytestream.QueryWriteStatusRequest, context: Context
    ) -> bytestream.QueryWriteStatusResponse:
        if self._passing.remote and names_no_blob(request.resource_name):
            method = _METHODS["QueryWriteStatus"]
            prefix, request.resource_name = asked(self._passing, request.resource_name)
            return await self._passing.call(
                method, request, bytestream.QueryWriteStatusResponse, context, self._patience, prefix
            )
        name = parse_upload_name(request.resource_name)
        _check_compressor(name.compressor)
        if request.resource_name in self._uploads:
            upload, _ = self._uploads[request.resource_name]
            return bytestream.QueryWriteStatusResponse(committed_size=upload.received)
        if await self._store.of_instance(name.instance).provide([name.digest]):
            raise NotFound(f"resource_name {request.resource_name!r}: no such upload; begin at 0")
        return bytestream.QueryWriteStatusResponse(committed_size=name.digest.size, complete=True)

    async def _write_whole(self, store: BlobStore, name: UploadName, data: bytes) -> None:
        digest = name.digest
        if name.compressor:
            data = await in_thread(decompressed, data, digest.size)
        elif len(data) != digest.size:
            raise Invalid(f"finish_write after {len(data)} bytes; expected {digest.size}")

        async def whole() -> AsyncIterator[bytes]:
            yield data

        await store.write(digest, whole())

    async def _write_stream(
        self,
        store: BlobStore,
        name: UploadName,
        first: bytestream.WriteRequest,
        rest: AsyncIterator[bytestream.WriteRequest],
    ) -> int:
        """What to answer as committed_size."""
        digest = name.digest
        feeder = object()
        upload = self._upload(store, first.resource_name, digest, first.write_offset)
        upload.feeder = feeder
        incoming = _Incoming(name, first.write_offset)
        request: bytestream.WriteRequest | None = first
        try:
            while request is not None:
                if not await _turn(upload, feeder, first.resource_name):
                    return -1 if name.compressor else digest.size
                if request.resource_name not in ("", first.resource_name):
                    raise Invalid(
                        f"resource_name {request.resource_name!r}: expected the first one's, or none"
                    )
                _check_offset(request.write_offset, incoming.offset)
                async with aclosing(incoming.pieces(request.data)) as pieces:
                    async for piece in pieces:
                        if not await _turn(upload, feeder, first.resource_name):
                            return -1 if name.compressor else digest.size
                        if upload.received + len(piece) > digest.size:
                            raise Invalid(f"more than the {digest.size} bytes that resource_name tells")
                        upload.push(piece)
                if not await _turn(upload, feeder, first.resource_name):
                    return -1 if name.compressor else digest.size
                if request.finish_write:
                    incoming.end()
                    if upload.received != digest.size:
                        raise Invalid(f"finish_write after {upload.received} bytes; expected {digest.size}")
                    await upload.finish()
                    return incoming.offset
                request = await self._next(rest, upload.received)
        finally:
            if upload.feeder is feeder:
                upload.feeder = None
        raise Invalid(f"the stream of requests ended after {upload.received} bytes without finish_write")

    async def _next(
        self, requests: AsyncIterator[bytestream.WriteRequest], received: int
    ) -> bytestream.WriteRequest | None:
        try:
            async with asyncio.timeout(self._patience):
                return await anext(requests, None)
        except TimeoutError as error:
            raise TimedOut(f"nothing came for {self._patience:g} s after {received} bytes") from error

    def _upload(self, store: BlobStore, resource_name: str, digest: Digest, offset: int) -> Upload:
        """The upload that continues at `offset`, or a new one if that is 0."""
        if resource_name in self._uploads:
            upload, task = self._uploads[resource_name]
            if offset:
                _check_offset(offset, upload.received)
                return upload
            task.cancel()
        _check_offset(offset, 0)
        self._make_room()
        upload = Upload(digest, patience=self._patience)
        task = self._tasks.create_task(upload.run(store), name=f"upload {digest}")
        # Not a `finally` in the task: a task that is cancelled before its first step runs none of its code.
        task.add_done_callback(lambda _: self._ended(upload, resource_name))
        self._uploads[resource_name] = upload, task
        return upload

    def _make_room(self) -> None:
        if len(self._uploads) < self._upload_limit:
            return
        for name, (upload, task) in self._uploads.items():
            if upload.feeder is None:
                task.cancel()
                del self._uploads[name]
                return
        raise Exhausted(f"{self._upload_limit} uploads are under way; try again when one has ended")

    def _ended(self, upload: Upload, resource_name: str) -> None:
        upload.end()
        mine = self._uploads.get(resource_name)
        if mine is not None and mine[0] is upload:
            del self._uploads[resource_name]


async def _turn(upload: Upload, feeder: object, resource_name: str) -> bool:
    """Wait until this call may go on. False when the store has the blob already; Precondition when another call goes on."""
    room = await upload.room()
    if room and upload.feeder is not feeder:
        raise Precondition(f"resource_name {resource_name!r}: another call continues this upload")
    return room


class _Incoming:
    """What one call of Write sends of a blob.

    Its offsets begin with an offset in the blob and grow by the bytes sent, compressed or not (REv2, "nonsensical").
    """

    def __init__(self, name: UploadName, offset: int) -> None:
        self.offset = offset
        """The next request's write_offset."""
        self._frames = Decompressing(name.digest.size - offset) if name.compressor else None

    async def pieces(self, data: bytes) -> AsyncGenerator[bytes, None]:
        """What is new of the blob. Raises Invalid."""
        self.offset += len(data)
        if self._frames is None:
            if data:
                yield data
            return
        unpacked = self._frames.push(data)
        while (piece := await in_thread(next, unpacked, None)) is not None:
            yield piece

    def end(self) -> None:
        """It says that this was all. Raises Invalid."""
        if self._frames is not None:
            self._frames.end()


async def _serialized(
    first: bytestream.WriteRequest, rest: AsyncIterator[bytestream.WriteRequest], name: str
) -> AsyncGenerator[bytes, None]:
    """With another name for what is written."""
    first.resource_name = name
    yield first.SerializeToString()
    async for request in rest:
        if request.resource_name:
            request.resource_name = name
        yield request.SerializeToString()


async def _nothing() -> AsyncGenerator[bytes, None]:
    for piece in list[bytes]():
        yield piece


def _check_offset(offset: int, expected: int) -> None:
    if offset != expected:
        raise Invalid(f"write_offset {offset}: expected {expected}")


def _check_compressor(compressor: str) -> None:
    if compressor not in ("", "zstd"):
        raise Unsupported(f"compressor {compressor}: not offered (CacheCapabilities.supported_compressors)")
