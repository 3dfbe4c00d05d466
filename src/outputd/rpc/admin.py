"""outputd.v1.Admin: what the daemon tells of itself. Asking changes nothing but that blobs get counted."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from outputd import __version__
from outputd._proto import admin_pb2
from outputd.builds.builds import Builds
from outputd.builds.output_base import Obtainable
from outputd.builds.verification import Count, Tally, Verification
from outputd.errors import Invalid
from outputd.rpc.edge import Context
from outputd.rpc.operations import Operations
from outputd.store.base import LocalStore


@dataclass(frozen=True, slots=True)
class MountFacts:
    """The mounted file system, as its front knows it."""

    path: str
    abi: str
    features: Sequence[str]


@dataclass(frozen=True, slots=True)
class RemoteFacts:
    """The server behind the local store, as calls have shown it."""

    url: str
    reached: bool | None
    """Whether the last call was answered; None before the first."""
    last_error: str
    last_error_time: float
    """Seconds since 1970; 0 while there was none."""
    unanswered_since: float | None
    """Seconds since 1970 when it stopped answering; None unless it was given up."""
    healed: int = 0
    """Blobs that it had lost and was given again."""
    healed_bytes: int = 0
    healing: int = 0
    """Blobs that wait for that."""


class Admin:
    """The service. What it tells comes from where it is known, at the moment of the question."""

    def __init__(
        self,
        builds: Builds,
        store: LocalStore,
        store_path: str,
        listen_addresses: Sequence[str],
        begin_count: Callable[[], None],
        mount: Callable[[], MountFacts],
        remote: Callable[[], RemoteFacts] | None,
        operations: Operations,
        verification: Verification,
    ) -> None:
        """`begin_count` has the store's blobs counted in the background, for a later question."""
        self._verification = verification
        self._builds = builds
        self._store = store
        self._store_path = store_path
        self._listen_addresses = listen_addresses
        self._begin_count = begin_count
        self._mount = mount
        self._remote = remote
        self._operations = operations
        self._began = time.monotonic()

    async def get_status(
        self, _request: admin_pb2.GetStatusRequest, _context: Context
    ) -> admin_pb2.GetStatusResponse:
        mount = self._mount()
        usage = await asyncio.to_thread(self._store.usage)
        if usage.blobs < 0:
            self._begin_count()
        reply = admin_pb2.GetStatusResponse(
            version=__version__,
            pid=os.getpid(),
            mount=admin_pb2.Mount(path=mount.path, abi=mount.abi, features=mount.features),
            listen_addresses=self._listen_addresses,
            store=admin_pb2.Store(
                path=self._store_path,
                blobs=usage.blobs,
                blob_bytes=usage.blob_bytes,
                total_bytes=usage.total,
                available_bytes=usage.available,
            ),
        )
        reply.uptime.FromMilliseconds(int((time.monotonic() - self._began) * 1000))
        for base in await self._builds.describe():
            described = reply.output_bases.add(
                id=base.id,
                running_build_id=base.running_build_id,
                last_build_id=base.last_build_id,
                entries=base.entries,
                dirty=base.dirty,
                save_error=base.save_error,
            )
            if base.last_build_time:
                described.last_build_time.FromNanoseconds(base.last_build_time)
            _describe_obtainable(described.obtainable, base.obtainable)
        if self._remote is not None:
            self._describe_remote(reply.remote, self._remote())
        return reply

    async def list_operations(
        self, request: admin_pb2.ListOperationsRequest, _context: Context
    ) -> admin_pb2.ListOperationsResponse:
        seconds = request.older_than.seconds + request.older_than.nanos / 1e9
        if seconds < 0:
            raise Invalid(f"older_than: {seconds:g} s; expected 0 or more")
        return self._operations.older_than(seconds)

    async def verify(
        self, request: admin_pb2.VerifyRequest, _context: Context
    ) -> AsyncIterator[admin_pb2.VerifyResponse]:
        root = self._builds.root(request.output_base_id)
        left = request.max_losses
        async with aclosing(self._verification.of(root, request.path, content=request.content)) as tallies:
            async for tally in tallies:
                reply = _verified(tally, left)
                left -= len(reply.losses)
                tally.losses.clear()
                yield reply
        reply.done = True
        reply.ClearField("losses")
        yield reply

    def _describe_remote(self, reply: admin_pb2.Remote, remote: RemoteFacts) -> None:
        reply.url = remote.url
        reply.last_error = remote.last_error
        reply.healed_blobs = remote.healed
        reply.healed_bytes = remote.healed_bytes
        reply.healing = remote.healing
        if remote.reached is not None:
            reply.state = admin_pb2.Remote.REACHABLE if remote.reached else admin_pb2.Remote.FAILING
        if remote.unanswered_since is not None:
            reply.state = admin_pb2.Remote.GIVEN_UP
            reply.unanswered_since.FromMilliseconds(int(remote.unanswered_since * 1000))
        if remote.last_error_time:
            reply.last_error_time.FromMilliseconds(int(remote.last_error_time * 1000))


def _describe_obtainable(reply: admin_pb2.Obtainable, known: Obtainable) -> None:
    reply.blobs = -1
    if known.lease is not None:
        reply.blobs = known.lease.blobs
        reply.asked.FromNanoseconds(known.lease.asked)
    if known.next:
        reply.refresh.FromNanoseconds(known.next)
    reply.missing = known.missing
    reply.dropped_files = known.dropped_files
    reply.dropped_directories = known.dropped_directories
    if known.dropped_time:
        reply.dropped_time.FromNanoseconds(known.dropped_time)


def _verified(tally: Tally, most_losses: int) -> admin_pb2.VerifyResponse:
    reply = admin_pb2.VerifyResponse(
        both=_count(tally.both),
        remote=_count(tally.remote),
        here=_count(tally.here),
        gone=_count(tally.gone),
        damaged=_count(tally.damaged),
        directories=tally.directories,
        unloadable=tally.unloadable,
    )
    for loss in tally.losses[: max(0, most_losses)]:
        digest = "" if loss.digest is None else str(loss.digest)
        reply.losses.add(path=loss.path, digest=digest, reason=loss.reason)
    return reply


def _count(count: Count) -> admin_pb2.FileCount:
    return admin_pb2.FileCount(files=count.files, bytes=count.bytes)
