"""What the remote has lost and we hold goes back to it, in the background. Never uploads what was made here and never was there.

Nobody waits for an upload: until it has happened the blob is read from the local store. What does not fit into the queue, or fails,
is found again the next time that somebody asks for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Final

from outputd.digest import Digest
from outputd.errors import Denied, Exhausted, Invalid, NotFound, OutputdError, Precondition, Unsupported
from outputd.store.base import BlobStore

_log = logging.getLogger(__name__)

_QUEUE: Final = 10_000
_AT_ONCE: Final = 4
"""Uploads under way: builds come first."""
_REFUSALS: Final = (Denied, Unsupported, Invalid, Precondition)
"""Errors after which no other blob need be tried with that instance."""


class Healing:
    """A queue of blobs and those who work it off. Lives on the event loop."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._queue: dict[tuple[str, Digest], None] = {}
        self._wake = asyncio.Event()
        self._refused: set[str] = set()
        """Instance names that take no uploads of ours, until the daemon is started anew."""
        self.healed = 0
        """Blobs uploaded so far."""
        self.healed_bytes = 0

    @property
    def waiting(self) -> int:
        """Blobs in the queue."""
        return len(self._queue)

    def blobs(self) -> set[Digest]:
        """Those in the queue: their only copy may be the one here. From any thread."""
        return {digest for _, digest in list(self._queue)}

    def offer(self, instance_name: str, digests: Collection[Digest]) -> bool:
        """The remote has lost these blobs and the local store holds them. Returns whether anything will be tried."""
        if instance_name in self._refused:
            return False
        for digest in digests:
            if len(self._queue) >= _QUEUE:
                break
            self._queue[instance_name, digest] = None
        self._wake.set()
        return True

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            before = self.healed
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_AT_ONCE, len(self._queue))):
                    group.create_task(self._work())
            if self.healed != before:
                _log.info(
                    "%d blobs that the remote had lost were uploaded from the local store",
                    self.healed - before,
                )

    async def _work(self) -> None:
        while self._queue:
            instance_name, digest = next(iter(self._queue))
            del self._queue[instance_name, digest]
            try:
                await self._blobs.of_instance(instance_name).write(digest, _Gone(digest))
            except NotFound:
                _log.debug("blob %s was evicted before it could be uploaded", digest)
            except OutputdError as error:
                self._failed(instance_name, digest, error)
            else:
                self.healed += 1
                self.healed_bytes += digest.size

    def _failed(self, instance_name: str, digest: Digest, error: OutputdError) -> None:
        """One log line for all that wait with it."""
        given_up = [key for key in self._queue if key[0] == instance_name]
        if isinstance(error, Exhausted):
            given_up = []  # of this one blob, or of a server that has asked us to be slower and was obeyed
        for key in given_up:
            del self._queue[key]
        if isinstance(error, _REFUSALS):
            if instance_name in self._refused:
                return
            self._refused.add(instance_name)
        _log.warning(
            "blob %s, which the remote has lost, and %d others cannot be uploaded again: %s",
            digest,
            len(given_up),
            error,
        )


class _Gone:
    """In place of the bytes of a blob that the store is to have."""

    def __init__(self, digest: Digest) -> None:
        self._digest = digest

    def __aiter__(self) -> _Gone:
        return self

    async def __anext__(self) -> bytes:
        raise NotFound(f"blob {self._digest} was in the local store and is gone again")
