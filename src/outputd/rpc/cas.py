"""REv2 ContentAddressableStorage over a blob store; never holds more than one request's blobs.

Blobs are found by digest alone: every well-formed instance name sees the same store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable
from typing import Final

from outputd._proto import remote_execution_pb2 as reapi
from outputd._proto import status_pb2
from outputd.digest import Digest, DigestFunction, empty_digest
from outputd.errors import Corrupt, Exhausted, Invalid, OutputdError, Unsupported
from outputd.rpc.chunks import Chunks
from outputd.rpc.digests import digest_message, parse_digest, request_function
from outputd.rpc.directory_pages import directory_pages
from outputd.rpc.edge import Context, item_status
from outputd.rpc.limits import BATCH_LIMIT, ITEM_LIMIT, ITEM_OVERHEAD, MESSAGE_LIMIT
from outputd.rpc.pace import paced
from outputd.rpc.resource_name import check_instance_name
from outputd.rpc.services import gives_bytes
from outputd.store.base import ServedBlobs
from outputd.store.waiting import in_thread
from outputd.store.zstd import compressed, decompressed

# Hex digits of the longest hash, SHA512.
_HASH_LIMIT: Final = 128
# Below this a batch gains nothing from a compressed blob, and each costs a thread's turn.
_WORTH_PACKING: Final = 1024


class ContentAddressableStorage:
    """The service. Raises errors.py's words; what concerns one blob of a batch stands beside that blob."""

    def __init__(self, store: ServedBlobs, chunks: Chunks) -> None:
        self._store = store
        self._chunks = chunks

    async def find_missing_blobs(
        self, request: reapi.FindMissingBlobsRequest, _context: Context
    ) -> reapi.FindMissingBlobsResponse:
        check_instance_name(request.instance_name)
        if not request.blob_digests:
            return reapi.FindMissingBlobsResponse()
        function = request_function(request.digest_function, request.blob_digests)
        wanted: dict[Digest, None] = {}
        parsed = 0
        async for some in paced(request.blob_digests):
            for message in some:
                wanted[parse_digest(message, function, f"blob_digests[{parsed}]")] = None
                parsed += 1
        wanted.pop(empty_digest(function), None)
        missing = await self._store.of_instance(request.instance_name).provide(wanted) if wanted else set()
        reply = reapi.FindMissingBlobsResponse()
        async for absent in paced([digest for digest in wanted if digest in missing]):
            reply.missing_blob_digests.extend(map(digest_message, absent))
        if reply.ByteSize() > MESSAGE_LIMIT:
            raise Invalid(
                f"blob_digests: an answer with {len(missing)} absent blobs does not fit into a message of"
                f" {MESSAGE_LIMIT} bytes; ask for fewer at once, 10000 say"
            )
        return reply

    async def batch_update_blobs(
        self, request: reapi.BatchUpdateBlobsRequest, _context: Context
    ) -> reapi.BatchUpdateBlobsResponse:
        check_instance_name(request.instance_name)
        _check_batch("requests", [max(len(item.data), item.digest.size_bytes) for item in request.requests])
        if not request.requests:
            return reapi.BatchUpdateBlobsResponse()
        function = request_function(request.digest_function, (item.digest for item in request.requests))
        reply = reapi.BatchUpdateBlobsResponse()
        blobs: dict[Digest, bytes] = {}
        wanted: list[tuple[Digest, reapi.BatchUpdateBlobsResponse.Response]] = []
        async for items in paced(request.requests):
            for item in items:
                response = reply.responses.add(digest=_echo(item.digest))
                try:
                    digest, data = await _checked(item, function)
                except OutputdError as error:
                    response.status.CopyFrom(item_status(error, "BatchUpdateBlobs"))
                else:
                    blobs[digest] = data
                    wanted.append((digest, response))
        failures = await self._store.of_instance(request.instance_name).write_many(blobs)
        for digest, response in wanted:
            failure = failures.get(digest)
            if isinstance(failure, Corrupt):
                failure = Invalid(f"{digest}: the bytes that came have another {function.name}")
            if failure is not None:
                response.status.CopyFrom(item_status(failure, "BatchUpdateBlobs"))
        _fit(reply, (response.status for response in reply.responses))
        return reply

    async def batch_read_blobs(
        self, request: reapi.BatchReadBlobsRequest, _context: Context
    ) -> reapi.BatchReadBlobsResponse:
        check_instance_name(request.instance_name)
        _check_batch("digests", [max(0, digest.size_bytes) for digest in request.digests])
        if not request.digests:
            return reapi.BatchReadBlobsResponse()
        function = request_function(request.digest_function, request.digests)
        reply = reapi.BatchReadBlobsResponse()
        wanted: list[tuple[Digest, reapi.BatchReadBlobsResponse.Response]] = []
        async for messages in paced(request.digests):
            for message in messages:
                response = reply.responses.add(digest=_echo(message))
                try:
                    wanted.append((parse_digest(message, function, "digest"), response))
                except Invalid as error:
                    response.status.CopyFrom(item_status(error, "BatchReadBlobs"))
        failures = await self._store.of_instance(request.instance_name).fetch_many(
            {digest for digest, _ in wanted}
        )
        packing = reapi.Compressor.ZSTD in request.acceptable_compressors
        room = MESSAGE_LIMIT - ITEM_OVERHEAD * len(reply.responses)
        async for some in paced(wanted):
            for digest, response in some:
                failure = failures.get(digest)
                if failure is None and digest.size > room:
                    failure = Exhausted(f"{digest}: no room left in this answer; ask again, with fewer blobs")
                if failure is None:
                    try:
                        data = await self._store.read(digest)
                        if packing and digest.size >= _WORTH_PACKING:
                            packed = await in_thread(compressed, data)
                            if len(packed) < len(data):
                                data = packed
                                response.compressor = reapi.Compressor.ZSTD
                        response.data = data
                        room -= len(data)
                    except OutputdError as error:
                        failure = error
                if failure is not None:
                    response.status.CopyFrom(item_status(failure, "BatchReadBlobs"))
        _fit(reply, (response.status for response in reply.responses))
        return reply

    @gives_bytes
    async def get_tree(self, request: reapi.GetTreeRequest, _context: Context) -> AsyncIterator[bytes]:
        check_instance_name(request.instance_name)
        if request.page_size < 0:
            raise Invalid(f"page_size {request.page_size}: expected 0 or more")
        function = request_function(request.digest_function, [request.root_digest])
        root = parse_digest(request.root_digest, function, "root_digest")
        async for page in directory_pages(
            self._store.of_instance(request.instance_name), root, request.page_size, request.page_token
        ):
            yield page

    async def split_blob(self, request: reapi.SplitBlobRequest, context: Context) -> reapi.SplitBlobResponse:
        return await self._chunks.split(request, context)

    async def splice_blob(
        self, request: reapi.SpliceBlobRequest, context: Context
    ) -> reapi.SpliceBlobResponse:
        return await self._chunks.splice(request, context)


