"""A store that takes uploads while its remote does not answer, as far as the write-back queue takes them. Keeps nothing itself.

Only what is queued is called present: a client that is told so does not upload it, so nobody else would bring it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping

from outputd.builds.write_back import WriteBack
from outputd.digest import Digest
from outputd.errors import OutputdError, TimedOut, Unreachable
from outputd.store.base import LocalStore, Ranges, ServedBlobs
from outputd.store.waiting import in_thread


class WriteBackStore:
    """A ServedBlobs in front of another one, for clients. For one instance name; `of_instance` gives it for another."""

    def __init__(self, store: ServedBlobs, queue: WriteBack, name: str = "") -> None:
        self._store = store
        self._own = store.of_instance(name)
        self._queue = queue
        self._name = name

    @property
    def local(self) -> LocalStore:
        return self._own.local

    def of_instance(self, name: str) -> WriteBackStore:
        return self if name == self._name else WriteBackStore(self._store, self._queue, name)

    async def fetch(self, digest: Digest) -> None:
        await self._own.fetch(digest)

    def ranges(self, digest: Digest) -> Ranges | None:
        return self._own.ranges(digest)

    async def fetch_many(self, digests: Collection[Digest]) -> dict[Digest, Exception]:
        return await self._own.fetch_many(digests)

    async def read(self, digest: Digest) -> bytes:
        return await self._own.read(digest)

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        return await self._own.find_missing(digests)

    async def missing_remotely(self, digests: Collection[Digest]) -> set[Digest]:
        return await self._own.missing_remotely(digests)

    async def provide(self, digests: Collection[Digest]) -> set[Digest]:
        """As ServedBlobs; while the remote does not answer: those that are not here, or that the queue has no room for."""
        try:
            return await self._own.provide(digests)
        except (Unreachable, TimedOut):
            if not self._queue.takes(self._name):
                raise
            return await self._left(digests)

    async def write(self, digest: Digest, data: AsyncIterator[bytes]) -> None:
        """As BlobStore; while the remote does not answer, it is enough that the blob is here and queued."""
        try:
            await self._own.write(digest, data)
        except (Unreachable, TimedOut) as error:
            if not self._queue.takes(self._name):
                raise
            if await self._left([digest]):
                raise self._full(error) from error

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, OutputdError]:
        """As `write` for many."""
        failures = await self._own.write_many(blobs)
        unanswered = [
            digest for digest, error in failures.items() if isinstance(error, (Unreachable, TimedOut))
        ]
        if unanswered and self._queue.takes(self._name):
            left = await self._left(unanswered)
            for digest in unanswered:
                error = failures.pop(digest)
                if digest in left:
                    failures[digest] = self._full(error)
        return failures

    async def _left(self, digests: Collection[Digest]) -> set[Digest]:
        """Queue these; those that are not here, or for which there is no room."""
        absent = await in_thread(self.local.retain, digests)
        return absent | await self._queue.keep_blobs(
            self._name, [digest for digest in digests if digest.size and digest not in absent]
        )

    def _full(self, error: OutputdError) -> OutputdError:
        """What the client is told: what it would be without the queue, and that there is one."""
        return type(error)(f"{error}; {self._queue.limit(self._name)}")
