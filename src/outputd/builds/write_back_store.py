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
        except (Unreachable, TimedOut) as error:
            if not self._queue.takes(self._name):
                raise
            return set(await self._queued(digests, error))

    async def write(self, digest: Digest, data: AsyncIterator[bytes]) -> None:
        """As BlobStore; while the remote does not answer, it is enough that the blob is here and queued."""
        try:
            await self._own.write(digest, data)
        except (Unreachable, TimedOut) as error:
            if not self._queue.takes(self._name):
                raise
            if failure := (await self._queued([digest], error)).get(digest):
                raise failure from error

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, OutputdError]:
        """As `write` for many."""
        try:
            failures = await self._own.write_many(blobs)
        except (Unreachable, TimedOut) as error:
            if not self._queue.takes(self._name):
                raise
            return await self._queued(blobs, error)
        if self._queue.takes(self._name):
            unanswered = {
                digest: error
                for digest, error in failures.items()
                if isinstance(error, (Unreachable, TimedOut))
            }
            if unanswered:
                for digest in unanswered:
                    del failures[digest]
                failures |= await self._queued(unanswered, next(iter(unanswered.values())))
        return failures

    async def _queued(self, digests: Collection[Digest], error: OutputdError) -> dict[Digest, OutputdError]:
        """Queue what the remote did not take because of an error. Of those that cannot be queued: what the client is told, which is
        what it would be without a queue."""
        absent = await in_thread(self.local.retain, digests)
        full = await self._queue.keep_blobs(
            self._name, [digest for digest in digests if digest.size and digest not in absent]
        )
        failures = dict.fromkeys(absent, error)
        if full:
            failures |= dict.fromkeys(full, type(error)(f"{error}; {self._queue.limit(self._name)}"))
        return failures