async def _checked(
    item: reapi.BatchUpdateBlobsRequest.Request, function: DigestFunction
) -> tuple[Digest, bytes]:
    """One blob to be kept. Raises Invalid, or Unsupported for a compressor that is not offered."""
    digest = parse_digest(item.digest, function, "digest")
    if item.compressor == reapi.Compressor.ZSTD:
        return digest, await in_thread(decompressed, item.data, digest.size)
    if item.compressor != reapi.Compressor.IDENTITY:
        raise Unsupported(f"compressor {item.compressor}: expected IDENTITY or ZSTD, no other is offered")
    if len(item.data) != digest.size:
        raise Invalid(f"{digest}: {len(item.data)} bytes came, expected {digest.size}")
    return digest, item.data


def _check_batch(field: str, sizes: Collection[int]) -> None:
    if len(sizes) > ITEM_LIMIT:
        raise Invalid(f"{field}: {len(sizes)} blobs; expected {ITEM_LIMIT} at most in one batch")
    if sum(sizes) > BATCH_LIMIT:
        raise Invalid(f"{field}: {sum(sizes)} bytes of blobs; max_batch_total_size_bytes is {BATCH_LIMIT}")


def _echo(digest: reapi.Digest) -> reapi.Digest:
    """What tells the client which blob is meant, unless it is nothing like a digest: ITEM_OVERHEAD has to hold."""
    if len(digest.hash) <= _HASH_LIMIT and digest.hash.isascii():
        return reapi.Digest(hash=digest.hash, size_bytes=digest.size_bytes)
    return reapi.Digest()


def _fit(
    reply: reapi.BatchUpdateBlobsResponse | reapi.BatchReadBlobsResponse,
    statuses: Iterable[status_pb2.Status],
) -> None:
    """Codes have room in every reply; texts go when there are too many of them."""
    if reply.ByteSize() > MESSAGE_LIMIT:
        for status in statuses:
            status.ClearField("message")
