"""The only constructor of things: builds the house from settings, starts it, waits, stops it in order. Has no behaviour.

Start: state, store, tree, what was saved, mount, and last the sockets: who can connect finds everything. Stop, the other way round:
no new calls, unmount while still answering, save, close.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor

from outputd import __version__
from outputd._proto import admin_pb2, bazel_output_service_pb2, health_pb2
from outputd.builds.after_builds import AfterBuilds
from outputd.builds.builds import Builds, Options
from outputd.builds.collection import Collection
from outputd.builds.journals import Journals
from outputd.builds.leases import Leases
from outputd.builds.lock import CACHE, DirectoryLock
from outputd.builds.pins import Pins
from outputd.builds.prefetch import Prefetch
from outputd.builds.presence import LeaseOptions, Presence
from outputd.builds.profiles import Profiles
from outputd.builds.refresh import Refresh
from outputd.builds.state import State
from outputd.builds.verification import Verification
from outputd.builds.write_back import WriteBack
from outputd.config import Config, UnixAddress
from outputd.config.crawl_options import crawl_options
from outputd.config.remote_options import checking_results, configured_remotes
from outputd.digest import Digest
from outputd.disk.disk import RealDisk
from outputd.drive.accounting import Accounting
from outputd.drive.commands import Commands
from outputd.drive.content import Content
from outputd.drive.crawl import CrawlGuard
from outputd.drive.driver import Driver
from outputd.drive.feed import Feed
from outputd.drive.ingest import Ingest
from outputd.drive.loader import Loader
from outputd.drive.private_files import PrivateFiles
from outputd.drive.reaper import Reaper
from outputd.drive.recording import Recordings
from outputd.errors import OutputdError, Precondition
from outputd.facts import awaited, kernel_requests, mount_facts, remote_facts, url_of
from outputd.front.fuse.answers import Timeouts
from outputd.front.fuse.front import FuseFront
from outputd.memory import return_large_buffers, spare_the_collector, stay_out_of_core_dumps
from outputd.restart import (
    DEVICE,
    Arrival,
    Departure,
    Locks,
    Restarting,
    arrived,
    depart,
    left_behind,
    until_asked,
)
from outputd.rpc.admin import Admin, RestartFacts, StoreFacts
from outputd.rpc.bazel_output_service import BazelOutputService
from outputd.rpc.byte_stream import ByteStream
from outputd.rpc.calls import Calls
from outputd.rpc.health import Health
from outputd.rpc.operations import Operations
from outputd.rpc.passing import Passing
from outputd.rpc.profiles import ProfilesService
from outputd.rpc.queued_results import QueuedResults
from outputd.rpc.referenced import ReferencedResults
from outputd.rpc.reflection import reflection_services
from outputd.rpc.rev2 import rev2_services
from outputd.rpc.services import SERVER_OPTIONS, service_handler
from outputd.rpc.trees import Trees
from outputd.senders import senders
from outputd.signals import Signals
from outputd.sockets import bind, clear_stale_socket, remove
from outputd.store.base import ServedBlobs
from outputd.store.cached import CachedStore
from outputd.store.counted import Counted
from outputd.store.disk_store import DiskStore
from outputd.store.elsewhere import Elsewhere
from outputd.store.layout import TAG_DIGEST
from outputd.store.limits import Limits
from outputd.store.owners import Owner
from outputd.store.remote.relays import Relays
from outputd.store.routing import Routes
from outputd.store.urgency import Errand, carrying
from outputd.supervisor import Supervisor
from outputd.tree.cas import Cas
from outputd.tree.node import File
from outputd.tree.top import enter_tag
from outputd.tree.tree import Tree
from outputd.upkeep import begin_count, close_store, settle_doubt

_log = logging.getLogger(__name__)

_GRACE: Final = 5.0
"""Seconds that calls under way get to end at an ordered stop."""
_PINS_SECONDS: Final = 5.0
"""Seconds for which a start waits until it is known what is pinned; no more, for it may take the remote."""


async def serve(config: Config, supervisor: Supervisor, arrival: Arrival | None) -> Departure | None:
    """Run until SIGTERM or SIGINT, or until the mount is taken away; or until a restart is due: returns what goes over.

    Raises OutputdError when it cannot start or lost its mount.
    """
    return_large_buffers()
    stay_out_of_core_dumps()
    signals = Signals(asyncio.get_running_loop())
    if arrival is not None and arrival.stopping:
        signals.stop.set()
    try:
        departure = await _run(config, signals, supervisor, arrival)
    except* OutputdError as group:
        raise _first(group) from None
    return None if departure is None else replace(departure, stopping=signals.stop.is_set())


def _first(group: BaseExceptionGroup[OutputdError]) -> OutputdError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, OutputdError)
    return error


async def _run(
    config: Config, signals: Signals, supervisor: Supervisor, arrival: Arrival | None
) -> Departure | None:
    disk = RealDisk()
    kept = f"{config.state.dir}/mount"
    departure: Departure | None = None
    async with contextlib.AsyncExitStack() as rooms, asyncio.TaskGroup() as tasks:
        locks = Locks(-1) if arrival is None else arrival.locks
        state = State(config.state.dir, disk, locks.state)
        rooms.push_async_callback(state.close)
        cache_lock = DirectoryLock(CACHE, config.cache.dir, disk, locks.cache)
        rooms.callback(cache_lock.close)
        local = DiskStore(
            config.cache.dir,
            disk,
            owner=Owner(state.id, config.state.dir),
            grace=config.cache.garbage_age,
        )
        rooms.push_async_callback(close_store, local)
        remotes = [(configured, configured.store()) for configured in configured_remotes(config)]
        remote: Routes | None = None
        if remotes:
            remote = Routes([configured.route(client) for configured, client in remotes])
            rooms.push_async_callback(remote.close)
        partials = local.partials if config.outputs.verify == "when-complete" else None
        feed = Feed()
        accounting = Accounting()
        guard = CrawlGuard(crawl_options(config.crawl), accounting)
        recordings = Recordings()
        profiles = Profiles(f"{config.state.dir}/profiles", disk, recordings)
        rooms.callback(profiles.close)
        accounting.arrivals.append(feed.arrived)
        counted = None if remote is None else Counted(remote, accounting.arrived)
        store = await rooms.enter_async_context(
            CachedStore(local, counted, partials, lambda digest: content.spoilt(digest))
        )
        leases = Leases(config.cache.dir, (lambda _: "") if remote is None else remote.place, disk)
        rooms.push_async_callback(leases.close)
        reading = Elsewhere(store, lambda: {base.instance_name for base in builds.live()})

        tree = Tree(uid=os.getuid(), gid=os.getgid(), now=time.time_ns())
        enter_tag(tree.root, TAG_DIGEST)
        Cas(tree.root, Commands(local).script, config.remote.instance_name, state.take_number)
        private = PrivateFiles(disk, local.private, local.make_room)
        ingest = Ingest(tree, local, private)

        def closed(file: File) -> None:
            feed.written(file)
            ingest.closed(file)

        content = Content(
            tree,
            reading,
            private,
            tasks,
            read_timeout=config.outputs.read_timeout,
            closed=closed,
            gone=lambda file: builds.gone(file),
            permits=guard,
        )
        loader = Loader(
            state,
            reading,
            tasks,
            max_tree_bytes=config.outputs.max_tree_bytes,
            timeout=config.outputs.read_timeout,
        )
        reaper = Reaper(tree, content)
        front = FuseFront(
            tree,
            Driver(loader, content),
            content,
            reaper,
            tasks,
            timeouts=Timeouts(
                *(
                    int(seconds * 1e9)
                    for seconds in (
                        config.mount.entry_timeout,
                        config.mount.attr_timeout,
                        config.mount.negative_timeout,
                    )
                )
            ),
            store_dir=config.cache.dir,
            accounting=accounting,
            guard=guard,
            recordings=recordings,
            xattrs=config.mount.xattrs,
            passthrough=config.mount.passthrough,
            kept=kept,
        )
        options = Options(
            local_only=remote is None,
            initial_contents=config.outputs.initial_contents,
            max_tree_bytes=config.outputs.max_tree_bytes,
        )
        lease_options = LeaseOptions(
            duration=int(config.outputs.lease_seconds * 1e9),
            always_asked=config.outputs.always_asked,
            patience=int(config.outputs.start_timeout * 1e9),
            local_only=remote is None,
        )
        sending = senders(config, [one for one, _ in remotes], remote, store, local, state, leases)
        uploads, healing, queue = sending.uploads, sending.healing, sending.queue
        presence = Presence(loader, store, leases, healing, lease_options)
        journals = Journals(f"{config.state.dir}/journals", disk)
        builds = Builds(
            tree,
            loader,
            content,
            ingest,
            reaper,
            store,
            state,
            journals,
            front,
            presence,
            options,
            feed=feed,
            saved=None if uploads is None else uploads.ask,
        )

        def held() -> set[Digest]:
            return content.open_digests() | sending.held() | pins.held

        prefetch = Prefetch(loader, reading, local, lambda: awaited(front), held)
        pins = Pins(state, builds.root, loader, prefetch, local.is_here)
        feed.ended.append(pins.outdated)
        after_builds = AfterBuilds(config.prefetch.profiles, profiles, prefetch, builds.root)
        feed.ended.append(after_builds.ended)
        own = [
            ("Trees", Trees(builds, prefetch, pins, accounting, guard, feed, profiles)),
            ("Profiles", ProfilesService(profiles)),
        ]

        here = await rooms.enter_async_context(CachedStore(local, None))
        limits = Limits(
            config.cache.high_mark, config.cache.low_mark, config.cache.max_blobs, config.cache.keep_free
        )
        collection = Collection(
            local,
            builds,
            state,
            limits,
            ReferencedResults(state, here) if remote is None else None,
            held,
        )

        work = [
            ("ingest", ingest.run()),
            ("reaper", reaper.run()),
            ("read-ahead", content.read_ahead.run()),
            ("profiles", profiles.run()),
            ("replays", after_builds.run()),
            ("collector", spare_the_collector()),
            ("watchdog", supervisor.ping()),
        ]
        work += [(configured.section, client.watch()) for configured, client in remotes]
        if healing is not None:
            work.append(("healing", healing.run()))
        background = [tasks.create_task(some, name=name, context=carrying(Errand())) for name, some in work]
        restarting = Restarting(config)
        handover = left_behind(kept, supervisor) if arrival is None else arrival.handover
        try:
            await settle_doubt(local)
            try:
                if handover is None:
                    await builds.restore()
                    builds.open_scratch()
                    mount = await front.start(config.mount.path, allow_other=config.mount.allow_other)
                    supervisor.keep(DEVICE, mount.fd)
                else:
                    mount = handover.mount
                    await builds.restore(partial(front.take_over, handover))
                    builds.open_scratch()
                    front.resume()
                if uploads is not None:
                    for base in builds.bases:
                        uploads.ask(base)
                    background.append(
                        tasks.create_task(uploads.run(), name="uploads", context=carrying(Errand()))
                    )
                if remote is not None and lease_options.duration:
                    refresh = Refresh(builds.live, presence, leases, lease_options.duration)
                    background.append(
                        tasks.create_task(refresh.run(), name="refresh", context=carrying(Errand()))
                    )
                await pins.settle(_PINS_SECONDS)
                background.append(tasks.create_task(pins.run(), name="pins", context=carrying(Errand())))
                # Not before: what was not restored yet would look like garbage.
                background.append(tasks.create_task(collection.run(), name="collection"))
                calls = Calls()
                relays: Relays | None = None
                if remote is not None:
                    relays = Relays(remote, {one.prefix: client.relay() for one, client in remotes})
                    rooms.push_async_callback(relays.close)
                passing = Passing(relays)
                if queue is not None:
                    queued = QueuedResults(store, passing, state)
                    background.append(
                        tasks.create_task(queue.run(queued), name="write-back", context=carrying(Errand()))
                    )
                operations = Operations(
                    lambda: kernel_requests(front, mount.path),
                    calls,
                    store.under_way,
                    lambda name: url_of(remote, name),
                )
                admin = Admin(
                    builds,
                    StoreFacts(local, config.cache.dir, limits, collection),
                    [str(address) for address in config.listen.addresses],
                    lambda: begin_count(local),
                    lambda: mount_facts(front, mount.path),
                    lambda: [remote_facts(*some, healing, queue) for some in remotes],
                    operations,
                    Verification(loader, store),
                    tasks,
                    restarting.ask,
                    lambda: RestartFacts(front.restarts, restarting.error),
                )
                while departure is None:
                    async with (
                        _running(builds.checkpoints.run(), tasks),
                        _listening(
                            config,
                            sending.served(store),
                            state,
                            queue,
                            builds,
                            [*own, ("Admin", admin)],
                            calls,
                            passing,
                            tasks,
                        ),
                    ):
                        _log.info(
                            "outputd %s: outputs at %s/outputs, listening on %s",
                            __version__,
                            mount.path,
                            ", ".join(map(str, config.listen.addresses)),
                        )
                        arrived()
                        supervisor.ready(f"serving {mount.path}")
                        await until_asked(signals, restarting, front)
                        supervisor.stopping() if signals.stop.is_set() else supervisor.reloading()
                    if signals.stop.is_set():
                        break
                    departure = await depart(builds, front, state, cache_lock, restarting)
            finally:
                await front.stop()
                await builds.checkpoints.all()
        finally:
            for task in background:
                task.cancel()
    if departure is None:
        supervisor.give_up(DEVICE)
    _log.info("stopped" if departure is None else "running the program anew")
    return departure


@contextlib.asynccontextmanager
async def _running(work: Coroutine[Any, Any, None], tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
    """Have something run meanwhile, and see its end."""
    task = tasks.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


@contextlib.asynccontextmanager
async def _listening(
    config: Config,
    store: ServedBlobs,
    state: State,
    queue: WriteBack | None,
    builds: Builds,
    own: Sequence[tuple[str, object]],
    calls: Calls,
    passing: Passing,
    tasks: asyncio.TaskGroup,
) -> AsyncIterator[None]:
    """Every service on every address; `own` are those of admin.proto."""
    byte_stream = ByteStream(store, tasks, passing)
    health_descriptor = health_pb2.DESCRIPTOR.services_by_name["Health"]
    services = [
        (
            bazel_output_service_pb2.DESCRIPTOR.services_by_name["BazelOutputService"],
            BazelOutputService(builds),
        ),
        *rev2_services(
            store, state, byte_stream, passing, check_results=checking_results(config), queue=queue
        ),
    ]
    own_services = [(admin_pb2.DESCRIPTOR.services_by_name[name], service) for name, service in own]
    offered = [descriptor for descriptor, _ in (*services, *own_services)]
    health = Health([descriptor.full_name for descriptor in offered])
    # Who asks what is under way, or watches our health for hours, is not stuck.
    onlookers: list[tuple[ServiceDescriptor, object]] = [
        *own_services,
        (health_descriptor, health),
        *reflection_services([*offered, health_descriptor]),
    ]
    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers(
        (
            *(service_handler(*service, calls) for service in services),
            *(service_handler(*service) for service in onlookers),
        )
    )
    sockets = [address.path for address in config.listen.addresses if isinstance(address, UnixAddress)]
    for path in sockets:
        clear_stale_socket(path)
    # A socket's own mode is what keeps others out where its directory does not; gRPC binds with the process's umask.
    umask = os.umask(0o177)
    try:
        for address in config.listen.addresses:
            bind(server, address)
    except Precondition:
        remove(sockets)
        raise
    finally:
        os.umask(umask)
    await server.start()
    health.set_serving(True)
    try:
        yield
    finally:
        health.set_serving(False)
        await server.stop(_GRACE)
        byte_stream.close()
        remove(sockets)
