"""outputd.v1.Trees: files brought, kept and dropped by name, who had what fetched, and what happens. Decides nothing itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from outputd._proto import admin_pb2
from outputd.builds.builds import Builds
from outputd.builds.pins import Pins
from outputd.builds.prefetch import Prefetch, Prefetched
from outputd.builds.profiles import Profiles
from outputd.builds.selection import Patterns
from outputd.builds.verification import Count
from outputd.drive.accounting import Accounting, Fetched, Ranking
from outputd.drive.crawl import CrawlGuard
from outputd.drive.feed import Feed
from outputd.drive.profile import decode
from outputd.errors import Invalid
from outputd.rpc.edge import Context
from outputd.store.waiting import in_thread


class Trees:
    """The service."""

    def __init__(
        self,
        builds: Builds,
        prefetch: Prefetch,
        pins: Pins,
        accounting: Accounting,
        guard: CrawlGuard,
        feed: Feed,
        profiles: Profiles,
    ) -> None:
        self._builds = builds
        self._prefetch = prefetch
        self._pins = pins
        self._accounting = accounting
        self._guard = guard
        self._feed = feed
        self._profiles = profiles

    async def prefetch(
        self, request: admin_pb2.PrefetchRequest, _context: Context
    ) -> AsyncIterator[admin_pb2.PrefetchResponse]:
        if request.max_bytes < 0:
            raise Invalid(f"max_bytes: {request.max_bytes}, expected 0 or more")
        root = self._builds.root(request.output_base_id)
        if bool(request.patterns) + bool(request.profile) + bool(request.profile_text) > 1:
            raise Invalid("patterns, profile, profile_text: expected one of them")
        if request.profile or request.profile_text:
            profile = (
                await self._profiles.get(request.profile)
                if request.profile
                else await in_thread(decode, request.profile_text, "profile_text")
            )
            steps = self._prefetch.replay(root, profile, max_bytes=request.max_bytes)
        else:
            steps = self._prefetch.of(root, Patterns(request.patterns), max_bytes=request.max_bytes)
        done = Prefetched()
        async with aclosing(steps):
            async for done in steps:
                yield _prefetched(done)
        last = _prefetched(done)
        last.done = True
        yield last

    async def forget(self, request: admin_pb2.ForgetRequest, _context: Context) -> admin_pb2.ForgetResponse:
        root = self._builds.root(request.output_base_id)
        done = await self._prefetch.forget(root, Patterns(request.patterns))
        return admin_pb2.ForgetResponse(
            matched=_count(done.matched),
            dropped=_count(done.dropped),
            only_here=_count(done.only_here),
            held=_count(done.held),
        )

    async def pin(self, request: admin_pb2.PinRequest, _context: Context) -> admin_pb2.PinResponse:
        await self._pins.pin(request.output_base_id, request.patterns)
        return admin_pb2.PinResponse()

    async def unpin(self, request: admin_pb2.UnpinRequest, _context: Context) -> admin_pb2.UnpinResponse:
        removed = await self._pins.unpin(request.output_base_id, request.patterns)
        return admin_pb2.UnpinResponse(removed=removed)

    async def list_pins(
        self, _request: admin_pb2.ListPinsRequest, _context: Context
    ) -> admin_pb2.ListPinsResponse:
        return admin_pb2.ListPinsResponse(
            pins=[
                admin_pb2.PinnedFiles(
                    output_base_id=pin.output_base_id,
                    pattern=pin.pattern,
                    matched=_count(pin.matched),
                    missing=_count(pin.missing),
                    current=pin.current,
                )
                for pin in self._pins.list()
            ]
        )

    async def get_activity(
        self, request: admin_pb2.GetActivityRequest, _context: Context
    ) -> admin_pb2.GetActivityResponse:
        if request.rows < 0:
            raise Invalid(f"rows: {request.rows}, expected 0 or more")
        accounting = self._accounting
        reply = admin_pb2.GetActivityResponse(total=_fetched(accounting.total))
        for process, came in accounting.processes.top(request.rows):
            row = reply.processes.add(pid=process.pid, name=process.name, fetched=_fetched(came))
            if process.started:
                row.started.FromNanoseconds(process.started)

        def named(ranking: Ranking[str]) -> list[admin_pb2.NamedActivity]:
            return [
                admin_pb2.NamedActivity(name=name, fetched=_fetched(came))
                for name, came in ranking.top(request.rows)
            ]

        reply.output_bases.extend(named(accounting.output_bases))
        reply.targets.extend(named(accounting.targets))
        for digest, came in accounting.blobs.top(request.rows):
            reply.blobs.add(name=f"{digest.function.lower}:{digest}", fetched=_fetched(came))
        for job in self._guard.crawlers:
            reply.crawlers.add(
                name=job.process.name, pid=job.process.pid, refused=job.refused, reason=job.reason
            )
        return reply

    async def watch(
        self, request: admin_pb2.WatchRequest, _context: Context
    ) -> AsyncIterator[admin_pb2.WatchResponse]:
        with self._feed.watching(request.output_base_id) as watcher:
            while True:
                event = await watcher.next()
                reply = admin_pb2.WatchResponse(
                    event=event.name,
                    output_base_id=event.output_base_id.encode(errors="replace").decode(),
                    build_id=event.build_id,
                    path=event.path,
                    size=event.size,
                    count=event.lost,
                )
                reply.time.FromNanoseconds(event.time)
                yield reply


def _prefetched(done: Prefetched) -> admin_pb2.PrefetchResponse:
    return admin_pb2.PrefetchResponse(
        matched=_count(done.matched),
        missing=_count(done.missing),
        fetched=_count(done.fetched),
        failed=done.failed,
        first_failure=done.first_failure,
        left_out=_count(done.left_out),
        absent=done.absent,
    )


def _count(count: Count) -> admin_pb2.FileCount:
    return admin_pb2.FileCount(files=count.files, bytes=count.bytes)


def _fetched(came: Fetched) -> admin_pb2.Fetched:
    return admin_pb2.Fetched(pieces=came.pieces, bytes=came.bytes)
