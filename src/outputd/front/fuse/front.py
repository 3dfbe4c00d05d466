"""The FUSE front as one thing that the daemon starts and stops: mount, session, notifier. Owns the mount, not what files do."""

from __future__ import annotations

import asyncio
import logging
import os

from outputd.drive.content import Content
from outputd.drive.driver import Driver
from outputd.drive.extents import Extents
from outputd.drive.reaper import Reaper
from outputd.errors import OutputdError
from outputd.front.fuse.answers import Answers, Timeouts
from outputd.front.fuse.channel import Channel, Notifier
from outputd.front.fuse.files import Files
from outputd.front.fuse.listings import Listings
from outputd.front.fuse.mount import Mount, Unmounted, abort, mount, unmount
from outputd.front.fuse.names import Names
from outputd.front.fuse.passthrough import Passthrough
from outputd.front.fuse.ranges import Ranges
from outputd.front.fuse.session import Session
from outputd.front.fuse.xattrs import Xattrs
from outputd.tree.node import Node
from outputd.tree.tree import Tree

_log = logging.getLogger(__name__)


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
        xattrs: bool = False,
        passthrough: bool = True,
    ) -> None:
        self._tree = tree
        self._driver = driver
        self._content = content
        self._reaper = reaper
        self._tasks = tasks
        self._timeouts = timeouts
        self._store_dir = store_dir
        self._xattrs = xattrs
        self._passthrough = passthrough
        self._mount: Mount | None = None
        self._channel: Channel | None = None
        self._notifier: Notifier | None = None
        self._files: Files | None = None
        self.session: Session | None = None
        self.ended = asyncio.Event()
        """Set when the kernel will send nothing more: somebody unmounted us, or the connection was aborted."""

    async def start(self, path: str, *, allow_other: bool) -> str:
        """Mount at `path` and serve; the path as the kernel shows it. Raises as mount.mount does."""
        # A mount that only root may look into needs no permission checks but those of ACCESS and exec, and without them the
        # kernel does not ask for a directory's attributes anew after each change in it: a third of the requests of a create.
        checked = allow_other or os.geteuid() != 0
        mounted = await asyncio.to_thread(mount, path, allow_other=allow_other, default_permissions=checked)
        loop = asyncio.get_running_loop()
        self._mount = mounted
        self._channel = channel = Channel(mounted.fd)
        self._notifier = notifier = Notifier(mounted.fd, loop)
        answers = Answers(self._tree, self._content, self._timeouts)
        names = Names(self._tree, self._content, answers, self._reaper.wake)
        passthrough = Passthrough(mounted.fd, self._content, wanted=self._passthrough)
        self._files = files = Files(
            self._tree, self._content, answers, passthrough, self._store_dir, channel.reply_parts
        )
        listings = Listings(self._tree, answers)
        ranges = Ranges(self._tree, files, Extents(self._content), answers)
        xattrs = Xattrs(self._tree, self._content, answers) if self._xattrs else None
        self.session = Session(
            self._tree,
            self._driver,
            self._reaper,
            channel,
            notifier,
            self._tasks,
            names,
            files,
            listings,
            ranges,
            xattrs,
            passthrough,
        )
        channel.attach(loop, self.session.on_request, self._on_end)
        if mounted.replaced:
            _log.warning("%s: took off %d mounts of dead daemons", mounted.path, mounted.replaced)
        return mounted.path

    async def invalidate(self, stale: list[tuple[Node, bytes | None]]) -> None:
        """See Session.invalidate; nothing to do once the mount is gone."""
        if self.session is not None and not self.ended.is_set():
            await self.session.invalidate(stale)

    async def stop(self) -> None:
        """Unmount while still serving, so that what is open gets its answers; then close. Never raises for a mount that resists."""
        if self._mount is None or self._channel is None or self._notifier is None or self._files is None:
            return
        mounted, self._mount = self._mount, None
        try:
            outcome = await asyncio.to_thread(
                unmount, mounted
            )  # also after an abort: that leaves a dead mount
            if outcome is Unmounted.GONE and not self.ended.is_set():
                _log.warning("%s: was unmounted by somebody else", mounted.path)
            elif outcome in (Unmounted.DETACHED, Unmounted.ABORTED):
                _log.warning("%s: was in use; unmounted all the same (%s)", mounted.path, outcome)
            if not await self._notifier.close():
                await asyncio.to_thread(abort, mounted)
        except OutputdError as error:
            _log.error("%s: cannot be unmounted: %s", mounted.path, error)
        finally:
            self._channel.close()
            if self.session is not None:
                self.session.abandon()
            self._files.close_all()

    def _on_end(self, cause: OSError | None) -> None:
        if cause is not None:
            _log.error("the FUSE connection ended: %s", os.strerror(cause.errno or 0))
        self.ended.set()
