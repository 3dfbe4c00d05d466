"""A REv2 CAS as RemoteBlobs: batches, streams, retries, verification; keeps nothing but what the server says of itself.

Blobs travel uncompressed. The empty blob is never asked for nor sent: it is everywhere (REv2, ContentAddressableStorage).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import aclosing
from typing import Final

from google.protobuf.message import DecodeError

from outputd._proto import bytestream_pb2 as bytestream
from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction
from outputd.errors import Corrupt, Invalid, NotFound, OutputdError, Unsupported
from outputd.store.base import RemoteAbilities
from outputd.store.remote.connection import Connection
from outputd.store.remote.endpoint import RemoteOptions, parse_endpoint
from outputd.store.remote.failure import of_status
from outputd.store.remote.resource_name import blob_name, upload_name
from outputd.store.remote.retry import Failure, Tries
from outputd.store.waiting import in_parallel, in_thread

_REV2: Final = "/build.bazel.remote.execution.v2."
_FIND_MISSING: Final = _REV2 + "ContentAddressableStorage/FindMissingBlobs"
_BATCH_READ: Final = _REV2 + "ContentAddressableStorage/BatchReadBlobs"
_BATCH_UPDATE: Final = _REV2 + "ContentAddressableStorage/BatchUpdateBlobs"
_GET_CAPABILITIES: Final = _REV2 + "Capabilities/GetCapabilities"
_READ: Final = "/google.bytestream.ByteStream/Read"
_WRITE: Final = "/google.bytestream.ByteStream/Write"

# 10 000 digests of 75 bytes stay well below the 4 MiB that any gRPC server takes.
_DIGESTS_A_CALL: Final = 10_000
# Digests put into or taken out of a message before the loop gets its turn: about 0.5 ms.
_DIGESTS_A_TURN: Final = 500
# What a blob adds to a batch beside its bytes: hash, size, status, lengths.
_BLOB_OVERHEAD: Final = 150
# Hashing less than this is over before a thread has started.
_HASH_HERE: Final = 64 << 10


class RemoteStore:
    """One instance of one server. For one event loop."""

    def __init__(self, url: str, instance_name: str = "", options: RemoteOptions | None = None) -> None:
        """Connects at the first call. Raises Invalid for a URL, header or certificate that cannot be used."""
        self._options = options or RemoteOptions()
        self._connection = Connection(parse_endpoint(url), self._options)
        self._instance_name = instance_name
        self._asking = asyncio.Lock()
        self._abilities: RemoteAbilities | None = None
        self._abilities_of = 0
        """The connection's losses when the abilities were told; they are asked for anew after another."""

    @property
    def url(self) -> str:
        return self._connection.endpoint.url

    async def close(self) -> None:
        await self._connection.close()

    async def abilities(self) -> RemoteAbilities:
        async with self._asking:
            if self._abilities is None or self._abilities_of != self._connection.losses:
                self._abilities = await self._ask_abilities()
                self._abilities_of = self._connection.losses
            return self._abilities

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        batches = [
            (function, some[start : start + _DIGESTS_A_CALL])
            for function, some in _by_function(digests).items()
            for start in range(0, len(some), _DIGESTS_A_CALL)
        ]
        if not batches:
            return set()
        return set().union(*await in_parallel([self._find_missing(*batch) for batch in batches]))

    async def read_batch(self, digests: Collection[Digest]) -> Mapping[Digest, bytes | OutputdError]:
        abilities = await self.abilities()
        results: dict[Digest, bytes | OutputdError] = {digest: b"" for digest in digests}
        jobs = []
        for function, some in _by_function(digests).items():
            self._require(function, abilities)
            for batch in _batches(some, abilities.max_batch_bytes):
                jobs.append(self._read_batch(function, batch))
        if jobs:
            for found in await in_parallel(jobs):
                results.update(found)
        return results

    async def read_stream(self, digest: Digest, offset: int = 0) -> AsyncIterator[bytes]:
        name = blob_name(self._instance_name, digest)
        doing = f"read blob {digest}"
        tries = Tries(self._options.retry_seconds)
        size = digest.size
        while offset < size:
            request = bytestream.ReadRequest(resource_name=name, read_offset=offset).SerializeToString()
            failure: Failure | None = None
            async with aclosing(self._connection.receive(_READ, request, name, doing)) as replies:
                async for reply in replies:
                    if isinstance(reply, Failure):
                        failure = reply
                        break
                    piece = _parse(bytestream.ReadResponse, reply, doing).data
                    if not piece:
                        continue
                    offset += len(piece)
                    if offset > size:
                        raise Corrupt(f"blob {digest} from {self.url}: more than {size} bytes came")
                    tries.progress()
                    yield piece
            if offset < size:
                await tries.again(failure or self._truncated(digest, offset))

    async def write(self, digest: Digest, data: Callable[[], AsyncIterator[bytes]]) -> None:
        if digest.size == 0:
            return
        self._require(digest.function, await self.abilities())
        doing = f"write blob {digest}"
        tries = Tries(self._options.retry_seconds)
        while True:
            name = upload_name(self._instance_name, digest)
            async with aclosing(data()) as pieces, aclosing(_write_requests(name, pieces)) as requests:
                reply = await self._connection.send(_WRITE, requests, name, doing)
            if not isinstance(reply, Failure):
                committed = _parse(bytestream.WriteResponse, reply, doing).committed_size
                # -1 is how servers say that they had the blob already.
                if committed in (digest.size, -1):
                    return
                error = Corrupt(f"cannot {doing} at {self.url}: the server kept {committed} bytes of {digest.size}")
                reply = Failure(error, transient=True)
            await tries.again(reply)

    async def write_batch(self, blobs: Mapping[Digest, bytes]) -> None:
        abilities = await self.abilities()
        jobs = []
        for function, some in _by_function(blobs).items():
            self._require(function, abilities)
            for batch in _batches(some, abilities.max_batch_bytes):
                jobs.append(self._write_batch(function, {digest: blobs[digest] for digest in batch}))
        if jobs:
            await in_parallel(jobs)

    async def _call(self, method: str, request: bytes, doing: str) -> bytes:
        """One request, one reply, tried again while that makes sense."""
        tries = Tries(self._options.retry_seconds)
        while isinstance(reply := await self._connection.call(method, request, doing), Failure):
            await tries.again(reply)
        return reply

    async def _ask_abilities(self) -> RemoteAbilities:
        doing = "get capabilities"
        ours = self._options.max_batch_bytes
        request = reapi.GetCapabilitiesRequest(instance_name=self._instance_name)
        try:
            reply = await self._call(_GET_CAPABILITIES, request.SerializeToString(), doing)
        except Unsupported:
            # A plain CAS that does not describe itself; whatever it cannot do, the calls will tell.
            return RemoteAbilities(frozenset(), ours, frozenset(), "")
        told = _parse(reapi.ServerCapabilities, reply, doing)
        cache = told.cache_capabilities
        low = told.low_api_version if told.low_api_version.major else told.deprecated_api_version
        high = told.high_api_version
        if high.major and not low.major <= 2 <= high.major:
            raise Unsupported(f"{self.url} speaks REv{low.major} to REv{high.major}; outputd speaks REv2")
        known = frozenset(DigestFunction)
        return RemoteAbilities(
            digest_functions=frozenset(
                DigestFunction(number) for number in cache.digest_functions if number in known
            ),
            max_batch_bytes=min(cache.max_batch_total_size_bytes, ours)
            if cache.max_batch_total_size_bytes > 0
            else ours,
            compressors=frozenset(
                reapi.Compressor.Value.Name(number).lower()
                for number in cache.supported_compressors
                if number in reapi.Compressor.Value.values()
            ),
            api_version=f"{low.major}.{low.minor}-{high.major}.{high.minor}",
        )

    def _require(self, function: DigestFunction, abilities: RemoteAbilities) -> None:
        if abilities.digest_functions and function not in abilities.digest_functions:
            offered = ", ".join(sorted(offer.name for offer in abilities.digest_functions))
            raise Unsupported(f"{self.url} does not offer digest function {function.name}, only {offered}")

    async def _find_missing(self, function: DigestFunction, digests: list[Digest]) -> set[Digest]:
        doing = f"find missing blobs of {len(digests)}"
        request = reapi.FindMissingBlobsRequest(instance_name=self._instance_name, digest_function=function.value)
        add = request.blob_digests.add
        for start in range(0, len(digests), _DIGESTS_A_TURN):
            for digest in digests[start : start + _DIGESTS_A_TURN]:
                add(hash=digest.hash_hex, size_bytes=digest.size)
            await asyncio.sleep(0)
        reply = await self._call(_FIND_MISSING, request.SerializeToString(), doing)
        told = _parse(reapi.FindMissingBlobsResponse, reply, doing).missing_blob_digests
        missing = set()
        for start in range(0, len(told), _DIGESTS_A_TURN):
            for message in told[start : start + _DIGESTS_A_TURN]:
                missing.add(self._digest(function, message, doing))
            await asyncio.sleep(0)
        return missing.intersection(digests)

    async def _read_batch(
        self, function: DigestFunction, digests: list[Digest]
    ) -> dict[Digest, bytes | OutputdError]:
        """The blobs of one call, or of as many as it takes until each has its bytes or its error."""
        if len(digests) == 1:
            return {digests[0]: await self._read_alone(digests[0])}
        doing = f"read {len(digests)} blobs"
        tries = Tries(self._options.retry_seconds)
        results: dict[Digest, bytes | OutputdError] = {}
        waiting = dict.fromkeys(digests)
        while waiting:
            request = reapi.BatchReadBlobsRequest(
                instance_name=self._instance_name,
                digests=_messages(waiting),
                digest_function=function.value,
            )
            reply = await self._connection.call(_BATCH_READ, request.SerializeToString(), doing)
            if isinstance(reply, Failure):
                failure = reply
                if isinstance(failure.error, (Unsupported, Invalid)):
                    # No batches here, or a limit that it does not tell: each blob by itself may still work.
                    for digest in waiting:
                        results[digest] = await self._read_alone(digest)
                    return results
            else:
                failure = Failure(Corrupt(f"cannot {doing} at {self.url}: some were not answered"), transient=True)
                for answer in _parse(reapi.BatchReadBlobsResponse, reply, doing).responses:
                    digest = self._digest(function, answer.digest, doing)
                    if digest not in waiting:
                        continue
        return results

    async def _read_alone(self, digest: Digest) -> bytes | OutputdError:
        return b""

    async def _write_batch(self, function: DigestFunction, blobs: dict[Digest, bytes]) -> None:
        pass
