"""What a remote has lost and we hold goes back to it, in the background. Never uploads what was made here and never was there.

Each remote has its own queue and its own uploads: one that does not answer keeps no other waiting. Nobody waits for an upload;
until then the blob is read from the local store. What does not fit into the queue, or fails, is found again the next time that
somebody asks for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from outputd.digest import Digest
from outputd.errors import (
    Denied,
    Exhausted,
    Invalid,
    NotFound,
    OutputdError,
    Precondition,
    Unavailable,
    Unsupported,
)
from outputd.store.base import BlobStore

_log = logging.getLogger(__name__)

_QUEUE: Final = 10_000
_AT_ONCE: Final = 4
"""Uploads under way to one remote: builds come first."""
_REFUSALS: Final = (Denied, Unsupported, Invalid, Precondition)
"""Errors after which no other blob need be tried with that instance."""


@dataclass(slots=True)
class Healed:
    """What goes back to one remote."""

    blobs: int = 0
    """Uploaded so far."""
    bytes: int = 0
    queue: dict[tuple[str, Digest], None] = field(default_factory=dict)
    """Instance names and blobs that wait."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Healing:
    """Queues of blobs and those who work them off. Lives on the event loop."""

    def __init__(
        self,
        blobs: BlobStore,
        remotes: Collection[str] = ("",),
        remote_of: Callable[[str], str | None] = lambda _: "",
    ) -> None:
        """`remotes`: by prefix; `remote_of` tells which of them an instance name belongs to."""
        self._blobs = blobs
        self._remote_of = remote_of
        self._remotes = {prefix: Healed() for prefix in remotes}
        self._refused: set[str] = set()
        """Instance names that take no uploads of ours, until the daemon is started anew."""

    def of(self, prefix: str) -> Healed:
        """How far it is with one remote."""
        return self._remotes[prefix]

    def blobs(self) -> set[Digest]:
        """Those in the queues: their only copy may be the one here. From any thread."""
        return {digest for remote in self._remotes.values() for _, digest in list(remote.queue)}

    def offer(self, instance_name: str, digests: Collection[Digest]) -> bool:
        """The remote has lost these blobs and the local store holds them. Returns whether anything will be tried."""
        prefix = self._remote_of(instance_name)
        if prefix is None or instance_name in self._refused:
            return False
        remote = self._remotes[prefix]
        for digest in digests:
            if len(remote.queue) >= _QUEUE:
                break
            remote.queue[instance_name, digest] = None
        remote.wake.set()
        return True

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for remote in self._remotes.values():
                group.create_task(self._tend(remote))

    # within

    async def _tend(self, remote: Healed) -> None:
        while True:
            await remote.wake.wait()
            remote.wake.clear()
            before = remote.blobs
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_AT_ONCE, len(remote.queue))):
                    group.create_task(self._work(remote))
            if remote.blobs != before:
                _log.info(
                    "%d blobs that the remote had lost were uploaded from the local store",
                    remote.blobs - before,
                )

    async def _work(self, remote: Healed) -> None:
        while remote.queue:
            instance_name, digest = next(iter(remote.queue))
            del remote.queue[instance_name, digest]
            try:
                await self._blobs.of_instance(instance_name).write(digest, _Gone(digest))
            except NotFound:
                _log.debug("blob %s was evicted before it could be uploaded", digest)
            except OutputdError as error:
                self._failed(remote, instance_name, digest, error)
            else:
                remote.blobs += 1
                remote.bytes += digest.size

    def _failed(self, remote: Healed, instance_name: str, digest: Digest, error: OutputdError) -> None:
        """One log line for all that wait with it."""
        away = isinstance(error, Unavailable)
        given_up = [key for key in remote.queue if away or key[0] == instance_name]
        if isinstance(error, Exhausted):
            given_up = []  # of this one blob, or of a server that has asked us to be slower and was obeyed
        for key in given_up:
            del remote.queue[key]
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
