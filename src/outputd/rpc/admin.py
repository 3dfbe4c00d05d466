"""outputd.v1.Admin: what the daemon tells of itself, and what it is told to do. GetStatus changes nothing but counts blobs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from outputd import __version__
from outputd._proto import admin_pb2
from outputd.builds.builds import Builds
from outputd.builds.collection import Collection, Report, Wish
from outputd.builds.output_base import Obtainable, Upload
from outputd.builds.queue_lane import QueueFacts
from outputd.builds.verification import Count, Tally, Verification
from outputd.errors import Invalid
from outputd.rpc.edge import Context, outcome
from outputd.rpc.operations import Operations
from outputd.store.base import LocalStore
from outputd.store.eviction import Amounts
from outputd.store.limits import Limits
from outputd.store.remote.credential_facts import CredentialFacts


@dataclass(frozen=True, slots=True)
class MountFacts:
    """The mounted file system, as its front knows it."""

    path: str
    abi: str
    features: Sequence[str]


@dataclass(frozen=True, slots=True)
class RemoteFacts:
    """A server behind the local store, as calls have shown it."""

    name: str
    """The NAME of `[remotes.NAME]`; empty for `[remote]`."""
    prefix: str
    instance_name: str
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
    credentials: Sequence[CredentialFacts] = ()
    queue: QueueFacts | None = None
    """Uploads that wait until it answers."""


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """The local store, beyond what it tells itself."""

    store: LocalStore
    path: str
    limits: Limits
    collection: Collection


@dataclass(frozen=True, slots=True)
class RestartFacts:
    """See GetStatusResponse."""

    count: int
    error: str


class Admin:
    """The service. What it tells comes from where it is known, at the moment of the question."""

    def __init__(
        self,
        builds: Builds,
        store: StoreFacts,
        listen_addresses: Sequence[str],
        begin_count: Callable[[], None],
        mount: Callable[[], MountFacts],
        remotes: Callable[[], Sequence[RemoteFacts]],
        operations: Operations,
        verification: Verification,
        tasks: asyncio.TaskGroup,
        restart: Callable[[], Awaitable[None]],
        restarts: Callable[[], RestartFacts],
    ) -> None:
        """`begin_count` has the store's blobs counted in the background, for a later question."""
        self._verification = verification
        self._builds = builds
        self._store = store
        self._listen_addresses = listen_addresses
        self._begin_count = begin_count
        self._mount = mount
        self._remotes = remotes
        self._operations = operations
        self._tasks = tasks
        self._restart = restart
        self._restarts = restarts
        self._began = time.monotonic()

    async def get_status(
        self, _request: admin_pb2.GetStatusRequest, _context: Context
    ) -> admin_pb2.GetStatusResponse:
        mount = self._mount()
        restarts = self._restarts()
        usage = await asyncio.to_thread(self._store.store.usage)
        high_mark = self._store.limits.high_mark
        if usage.blobs < 0:
            self._begin_count()
        reply = admin_pb2.GetStatusResponse(
            version=__version__,
            pid=os.getpid(),
            mount=admin_pb2.Mount(path=mount.path, abi=mount.abi, features=mount.features),
            listen_addresses=self._listen_addresses,
            store=admin_pb2.Store(
                path=self._store.path,
                blobs=usage.blobs,
                blob_bytes=usage.blob_bytes,
                total_bytes=usage.total,
                available_bytes=usage.available,
                local_only_blobs=usage.local_only_blobs,
                local_only_bytes=usage.local_only_bytes,
                partial_blobs=usage.partial_blobs,
                partial_bytes=usage.partial_bytes,
                total_files=usage.files,
                free_files=usage.files_free,
                keep_free_bytes=self._store.limits.free_goal(usage.total),
                high_mark_bytes=0 if high_mark is None else high_mark.of(usage.total),
            ),
            restarts=restarts.count,
            restart_error=restarts.error,
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
            _describe_upload(described, base.upload)
        for facts in self._remotes():
            _describe_remote(reply.remotes.add() if facts.name else reply.remote, facts)
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

    async def collect_garbage(
        self, request: admin_pb2.CollectGarbageRequest, _context: Context
    ) -> AsyncIterator[admin_pb2.CollectGarbageResponse]:
        unused_for = (
            request.unused_for.ToTimedelta().total_seconds() if request.HasField("unused_for") else None
        )
        if (unused_for or 0) < 0 or (request.HasField("max_bytes") and request.max_bytes < 0):
            raise Invalid("unused_for, max_bytes: expected 0 or more")
        wish = Wish(
            garbage=True,
            unused_since=None if unused_for is None else time.time() - unused_for,
            max_bytes=request.max_bytes if request.HasField("max_bytes") else None,
            output_paths=True,
        )
        steps: asyncio.Queue[admin_pb2.CollectGarbageResponse] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def progress(step: str, amounts: Amounts) -> None:
            message = admin_pb2.CollectGarbageResponse(step=step, blobs=amounts.blobs, bytes=amounts.bytes)
            loop.call_soon_threadsafe(steps.put_nowait, message)

        # In the daemon's own group: a group here would be left by a client that goes away in the middle of a `yield`.
        work = self._tasks.create_task(
            outcome(self._store.collection.collect(wish, dry_run=request.dry_run, progress=progress))
        )
        work.add_done_callback(lambda _: steps.put_nowait(admin_pb2.CollectGarbageResponse()))
        try:
            while (message := await steps.get()).step:
                yield message
            result = await work
        finally:
            work.cancel()
        if isinstance(result, Exception):
            raise result
        yield admin_pb2.CollectGarbageResponse(report=_report(result))

    async def restart(
        self, _request: admin_pb2.RestartRequest, _context: Context
    ) -> admin_pb2.RestartResponse:
        await self._restart()
        return admin_pb2.RestartResponse()


def _describe_remote(reply: admin_pb2.Remote, remote: RemoteFacts) -> None:
    reply.name = remote.name
    reply.prefix = remote.prefix
    reply.instance_name = remote.instance_name
    reply.url = remote.url
    reply.last_error = remote.last_error
    reply.healed_blobs = remote.healed
    reply.healed_bytes = remote.healed_bytes
    reply.healing = remote.healing
    for known in remote.credentials:
        told = reply.credentials.add(
            headers=known.names, source=known.source, subject=known.subject, error=known.error
        )
        if known.expires is not None:
            told.expires.FromMilliseconds(int(known.expires * 1000))
    if remote.queue is not None:
        _describe_queue(reply, remote.queue)
    if remote.reached is not None:
        reply.state = admin_pb2.Remote.REACHABLE if remote.reached else admin_pb2.Remote.FAILING
    if remote.unanswered_since is not None:
        reply.state = admin_pb2.Remote.GIVEN_UP
        reply.unanswered_since.FromMilliseconds(int(remote.unanswered_since * 1000))
    if remote.last_error_time:
        reply.last_error_time.FromMilliseconds(int(remote.last_error_time * 1000))


def _describe_queue(reply: admin_pb2.Remote, queue: QueueFacts) -> None:
    if not (queue.limit or queue.oldest or queue.brought or queue.refused):
        return
    told = reply.offline_queue
    told.limit_bytes = queue.limit
    told.blobs = queue.blobs
    told.results = queue.results
    told.bytes = queue.bytes
    told.brought = queue.brought
    told.brought_bytes = queue.brought_bytes
    if queue.oldest is not None:
        told.oldest.FromNanoseconds(queue.oldest)
    if queue.error:
        told.last_error = queue.error
        told.last_error_time.FromNanoseconds(queue.error_time)
    for row in queue.refused:
        digest = f"{row.key.digest.hash_hex}/{row.key.digest.size}"
        refused = told.refused.add(
            instance_name=row.key.instance_name,
            blob="" if row.key.is_result else digest,
            action=digest if row.key.is_result else "",
            error=row.refused or "",
        )
        refused.queued.FromNanoseconds(row.queued)


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


def _describe_upload(reply: admin_pb2.OutputBase, upload: Upload) -> None:
    if upload.running or upload.root is not None or upload.error:
        reply.upload.running = upload.running
        reply.upload.blobs = upload.blobs
        reply.upload.bytes = upload.bytes
        reply.upload.waiting = upload.waiting
        reply.upload.root = "" if upload.root is None else f"{upload.root.hash_hex}/{upload.root.size}"
        reply.upload.error = upload.error


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


def _report(report: Report) -> admin_pb2.GarbageReport:
    message = admin_pb2.GarbageReport(dropped_messages=report.dropped)
    for kind, found in report.found.items():
        gone = report.going.get(kind, Amounts())
        message.blobs.add(
            kind=admin_pb2.GarbageReport.Blobs.Kind.Value(kind.name),
            blobs=found.blobs,
            bytes=found.bytes,
            removed_blobs=gone.blobs,
            removed_bytes=gone.bytes,
        )
    for base in report.stale:
        message.output_bases.add(id=base.id, reason=base.reason).last_used.FromNanoseconds(base.last_used)
    return message
