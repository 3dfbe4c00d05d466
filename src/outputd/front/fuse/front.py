"""The FUSE front as one thing that the daemon starts and stops: mount, session, notifier. Owns the mount, not what files do."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass, replace

from outputd.drive.accounting import Accounting
from outputd.drive.content import Content
from outputd.drive.crawl import CrawlGuard
from outputd.drive.driver import Driver
from outputd.drive.extents import Extents
from outputd.drive.reaper import Reaper
from outputd.drive.recording import Recordings
from outputd.errors import OutputdError, TimedOut
from outputd.front.fuse.answers import Answers, Timeouts
from outputd.front.fuse.arriving import look_for_everybody, recognise, reopen
from outputd.front.fuse.channel import Channel, Notifier
from outputd.front.fuse.demand import Demand
from outputd.front.fuse.departing import identities, nameless, number_ancestors
from outputd.front.fuse.files import Files
from outputd.front.fuse.handover import Agreed, Handover
from outputd.front.fuse.kept import KeptHandles
from outputd.front.fuse.listings import Listings
from outputd.front.fuse.mount import Mount, Unmounted, abort, mount, unmount
from outputd.front.fuse.names import Names
from outputd.front.fuse.passthrough import Passthrough
from outputd.front.fuse.ranges import Ranges
from outputd.front.fuse.session import Session
from outputd.front.fuse.xattrs import Xattrs
from outputd.tree.node import Node
from outputd.tree.tree import Tree
from outputd.wire.fuse_abi import Init
from outputd.wire.fuse_reply import notify_inc_epoch, notify_resend

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Serving:
    """The parts that serve one mount."""

    mount: Mount
    channel: Channel
    notifier: Notifier
    files: Files
    listings: Listings
    passthrough: Passthrough
    session: Session


class FuseFront:
    """A tree at a mount point. Implements builds' KernelCache."""

    def __init__(
        self,
        tree: Tree,
        driver: Driver,
        content: Content,
        reaper: Reaper,
        tasks: asyncio.TaskGroup,
        *,
        timeouts: Timeouts,
        store_dir: str,
        accounting: Accounting,
        guard: CrawlGuard,
        recordings: Recordings,
        xattrs: bool = False,
        passthrough: bool = True,
        kept: str,
    ) -> None:
        """`kept` is the file for what a crash leaves behind (kept.py)."""
        self._tree = tree
        self._driver = driver
        self._content = content
        self._reaper = reaper
        self._tasks = tasks
        self._timeouts = timeouts
        self._store_dir = store_dir
        self._demand = Demand(content, accounting, guard)
        self._recordings = recordings
        self._xattrs = xattrs
        self._passthrough = passthrough
        self._kept = KeptHandles(kept)
        self._serving: _Serving | None = None
        self._given_up: list[bytes] = []
        """Requests to be asked again when serving goes on."""
        self._restarts = 0
        self.ended = asyncio.Event()
        """Set when the kernel will send nothing more: somebody unmounted us, or the connection was aborted."""

    @property
    def session(self) -> Session | None:
        """The conversation with the kernel, once there is one."""
        return None if self._serving is None else self._serving.session

    @property
    def restarts(self) -> int:
        """How often the mount has changed hands."""
        return self._restarts

    async def start(self, path: str, *, allow_other: bool) -> Mount:
        """Mount at `path` and serve. Raises as mount.mount does."""
        # A mount that only root may look into needs no permission checks but those of ACCESS and exec, and without them the
        # kernel does not ask for a directory's attributes anew after each change in it: a third of the requests of a create.
        checked = allow_other or os.geteuid() != 0
        mounted = await asyncio.to_thread(mount, path, allow_other=allow_other, default_permissions=checked)
        self._assemble(mounted, xattrs=self._xattrs)
        self.resume()
        if mounted.replaced:
            _log.warning("%s: took off %d mounts of dead daemons", mounted.path, mounted.replaced)
        return mounted

    async def take_over(self, handover: Handover) -> set[int]:
        """Get ready to go on with a mount that another process has served; `resume` begins. To be called when the saved output
        paths are in the tree, and nothing else was done with them.

        Returns the keys of private files that nothing but an open handle needs. Raises Corrupt.
        """
        keys = recognise(self._tree, handover)
        if handover.crashed:
            await look_for_everybody(self._tree, self._driver)
        # What INIT settled about extended attributes holds, whatever the settings say now.
        serving = self._assemble(
            handover.mount, xattrs=bool(handover.agreed.features & Init.HANDLE_KILLPRIV_V2)
        )
        serving.session.resume(handover.agreed)
        self._kept.begin(handover.mount, handover.agreed, handover.restarts + 1)
        serving.files.lossy = serving.listings.lossy = handover.crashed
        await reopen(
            self._tree,
            self._driver,
            self._content,
            serving.files,
            serving.listings,
            handover,
        )
        self._given_up = handover.requests
        self._restarts = handover.restarts + 1
        self._kept.publish()
        if handover.crashed:
            # Names may have been told and not been kept; and what was read and not answered is told by nobody else.
            await serving.notifier.send([notify_inc_epoch(), notify_resend()])
        return keys

    def resume(self) -> None:
        """Serve what the kernel asks, first what `quiesce` has given up."""
        serving = self._in_service()
        requests, self._given_up = self._given_up, []
        serving.session.ask_again(requests)
        serving.channel.attach(asyncio.get_running_loop(), serving.session.on_request, self._on_end)

    async def quiesce(self, seconds: float) -> None:
        """Serve nothing more, until `resume` or `hand_over`; the kernel's requests wait. When this returns nothing is under way.

        Raises TimedOut when what is under way does not end in time; then serving goes on.
        """
        serving = self._in_service()
        serving.channel.detach()
        try:
            self._given_up = await serving.session.quiesce(seconds)
        except TimedOut:
            self.resume()
            raise
        number_ancestors(self._tree)

    async def hand_over(self) -> Handover:
        """After `quiesce`, and after everything was saved: all that the next process needs, and the device, which is closed here.

        The descriptor in it is a new one. Raises TimedOut when the device cannot be let go of.
        """
        serving = self._in_service()
        if not await serving.notifier.close():
            raise TimedOut("the kernel does not take a notification: it waits for a lock")
        files, listings = serving.files, serving.listings
        handover = Handover(
            mount=replace(serving.mount, fd=os.dup(serving.channel.fd)),
            agreed=serving.session.agreed,
            identities=identities(self._tree),
            nameless=nameless(self._tree),
            opened=files.departing(),
            directories=listings.departing(),
            next_handle=files.next_fh,
            next_directory_handle=listings.next_fh,
            requests=self._given_up,
            restarts=self._restarts,
        )
        serving.channel.close()
        self._kept.close()
        self._serving = None
        return handover

    async def invalidate(self, stale: list[tuple[Node, bytes | None]]) -> None:
        """See Session.invalidate; nothing to do once the mount is gone."""
        if self._serving is not None and not self.ended.is_set():
            await self._serving.session.invalidate(stale)

    async def stop(self) -> None:
        """Unmount while still serving, so that what is open gets its answers; then close. Never raises for a mount that resists.

        Nothing to do after `hand_over`.
        """
        if self._serving is None:
            return
        serving, mounted = self._serving, self._serving.mount
        try:
            outcome = await asyncio.to_thread(
                unmount, mounted
            )  # also after an abort: that leaves a dead mount
            if outcome is Unmounted.GONE and not self.ended.is_set():
                _log.warning("%s: was unmounted by somebody else", mounted.path)
            elif outcome in (Unmounted.DETACHED, Unmounted.ABORTED):
                _log.warning("%s: was in use; unmounted all the same (%s)", mounted.path, outcome)
            if not await serving.notifier.close():
                await asyncio.to_thread(abort, mounted)
        except OutputdError as error:
            _log.error("%s: cannot be unmounted: %s", mounted.path, error)
        finally:
            serving.channel.close()
            serving.session.abandon()
            serving.files.close_all()
            self._kept.remove()
            self._serving = None

    def _in_service(self) -> _Serving:
        assert self._serving is not None, "there is no mount"
        return self._serving

    def _assemble(self, mounted: Mount, *, xattrs: bool) -> _Serving:
        channel = Channel(mounted.fd)
        notifier = Notifier(mounted.fd, asyncio.get_running_loop())
        answers = Answers(self._tree, self._content, self._timeouts)
        names = Names(self._tree, self._content, answers, self._reaper.wake)
        passthrough = Passthrough(mounted.fd, self._content, wanted=self._passthrough)
        files = Files(
            self._tree,
            self._content,
            answers,
            passthrough,
            self._store_dir,
            channel.reply_parts,
            self._kept,
            self._recordings,
        )
        listings = Listings(self._tree, answers)
        session = Session(
            self._tree,
            self._driver,
            self._reaper,
            channel,
            notifier,
            self._tasks,
            names,
            files,
            listings,
            Ranges(self._tree, files, Extents(self._content), answers, self._recordings),
            Xattrs(self._tree, self._content, answers) if xattrs else None,
            passthrough,
            self._demand,
            lambda agreed: self._agreed(mounted, agreed),
        )
        self._serving = _Serving(mounted, channel, notifier, files, listings, passthrough, session)
        return self._serving

    def _agreed(self, mounted: Mount, agreed: Agreed) -> None:
        self._kept.begin(mounted, agreed, self._restarts)
        self._kept.publish()

    def _on_end(self, cause: OSError | None) -> None:
        if cause is not None:
            _log.error("the FUSE connection ended: %s", os.strerror(cause.errno or 0))
        self.ended.set()
