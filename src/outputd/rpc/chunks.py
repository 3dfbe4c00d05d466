"""REv2 SplitBlob and SpliceBlob over a blob store: which chunks make up a blob; never holds more than one chunk.

Source: REv2, comments of SplitBlob and SpliceBlob. What a remote that splits knows of a blob that is not here is asked of it: its
client then brings the chunks that it lacks, and not the blob. Everything else is cut and put together here.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction, empty_digest
from outputd.errors import Corrupt, Exhausted, Invalid, NotFound, Unavailable
from outputd.rpc.blob_pieces import blob_pieces
from outputd.rpc.capabilities import RemoteCapabilities, chunking_of
from outputd.rpc.digests import digest_message, parse_digest, request_function
from outputd.rpc.edge import Context
from outputd.rpc.limits import MESSAGE_LIMIT
from outputd.rpc.pace import paced
from outputd.rpc.passing import Passing
from outputd.rpc.resource_name import check_instance_name
from outputd.store.base import ServedBlobs
from outputd.store.fastcdc import FastCdc
from outputd.store.waiting import in_thread

_METHODS: Final = reapi.DESCRIPTOR.services_by_name["ContentAddressableStorage"].methods_by_name
_PATIENCE: Final = 60.0
_FAST_CDC: Final = reapi.ChunkingFunction.FAST_CDC_2020
# Cutting it takes 13 seconds, and clients wait a minute. Of a larger blob only chunks that are known are told; clients then
# read it whole.
_LARGEST: Final = 128 << 20
# Digests of chunks that are remembered in all: 7 MB.
_REMEMBERED: Final = 50_000


class Chunks:
    """Both methods."""

    def __init__(self, store: ServedBlobs, passing: Passing, remote: RemoteCapabilities) -> None:
        self._store = store
        self._passing = passing
        self._remote = remote
        self._known: OrderedDict[Digest, tuple[Digest, ...]] = OrderedDict()
        """By blob, the ones not asked for in longest first."""
        self._count = 0
        self._cutting = asyncio.Lock()
        """One blob at a time: it takes all of the processor."""

    async def split(self, request: reapi.SplitBlobRequest, context: Context) -> reapi.SplitBlobResponse:
        check_instance_name(request.instance_name)
        function = request_function(request.digest_function, [request.blob_digest])
        digest = parse_digest(request.blob_digest, function, "blob_digest")
        store = self._store.of_instance(request.instance_name)
        theirs = await self._remote.of(request.instance_name)
        splits = theirs is not None and theirs.cache_capabilities.split_blob_support
        if splits and not store.local.has(digest):
            instance = request.instance_name
            request.instance_name = self._passing.instance(instance)
            request.digest_function = reapi.DigestFunction.Value.ValueType(function)
            return await self._passing.call(
                _METHODS["SplitBlob"], request, reapi.SplitBlobResponse, context, _PATIENCE, instance
            )
        chunks = await self._chunks(store, digest, chunking_of(theirs))
        reply = reapi.SplitBlobResponse(chunking_function=_FAST_CDC)
        async for some in paced(chunks):
            reply.chunk_digests.extend(map(digest_message, some))
        if reply.ByteSize() > MESSAGE_LIMIT:
            raise Exhausted(f"blob {digest}: {len(chunks)} chunks do not fit into an answer")
        return reply

    async def splice(self, request: reapi.SpliceBlobRequest, context: Context) -> reapi.SpliceBlobResponse:
        check_instance_name(request.instance_name)
        function = request_function(request.digest_function, [request.blob_digest])
        digest = parse_digest(request.blob_digest, function, "blob_digest")
        chunks = await _parsed(request.chunk_digests, function)
        if sum(chunk.size for chunk in chunks) != digest.size:
            raise Invalid(
                f"chunk_digests: {sum(chunk.size for chunk in chunks)} bytes; expected {digest.size}, those of the blob"
            )
        store = self._store.of_instance(request.instance_name)
        reply = reapi.SpliceBlobResponse(blob_digest=digest_message(digest))
        if not await store.provide([digest]):
            return reply
        theirs = await self._remote.of(request.instance_name)
        try:
            if theirs is not None and theirs.cache_capabilities.splice_blob_support:
                instance = request.instance_name
                request.instance_name = self._passing.instance(instance)
                request.digest_function = reapi.DigestFunction.Value.ValueType(function)
                reply = await self._passing.call(
                    _METHODS["SpliceBlob"], request, reapi.SpliceBlobResponse, context, _PATIENCE, instance
                )
                if not store.local.missing(set(chunks)):
                    await _keep(store, digest, chunks)
            else:
                await _fetch(store, chunks)
                await store.write(digest, _concatenated(store, chunks))
        except Corrupt as error:
            raise Invalid(
                f"chunk_digests: together they have another {function.name} than {digest}"
            ) from error
        self._remember(digest, chunks)
        return reply

    async def _chunks(self, store: ServedBlobs, digest: Digest, chunking: FastCdc) -> Sequence[Digest]:
        if digest == empty_digest(digest.function):
            return ()
        if digest.size < chunking.largest:
            await store.fetch(digest)
            return (digest,)
        async with self._cutting:
            known = self._known.get(digest)
            if known is not None and not store.local.missing(set(known)):
                self._known.move_to_end(digest)
                return known
            if digest.size > _LARGEST:
                raise NotFound(
                    f"blob {digest}: its chunks are not known, and it is too large to find them; read it whole"
                )
            await store.fetch(digest)
            chunks = [chunk async for chunk in _cut(store, digest, chunking)]
        self._remember(digest, chunks)
        return chunks

    def _remember(self, digest: Digest, chunks: Sequence[Digest]) -> None:
        self._count += len(chunks) - len(self._known.pop(digest, ()))
        self._known[digest] = tuple(chunks)
        while self._count > _REMEMBERED:
            self._count -= len(self._known.popitem(last=False)[1])


async def _parsed(messages: Sequence[reapi.Digest], function: DigestFunction) -> list[Digest]:
    chunks: list[Digest] = []
    async for some in paced(messages):
        for message in some:
            chunks.append(parse_digest(message, function, f"chunk_digests[{len(chunks)}]"))
    return chunks


async def _cut(store: ServedBlobs, digest: Digest, chunking: FastCdc) -> AsyncGenerator[Digest, None]:
    """The chunks of a blob that is here, each put into the local store."""
    descriptor = store.local.open(digest)
    if descriptor is None:
        raise Unavailable(f"{digest}: removed from the local store while it was asked for; ask again")
    try:
        offset = 0
        while offset < digest.size:
            data = await in_thread(_read, descriptor, chunking.largest, offset, digest)
            steps = chunking.cut(data)
            while True:
                try:
                    next(steps)
                except StopIteration as cut:
                    length: int = cut.value
                    break
                await asyncio.sleep(0)
            yield await in_thread(_put, store, digest.function, data[:length])
            offset += length
    finally:
        os.close(descriptor)


def _read(descriptor: int, count: int, offset: int, digest: Digest) -> bytes:
    try:
        data = os.pread(descriptor, count, offset)
    except OSError as error:
        raise Unavailable(
            f"{digest}: its file in the local store cannot be read at {offset}: {error}"
        ) from error
    if len(data) < min(count, digest.size - offset):
        raise Corrupt(f"{digest}: its file in the local store ends at {offset + len(data)}")
    return data


def _put(store: ServedBlobs, function: DigestFunction, data: bytes) -> Digest:
    digest = Digest.of(function, data)
    if not store.local.has(digest):
        store.local.put(digest, data)
    return digest


async def _fetch(store: ServedBlobs, chunks: Sequence[Digest]) -> None:
    """Have them here. Raises what keeps one of them away."""
    for error in (await store.fetch_many(set(chunks))).values():
        raise error


async def _keep(store: ServedBlobs, digest: Digest, chunks: Sequence[Digest]) -> None:
    """Put together in the local store what the remote has put together for itself."""
    if store.local.has(digest):
        return
    with store.local.writer(digest) as writer:
        async for data in _concatenated(store, chunks):
            await in_thread(writer.write, data)
        await in_thread(writer.commit)


async def _concatenated(store: ServedBlobs, chunks: Sequence[Digest]) -> AsyncGenerator[bytes, None]:
    """The bytes of chunks that are here."""
    for chunk in chunks:
        async with aclosing(blob_pieces(store.local, chunk, 0, chunk.size)) as pieces:
            async for piece in pieces:
                yield piece
