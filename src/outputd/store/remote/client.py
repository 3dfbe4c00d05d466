"""A REv2 CAS as RemoteBlobs: batches, retries, verification; keeps nothing but what the server says of itself.

Blobs travel as Zstandard where the server offers it and that gains something (packing.py), else as they are; one that fails
packed is tried as it is. The empty blob is never asked for nor sent: it is everywhere (REv2, ContentAddressableStorage).
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Final

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction
from outputd.errors import Corrupt, Invalid, OutputdError, Throttled, Unsupported
from outputd.store.base import Piece, RemoteAbilities
from outputd.store.batches import batches, by_function
from outputd.store.remote import packing
from outputd.store.remote.capabilities import told, untold
from outputd.store.remote.connection import Connection
from outputd.store.remote.contact import Contact
from outputd.store.remote.credentials import Credentials
from outputd.store.remote.endpoint import RemoteOptions, parse_endpoint
from outputd.store.remote.failure import of_status
from outputd.store.remote.line import Line
from outputd.store.remote.relay import Relay
from outputd.store.remote.replies import parse
from outputd.store.remote.retry import Failure, Tries
from outputd.store.remote.splitting import split
from outputd.store.remote.streams import Streams
from outputd.store.waiting import in_parallel, in_thread
from outputd.store.zstd import decompressed

_REV2: Final = "/build.bazel.remote.execution.v2."
_FIND_MISSING: Final = _REV2 + "ContentAddressableStorage/FindMissingBlobs"
_BATCH_READ: Final = _REV2 + "ContentAddressableStorage/BatchReadBlobs"
_BATCH_UPDATE: Final = _REV2 + "ContentAddressableStorage/BatchUpdateBlobs"
_GET_CAPABILITIES: Final = _REV2 + "Capabilities/GetCapabilities"

# 10 000 digests of 75 bytes stay well below the 4 MiB that any gRPC server takes.
_DIGESTS_A_CALL: Final = 10_000
# Digests put into or taken out of a message before the loop gets its turn: about 0.7 ms.
_DIGESTS_A_TURN: Final = 250
# Hashing less than this is over before a thread has started.
_HASH_HERE: Final = 64 << 10
_ZSTD: Final = reapi.Compressor.ZSTD


class RemoteStore:
    """One instance of one server. For one event loop."""

    def __init__(self, url: str, instance_name: str = "", options: RemoteOptions | None = None) -> None:
        """Connects at the first call. Raises Invalid for a URL, header or certificate that cannot be used."""
        self._options = options or RemoteOptions()
        self._connection = Connection(parse_endpoint(url), self._options)
        self._instance_name = instance_name
        self._streams = Streams(self._connection, instance_name, self._options.retry_seconds)
        self._asking = asyncio.Lock()
        self._turn = asyncio.Lock()
        self._abilities: RemoteAbilities | None = None
        self._abilities_of = 0
        """The connection's losses when the abilities were told; they are asked for anew after another."""
        self._attempts = 0
        """How often they were asked for."""
        self._refusal: OutputdError | None = None
        """What came of it the last time, if not the abilities."""

    def of_instance(self, name: str) -> RemoteStore:
        other = copy.copy(self)  # the connection is shared, what was learnt of the instance is not
        other._instance_name = name
        other._streams = Streams(self._connection, name, self._options.retry_seconds)
        other._asking = asyncio.Lock()
        other._abilities = None
        return other

    @property
    def url(self) -> str:
        return self._connection.endpoint.url

    @property
    def contact(self) -> Contact:
        """Whether the server serves us."""
        return self._connection.contact

    @property
    def line(self) -> Line:
        """How many calls it gets, and how many wait."""
        return self._connection.line

    def relay(self) -> Relay:
        """For calls of clients that are passed on to the same server. To be closed on its own."""
        return Relay(self._connection, self._instance_name)

    @property
    def credentials(self) -> Credentials:
        """What proves to the server who we are."""
        return self._connection.credentials

    async def watch(self) -> None:
        """Let the server be given up while it does not answer (contact.py), and probe it then; renew credentials before they end.
        Until cancelled."""
        request = reapi.GetCapabilitiesRequest(instance_name=self._instance_name)
        await self._connection.watch(_GET_CAPABILITIES, request.SerializeToString())

    async def close(self) -> None:
        await self._connection.close()

    async def abilities(self) -> RemoteAbilities:
        attempts = self._attempts
        async with self._asking:
            if self._abilities is not None and self._abilities_of == self._connection.losses:
                return self._abilities
            if self._attempts != attempts and self._refusal is not None:
                # Somebody asked while we waited for our turn, as long as it makes sense, and in vain.
                raise self._refusal
            try:
                self._abilities = await self._ask_abilities()
                self._refusal = None
            except OutputdError as error:
                self._refusal = error
                raise
            finally:
                self._attempts += 1
            self._abilities_of = self._connection.losses
            return self._abilities

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        wanted = list(digests)
        missing: set[Digest] = set()
        await in_parallel(
            [
                self._find_missing(wanted[start : start + _DIGESTS_A_CALL], missing)
                for start in range(0, len(wanted), _DIGESTS_A_CALL)
            ]
        )
        return missing

    async def read_batch(
        self, digests: Collection[Digest], *, part_of: Digest | None = None
    ) -> Mapping[Digest, bytes | OutputdError]:
        wanted = by_function(digests)
        jobs = []
        for function, some in wanted.items():
            abilities = await self._offering(function)
            packed = (
                self._packs(abilities.compressors) and max(digest.size for digest in some) >= packing.FROM
            )
            for batch in batches(some, limit := abilities.max_batch_bytes):
                # A blob over the limit is the only one of its batch.
                small = batch[0].size <= limit
                jobs.append(
                    self._read_batch(function, batch, packed=packed) if small else self._read_each(batch)
                )
        results: dict[Digest, bytes | OutputdError] = {digest: b"" for digest in digests if digest.size == 0}
        for found in await in_parallel(jobs):
            results.update(found)
        return results

    async def read_stream(self, digest: Digest, offset: int = 0, limit: int = 0) -> AsyncGenerator[Piece]:
        if offset >= digest.size:
            return
        abilities = await self._offering(digest.function)
        packed = self._packs(abilities.compressors)
        async with aclosing(self._streams.read(digest, offset, limit, packed=packed)) as pieces:
            async for piece in pieces:
                yield piece

    async def split(self, digest: Digest) -> Sequence[Digest] | None:
        abilities = await self._offering(digest.function)
        if not abilities.splits:
            return None
        try:
            return await split(self._call, self._instance_name, digest, self.url)
        except Unsupported:
            self._abilities = replace(abilities, splits=False)
            raise

    async def write(self, digest: Digest, data: Callable[[], AsyncGenerator[bytes]]) -> None:
        if digest.size == 0:
            return
        abilities = await self._offering(digest.function)
        await self._streams.write(digest, data, packed=self._packs(abilities.compressors))

    async def write_batch(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, OutputdError]:
        wanted = by_function(blobs)
        jobs = []
        for function, some in wanted.items():
            abilities = await self._offering(function)
            packed = self._packs(abilities.batch_compressors)
            for batch in batches(some, limit := abilities.max_batch_bytes):
                part = {digest: blobs[digest] for digest in batch}
                small = batch[0].size <= limit
                jobs.append(
                    self._write_batch(function, part, packed=packed) if small else self._write_each(part)
                )
        failures: dict[Digest, OutputdError] = {}
        for failed in await in_parallel(jobs):
            failures.update(failed)
        return failures

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
            return untold(ours)
        return told(parse(reapi.ServerCapabilities, reply, doing), ours, self.url)

    async def _offering(self, *functions: DigestFunction) -> RemoteAbilities:
        """What the server can do. Raises Unsupported unless these functions are among it."""
        abilities = await self.abilities()
        for function in functions:
            if abilities.digest_functions and function not in abilities.digest_functions:
                offered = ", ".join(sorted(offer.name for offer in abilities.digest_functions))
                raise Unsupported(
                    f"{self.url} does not offer digest function {function.name}, only {offered}"
                )
        return abilities

    def _packs(self, offered: Collection[str]) -> bool:
        """Whether Zstandard is to be used where the server offers these compressors."""
        wanted = self._options.compression
        if wanted == "auto" and self._connection.endpoint.near:
            return False
        return wanted != "off" and packing.ZSTD in offered

    async def _find_missing(self, digests: list[Digest], missing: set[Digest]) -> None:
        """Add those of `digests` that the server lacks to `missing`: a call for each of their functions."""
        requests: dict[DigestFunction, reapi.FindMissingBlobsRequest] = {}
        # One request at a time is made, or a reply read, by all calls together: when each had its turn in one round of the
        # loop, the rounds would be as long as there are calls.
        async with self._turn:
            for start in range(0, len(digests), _DIGESTS_A_TURN):
                for function, some in by_function(digests[start : start + _DIGESTS_A_TURN]).items():
                    if function not in requests:
                        requests[function] = reapi.FindMissingBlobsRequest(
                            instance_name=self._instance_name,
                            digest_function=reapi.DigestFunction.Value.Value(function.name),
                        )
                    add = requests[function].blob_digests.add
                    for digest in some:
                        add(hash=digest.hash_hex, size_bytes=digest.size)
                await asyncio.sleep(0)
        if not requests:
            return
        await self._offering(*requests)
        asked = set(digests)
        for function, request in requests.items():
            doing = f"find missing blobs of {len(request.blob_digests)}"
            reply = await self._call(_FIND_MISSING, request.SerializeToString(), doing)
            async with self._turn:
                named = parse(reapi.FindMissingBlobsResponse, reply, doing).missing_blob_digests
                for start in range(0, len(named), _DIGESTS_A_TURN):
                    await asyncio.sleep(0)
                    found = {
                        self._digest(function, message, doing)
                        for message in named[start : start + _DIGESTS_A_TURN]
                    }
                    missing |= found & asked

    async def _read_batch(
        self, function: DigestFunction, digests: list[Digest], *, packed: bool
    ) -> dict[Digest, bytes | OutputdError]:
        """The blobs of one call, which is made again for those that failed for a moment."""
        doing = _doing("read", digests)
        tries = Tries(self._options.retry_seconds)
        results: dict[Digest, bytes | OutputdError] = {}
        waiting = digests
        while True:
            request = reapi.BatchReadBlobsRequest(
                instance_name=self._instance_name,
                digests=[reapi.Digest(hash=digest.hash_hex, size_bytes=digest.size) for digest in waiting],
                digest_function=reapi.DigestFunction.Value.Value(function.name),
                acceptable_compressors=[_ZSTD] if packed else [],
            )
            began = time.monotonic()
            reply = await self._connection.call(_BATCH_READ, request.SerializeToString(), doing)
            if isinstance(reply, Failure):
                if isinstance(reply.error, (Unsupported, Invalid)):
                    # No batches here, or a limit we were not told: each blob by itself may still work.
                    return results | await self._read_each(waiting)
                answers: Mapping[Digest, bytes | Failure] = dict.fromkeys(waiting, reply)
            elif packed:
                answers = await in_thread(self._answers, function, reply, waiting, doing)
            else:
                answers = self._answers(function, reply, (), doing)
            again = None
            refused_packed = False
            for digest in waiting:
                answer = answers.get(digest)
                if answer is None:
                    answer = self._unanswered("read", digest)
                if isinstance(answer, bytes):
                    results[digest] = answer
                elif packed and isinstance(answer.error, (Unsupported, Invalid)):
                    refused_packed = True
                elif answer.transient:
                    again = answer
                else:
                    results[digest] = answer.error
                if isinstance(answer, Failure) and isinstance(answer.error, Throttled):
                    self.line.pushed_back(began)
            waiting = [digest for digest in waiting if digest not in results]
            if refused_packed:
                packed = False
                continue
            if again is None:
                break
            try:
                await tries.again(again)
            except OutputdError as error:
                results.update(dict.fromkeys(waiting, error))
                break
        return await self._verified(results)

    def _answers(
        self, function: DigestFunction, reply: bytes, packed: Collection[Digest], doing: str
    ) -> dict[Digest, bytes | Failure]:
        """What a batch reply says of each blob; those of `packed` may have come as Zstandard. For any thread."""
        answers: dict[Digest, bytes | Failure] = {}
        for answer in parse(reapi.BatchReadBlobsResponse, reply, doing).responses:
            digest = self._digest(function, answer.digest, doing)
            if answer.status.code:
                answers[digest] = of_status(answer.status, f"read blob {digest} at {self.url}")
            elif answer.compressor == _ZSTD and digest in packed:
                try:
                    answers[digest] = decompressed(answer.data, digest.size)
                except Invalid as error:
                    answers[digest] = Failure(
                        Invalid(f"blob {digest} from {self.url}: {error}"), transient=False
                    )
            elif answer.compressor:
                corrupt = Corrupt(
                    f"blob {digest} from {self.url}: it came compressed, which was not asked for"
                )
                answers[digest] = Failure(corrupt, transient=False)
            else:
                answers[digest] = answer.data
        return answers

    async def _verified(
        self, results: dict[Digest, bytes | OutputdError]
    ) -> dict[Digest, bytes | OutputdError]:
        """The same with Corrupt in place of bytes that have another digest."""

        def verify() -> dict[Digest, bytes | OutputdError]:
            return {
                digest: Corrupt(f"blob {digest} from {self.url}: the bytes have the digest {found}")
                if isinstance(data, bytes) and (found := Digest.of(digest.function, data)) != digest
                else data
                for digest, data in results.items()
            }

        size = sum(len(data) for data in results.values() if isinstance(data, bytes))
        return verify() if size <= _HASH_HERE else await in_thread(verify)

    async def _read_each(self, digests: list[Digest]) -> dict[Digest, bytes | OutputdError]:
        """Each blob through a stream of its own, one after the other."""
        results: dict[Digest, bytes | OutputdError] = {}
        for digest in digests:
            try:
                async with aclosing(self.read_stream(digest)) as pieces:
                    results[digest] = b"".join([piece async for piece in pieces])
            except OutputdError as error:
                results[digest] = error
        return await self._verified(results)

    async def _write_batch(
        self, function: DigestFunction, blobs: dict[Digest, bytes], *, packed: bool
    ) -> dict[Digest, OutputdError]:
        """The blobs of one call, which is made again for those that failed for a moment. The failures."""
        doing = _doing("write", blobs)
        smaller = await packing.packed_blobs(blobs) if packed else {}
        tries = Tries(self._options.retry_seconds)
        failures: dict[Digest, OutputdError] = {}
        waiting = blobs
        while True:
            request = reapi.BatchUpdateBlobsRequest(
                instance_name=self._instance_name,
                digest_function=reapi.DigestFunction.Value.Value(function.name),
            )
            for digest, data in waiting.items():
                request.requests.add(
                    digest=reapi.Digest(hash=digest.hash_hex, size_bytes=digest.size),
                    data=smaller.get(digest, data),
                    compressor=_ZSTD if digest in smaller else reapi.Compressor.IDENTITY,
                )
            began = time.monotonic()
            reply = await self._connection.call(_BATCH_UPDATE, request.SerializeToString(), doing)
            if isinstance(reply, Failure):
                if isinstance(reply.error, (Unsupported, Invalid)):
                    return failures | await self._write_each(waiting)
                answers = dict.fromkeys(waiting, reply)
            else:
                answers = self._refusals(function, reply, waiting, doing)
            again: Failure | None = None
            refused_packed = False
            for digest, answer in answers.items():
                if digest in smaller and isinstance(answer.error, (Unsupported, Invalid)):
                    refused_packed = True
                elif answer.transient:
                    again = answer
                else:
                    failures[digest] = answer.error
                if isinstance(answer.error, Throttled):
                    self.line.pushed_back(began)
            waiting = {digest: blobs[digest] for digest in answers if digest not in failures}
            if refused_packed:
                smaller = {}
                continue
            if again is None:
                return failures
            try:
                await tries.again(again)
            except OutputdError as error:
                return failures | dict.fromkeys(waiting, error)

    def _refusals(
        self, function: DigestFunction, reply: bytes, waiting: Collection[Digest], doing: str
    ) -> dict[Digest, Failure]:
        """Those of `waiting` that a batch reply does not say were taken."""
        statuses = {
            self._digest(function, answer.digest, doing): answer.status
            for answer in parse(reapi.BatchUpdateBlobsResponse, reply, doing).responses
        }
        return {
            digest: of_status(statuses[digest], f"write blob {digest} at {self.url}")
            if digest in statuses
            else self._unanswered("write", digest)
            for digest in waiting
            if digest not in statuses or statuses[digest].code
        }

    async def _write_each(self, blobs: dict[Digest, bytes]) -> dict[Digest, OutputdError]:
        failures: dict[Digest, OutputdError] = {}
        for digest, data in blobs.items():
            try:
                await self.write(digest, partial(_whole, data))
            except OutputdError as error:
                failures[digest] = error
        return failures

    def _digest(self, function: DigestFunction, message: reapi.Digest, doing: str) -> Digest:
        try:
            return Digest.parse(function, message.hash, message.size_bytes)
        except Invalid as error:
            raise Corrupt(f"cannot {doing} at {self.url}: the reply holds a malformed {error}") from error

    def _unanswered(self, verb: str, digest: Digest) -> Failure:
        return Failure(
            Corrupt(f"cannot {verb} blob {digest} at {self.url}: the reply leaves it out"), transient=True
        )


def _doing(verb: str, digests: Collection[Digest]) -> str:
    first = next(iter(digests))
    return (
        f"{verb} blob {first}" if len(digests) == 1 else f"{verb} {len(digests)} blobs, {first} among them,"
    )


async def _whole(data: bytes) -> AsyncGenerator[bytes]:
    yield data
