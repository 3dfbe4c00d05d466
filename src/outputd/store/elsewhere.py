"""A blob that its own instance of the remote has lost is looked for in the others that this daemon uses. Keeps nothing itself.

A digest says what the bytes are, so it does not matter where they come from: they are verified on their way into the local store.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping

from outputd.digest import Digest
from outputd.errors import NotFound, OutputdError
from outputd.store.base import BlobStore, LocalStore, Ranges

_log = logging.getLogger(__name__)


class Elsewhere:
    """A BlobStore in front of another one, for whoever reads. For one instance name; `of_instance` gives it for another."""

    def __init__(
        self, store: BlobStore, instance_names: Callable[[], Collection[str]], name: str = ""
    ) -> None:
        """`instance_names` tells which ones are in use."""
        self._store = store
        self._own = store.of_instance(name)
        self._instance_names = instance_names
        self._name = name

    @property
    def local(self) -> LocalStore:
        return self._own.local

    def of_instance(self, name: str) -> Elsewhere:
        return self if name == self._name else Elsewhere(self._store, self._instance_names, name)

    async def fetch(self, digest: Digest) -> None:
        try:
            await self._own.fetch(digest)
        except NotFound as error:
            if not await self._found_elsewhere(digest):
                raise
            _log.warning("%s; it was found in another one", error)

    def ranges(self, digest: Digest) -> Ranges | None:
        return self._own.ranges(digest)

    async def fetch_many(self, digests: Collection[Digest]) -> dict[Digest, Exception]:
        failures = await self._own.fetch_many(digests)
        for digest, error in list(failures.items()):
            if isinstance(error, NotFound) and await self._found_elsewhere(digest):
                del failures[digest]
        return failures

    async def read(self, digest: Digest) -> bytes:
        await self.fetch(digest)
        return await self._own.read(digest)

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        return await self._own.find_missing(digests)

    async def missing_remotely(self, digests: Collection[Digest]) -> set[Digest]:
        return await self._own.missing_remotely(digests)

    async def write(self, digest: Digest, data: AsyncIterator[bytes]) -> None:
        await self._own.write(digest, data)

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, OutputdError]:
        return await self._own.write_many(blobs)

    async def _found_elsewhere(self, digest: Digest) -> bool:
        for name in sorted(set(self._instance_names()) - {self._name}):
            try:
                await self._store.of_instance(name).fetch(digest)
            except OutputdError as error:
                # What counts is that its own instance has lost it; that is what the reader is told.
                _log.debug("blob %s: not in instance %r either: %s", digest, name, error)
            else:
                return True
        return False
