"""google.bytestream.ByteStream over a blob store; never holds a whole blob in memory.

Source: REv2, comments of ContentAddressableStorage, and bytestream.proto. Identity only: names with a compressor are
answered with UNIMPLEMENTED, as CacheCapabilities.supported_compressors lets clients expect.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
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
    Unavailable,
    Unsupported,
)
from outputd.rpc.edge import Context, OutOfRange
from outputd.rpc.limits import PIECE
from outputd.rpc.resource_name import parse_blob_name, parse_upload_name
from outputd.rpc.upload import Upload
from outputd.store.base import BlobStore

_PATIENCE: Final = 120.0
_UPLOADS: Final = 512


class ByteStream:
    """The service.

    A broken upload can be continued for `patience` seconds; it is kept by a task in `tasks`, which `close` ends.
    """

    def __init__(
        self,
        store: BlobStore,
        tasks: asyncio.TaskGroup,
        *,
        patience: float = _PATIENCE,
        upload_limit: int = _UPLOADS,
    ) -> None:
        self._store = store
        self._tasks = tasks
        self._patience = patience
        self._upload_limit = upload_limit
        # By resource name, oldest first. An upload leaves when its task ends.
        self._uploads: dict[str, tuple[Upload, asyncio.Task[None]]] = {}

    def close(self) -> None:
        """Give up all uploads that are not complete. Their calls end with UNAVAILABLE."""
        for _, task in self._uploads.values():
            task.cancel()

    async def read(
        self, request: bytestream.ReadRequest, _context: Context
    ) -> AsyncIterator[bytestream.ReadResponse]:
        name = parse_blob_name(request.resource_name)
        _check_compressor(name.compressor)
        digest = name.digest
        if not 0 <= request.read_offset <= digest.size:
            raise OutOfRange(
                f"read_offset {request.read_offset}: expected 0 to {digest.size}, the size of the blob"
            )
        if request.read_limit < 0:
            raise Invalid(f"read_limit {request.read_limit}: expected 0 (no limit) or more")
        end = digest.size
        if request.read_limit:
            end = min(end, request.read_offset + request.read_limit)
        if digest == empty_digest(digest.function):
            return
        await self._store.of_instance(name.instance).fetch(digest)
        descriptor = self._store.local.open(digest)
        if descriptor is None:
            raise Unavailable(f"{digest}: removed from the local store while it was asked for; ask again")
        try:
            offset = request.read_offset
            while offset < end:
                piece = _pread(descriptor, min(PIECE, end - offset), offset, digest)
                if not piece:
                    raise Corrupt(f"{digest}: its file in the local store ends at {offset}")
                yield bytestream.ReadResponse(data=piece)
                offset += len(piece)
        finally:
            os.close(descriptor)

    async def write(
        self, requests: AsyncIterator[bytestream.WriteRequest], _context: Context
    ) -> bytestream.WriteResponse:
        first = await self._next(requests, 0)
        if first is None:
            raise Invalid("the stream of requests is empty; expected resource_name in a first one")
        name = parse_upload_name(first.resource_name)
        _check_compressor(name.compressor)
        store = self._store.of_instance(name.instance)
        whole = first.finish_write and not first.write_offset
        if not whole and not await store.find_missing([name.digest]):
            return bytestream.WriteResponse(committed_size=name.digest.size)
        try:
            if whole:
                await self._write_whole(store, name.digest, first.data)
            else:
                await self._write_stream(store, name.digest, first, requests)
        except Corrupt as error:
            raise Invalid(
                f"{name.digest}: the bytes that came have another {name.digest.function.name}"
            ) from error
        return bytestream.WriteResponse(committed_size=name.digest.size)

    async def query_write_status(
        self, request: bytestream.QueryWriteStatusRequest, _context: Context
    ) -> bytestream.QueryWriteStatusResponse:
        name = parse_upload_name(request.resource_name)
        _check_compressor(name.compressor)
        if request.resource_name in self._uploads:
            upload, _ = self._uploads[request.resource_name]
            return bytestream.QueryWriteStatusResponse(committed_size=upload.received)
        if await self._store.of_instance(name.instance).find_missing([name.digest]):
            raise NotFound(f"resource_name {request.resource_name!r}: no such upload; begin at 0")
        return bytestream.QueryWriteStatusResponse(committed_size=name.digest.size, complete=True)

    async def _write_whole(self, store: BlobStore, digest: Digest, data: bytes) -> None:
        if len(data) != digest.size:
            raise Invalid(f"finish_write after {len(data)} bytes; expected {digest.size}")

        async def whole() -> AsyncIterator[bytes]:
            yield data

        await store.write(digest, whole())

    async def _write_stream(
        self,
        store: BlobStore,
        digest: Digest,
        first: bytestream.WriteRequest,
        rest: AsyncIterator[bytestream.WriteRequest],
    ) -> None:
        feeder = object()
        upload = self._upload(store, first.resource_name, digest, first.write_offset)
        upload.feeder = feeder
        request: bytestream.WriteRequest | None = first
        try:
            while request is not None:
                if not await upload.room():
                    return
                if upload.feeder is not feeder:
                    raise Precondition(
                        f"resource_name {first.resource_name!r}: another call continues this upload"
                    )
                if request.resource_name not in ("", first.resource_name):
                    raise Invalid(
                        f"resource_name {request.resource_name!r}: expected the first one's, or none"
                    )
                _check_offset(request.write_offset, upload.received)
                if upload.received + len(request.data) > digest.size:
                    raise Invalid(f"more than the {digest.size} bytes that resource_name tells")
                if request.data:
                    upload.push(request.data)
                if request.finish_write:
                    if upload.received != digest.size:
                        raise Invalid(f"finish_write after {upload.received} bytes; expected {digest.size}")
                    await upload.finish()
                    return
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


def _pread(descriptor: int, count: int, offset: int, digest: Digest) -> bytes:
    try:
        return os.pread(descriptor, count, offset)
    except OSError as error:
        raise Unavailable(
            f"{digest}: its file in the local store cannot be read at {offset}: {error}"
        ) from error


def _check_offset(offset: int, expected: int) -> None:
    if offset != expected:
        raise Invalid(f"write_offset {offset}: expected {expected}")


def _check_compressor(compressor: str) -> None:
    if compressor:
        raise Unsupported(f"compressor {compressor}: not offered (CacheCapabilities.supported_compressors)")
