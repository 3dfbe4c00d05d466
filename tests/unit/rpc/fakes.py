"""A blob store in memory that keeps the promises of `outputd.store.base`, and can be told to fail."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Collection, Mapping

from outputd.digest import Digest, DigestFunction, empty_digest
from outputd.errors import Corrupt, NotFound, OutputdError
from outputd.store.base import BlobWriter, Ranges, Usage

SHA256 = DigestFunction.SHA256


class FakeWriter:
    """A blob on its way into a FakeLocal."""

    def __init__(self, local: FakeLocal, digest: Digest) -> None:
        self._local = local
        self._digest = digest
        self._data = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        self._data += data

    def commit(self) -> None:
        self._local.put(self._digest, bytes(self._data))

    def __enter__(self) -> FakeWriter:
        return self

    def __exit__(self, *exc: object) -> None: ...


class FakeLocal:
    """The part of LocalStore that services use."""

    def __init__(self, blobs: dict[Digest, bytes]) -> None:
        self._blobs = blobs

    def has(self, digest: Digest) -> bool:
        return digest in self._blobs or digest == empty_digest(digest.function)

    def read(self, digest: Digest) -> bytes | None:
        return b"" if digest == empty_digest(digest.function) else self._blobs.get(digest)

    def open(self, digest: Digest) -> int | None:
        data = self.read(digest)
        if data is None:
            return None
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            return os.dup(file.fileno())

    def put(self, digest: Digest, data: bytes, *, local_only: bool = False) -> None:
        if Digest.of(digest.function, data) != digest:
            raise Corrupt(f"{digest}: other bytes")
        self._blobs[digest] = data

    def writer(self, digest: Digest, *, local_only: bool = False) -> BlobWriter:
        return FakeWriter(self, digest)

    def retain(self, digests: Collection[Digest]) -> set[Digest]:
        return self.missing(digests)

    def confirm_remote(self, digests: Collection[Digest]) -> None:
        raise NotImplementedError

    def adopt(self, path: str, digest: Digest) -> None:
        raise NotImplementedError

    def only_here(self, digests: Collection[Digest]) -> set[Digest]:
        return set()

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        return {digest for digest in digests if not self.has(digest)}

    def flush(self) -> None:
        raise AssertionError("not asked by services")

    def usage(self) -> Usage:
        raise NotImplementedError


class FakeStore:
    """BlobStore without a remote. `failing` raises for single digests, `broken` for every call."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.failing: dict[Digest, Exception] = {}
        self.broken: Exception | None = None
        self.unsent: set[Digest] = set()
        """Blobs that are here, but not at the remote that this store plays to have."""
        self.asked: list[set[Digest]] = []
        self.writing = asyncio.Event()
        """Set when a write has taken its first piece."""
        self._local = FakeLocal(self.blobs)

    def add(self, data: bytes, function: DigestFunction = SHA256) -> Digest:
        digest = Digest.of(function, data)
        self.blobs[digest] = data
        return digest

    @property
    def local(self) -> FakeLocal:
        return self._local

    def of_instance(self, name: str) -> FakeStore:
        return self

    async def fetch(self, digest: Digest) -> None:
        if self.broken is not None:
            raise self.broken
        if digest in self.failing:
            raise self.failing[digest]
        if not self._local.has(digest):
            raise NotFound(f"{digest}: nowhere")

    async def fetch_many(self, digests: Collection[Digest]) -> dict[Digest, Exception]:
        failures: dict[Digest, Exception] = {}
        for digest in digests:
            try:
                await self.fetch(digest)
            except Exception as error:
                failures[digest] = error
        return failures

    async def read(self, digest: Digest) -> bytes:
        await self.fetch(digest)
        data = self._local.read(digest)
        assert data is not None
        return data

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        if self.broken is not None:
            raise self.broken
        self.asked.append(set(digests))
        return self._local.missing(digests)

    def ranges(self, digest: Digest) -> Ranges | None:
        return None

    async def missing_remotely(self, digests: Collection[Digest]) -> set[Digest]:
        raise AssertionError("not asked by rpc")

    async def provide(self, digests: Collection[Digest]) -> set[Digest]:
        return await self.find_missing(digests) | (self.unsent & set(digests))

    async def write(self, digest: Digest, data: AsyncIterator[bytes]) -> None:
        if digest in self.failing:
            raise self.failing[digest]
        if digest in self.unsent:
            self.unsent.remove(digest)
            return
        received = bytearray()
        async for piece in data:
            received += piece
            self.writing.set()
        if Digest.of(digest.function, received) != digest:
            raise Corrupt(f"{digest}: other bytes")
        self.blobs[digest] = bytes(received)

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, OutputdError]:
        if self.broken is not None:
            raise self.broken
        failures: dict[Digest, OutputdError] = {}
        for digest, data in blobs.items():
            failure = self.failing.get(digest)
            if isinstance(failure, OutputdError):
                failures[digest] = failure
            elif failure is not None:
                raise failure
            elif Digest.of(digest.function, data) != digest:
                failures[digest] = Corrupt(f"{digest}: other bytes")
            else:
                self.blobs[digest] = data
        return failures
