"""The conversation with the kernel: INIT, dispatch, requests that must wait, interrupts, and taking back what it may remember.

A request that can be answered from memory is answered within the call that read it; only a miss becomes a task. Decides nothing
about the tree: that is names.py, files.py and listings.py.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, TypeAlias

from outputd.digest import Digest
from outputd.drive.driver import Driver
from outputd.drive.open_file import Frozen, NotLocal, TooLong
from outputd.drive.reaper import Reaper
from outputd.errors import OutputdError, Refused, Throttled, TooLarge
from outputd.front.fuse.channel import MAX_WRITE, Channel, Notifier
from outputd.front.fuse.demand import Demand
from outputd.front.fuse.errnos import of_error
from outputd.front.fuse.files import Files
from outputd.front.fuse.handover import Agreed
from outputd.front.fuse.listings import Listings
from outputd.front.fuse.names import Names
from outputd.front.fuse.passthrough import Passthrough
from outputd.front.fuse.ranges import Ranges
from outputd.front.fuse.waiting import Request, Waiting
from outputd.front.fuse.xattrs import Xattrs
from outputd.tree.node import Directory, File, Node
from outputd.tree.status import NotLoaded
from outputd.tree.top import ROOT_INO
from outputd.tree.tree import Tree
from outputd.wire.fuse_abi import (
    INC_EPOCH_MINOR_VERSION,
    KERNEL_MINOR_VERSION,
    KERNEL_VERSION,
    OLDEST_MINOR_VERSION,
    UNANSWERED,
    Init,
    Opcode,
)
from outputd.wire.fuse_reply import (
    direntplus_size,
    error_reply,
    init_reply,
    notify_inc_epoch,
    notify_inval_entry,
    notify_inval_inode,
)
from outputd.wire.fuse_request import MalformedRequest, decode_header, decode_init, decode_interrupt

_log = logging.getLogger(__name__)

Reply: TypeAlias = bytes | Awaitable[bytes] | None
Handler: TypeAlias = Callable[[int, int, int, int, memoryview, int], Reply]

_MAX_BACKGROUND: Final = 4096
"""Read-aheads and asynchronous reads that the kernel lets be under way at once; it holds back those that come after, also of files
whose bytes are here. So it is more than may wait for a remote."""
_WANTED: Final = (
    Init.ASYNC_READ
    | Init.ATOMIC_O_TRUNC
    | Init.BIG_WRITES
    | Init.DO_READDIRPLUS
    | Init.PARALLEL_DIROPS
    | Init.MAX_PAGES
    | Init.CACHE_SYMLINKS
    | Init.EXPLICIT_INVAL_DATA  # bytes of an inode change through the kernel only, so its page cache is never stale
    | Init.INIT_EXT
)
_EPOCH_FROM: Final = 64
"""Stale names from which one INC_EPOCH (about 15 us, then one LOOKUP for each name used again) beats INVAL_ENTRYs (7 us each)."""
_SLOW: Final = 5.0
"""Seconds after which a request that failed says how long it took."""
_FULL_AGAIN: Final = 60.0
"""Seconds between two log lines that the disk is full."""


class Session:
    """One mounted file system. Implements builds' KernelCache."""

    def __init__(
        self,
        tree: Tree,
        driver: Driver,
        reaper: Reaper,
        channel: Channel,
        notifier: Notifier,
        tasks: asyncio.TaskGroup,
        names: Names,
        files: Files,
        listings: Listings,
        ranges: Ranges,
        xattrs: Xattrs | None,
        passthrough: Passthrough,
        demand: Demand,
        on_agreed: Callable[[Agreed], None],
    ) -> None:
        """Without `xattrs` the kernel is told that there are none, and asks no more. `on_agreed` is told what INIT settled."""
        self._on_agreed = on_agreed
        self._tree = tree
        self._driver = driver
        self._reaper = reaper
        self._channel = channel
        self._notifier = notifier
        self._tasks = tasks
        self._names = names
        self._files = files
        self._listings = listings
        self._passthrough = passthrough
        self._demand = demand
        self._waiting = Waiting(tasks)
        self._most_waiting = 0
        """Requests that may wait for what is not here, the next one fails; known from INIT on."""
        self._full_told = -_FULL_AGAIN
        """When the log was last told that the disk is full, by time.monotonic()."""
        self.minor = 0
        """ABI minor version agreed on; 0 before INIT."""
        self.features = Init(0)
        self._handlers: dict[int, Handler] = {
            Opcode.LOOKUP: names.lookup,
            Opcode.FORGET: names.forget,
            Opcode.BATCH_FORGET: names.batch_forget,
            Opcode.GETATTR: names.getattr,
            Opcode.ACCESS: names.access,
            Opcode.SETATTR: names.setattr,
            Opcode.READLINK: names.readlink,
            Opcode.SYMLINK: names.symlink,
            Opcode.MKNOD: names.mknod,
            Opcode.MKDIR: names.mkdir,
            Opcode.UNLINK: names.unlink,
            Opcode.RMDIR: names.rmdir,
            Opcode.RENAME: names.rename,
            Opcode.RENAME2: names.rename2,
            Opcode.LINK: names.link,
            Opcode.CREATE: files.create,
            Opcode.OPEN: files.open,
            Opcode.READ: files.read,
            Opcode.WRITE: files.write,
            Opcode.RELEASE: files.release,
            Opcode.FSYNC: files.fsync,
            Opcode.TMPFILE: files.tmpfile,
            Opcode.FALLOCATE: ranges.fallocate,
            Opcode.LSEEK: ranges.lseek,
            Opcode.COPY_FILE_RANGE: ranges.copy_file_range,
            Opcode.STATFS: files.statfs,
            Opcode.OPENDIR: listings.opendir,
            Opcode.READDIR: listings.readdir,
            Opcode.READDIRPLUS: listings.readdirplus,
            Opcode.RELEASEDIR: listings.releasedir,
            Opcode.INIT: self._init,
            Opcode.INTERRUPT: self._interrupt,
            Opcode.DESTROY: self._destroy,
            # ENOSYS to FLUSH and FSYNCDIR is remembered by the kernel for good: it stops asking.
        }
        self._xattr_handlers: dict[int, Handler] = {}
        if xattrs is not None:
            self._xattr_handlers = {
                Opcode.SETXATTR: xattrs.setxattr,
                Opcode.GETXATTR: xattrs.getxattr,
                Opcode.LISTXATTR: xattrs.listxattr,
                Opcode.REMOVEXATTR: xattrs.removexattr,
            }

    def waiting(self) -> Iterator[Request]:
        """Requests that are under way."""
        return iter(self._waiting)

    def on_request(self, buffer: memoryview, length: int) -> None:
        """Serve one message of the kernel. Never raises."""
        try:
            opcode, unique, nodeid, uid, gid, pid, end = decode_header(buffer, length)
        except MalformedRequest:
            _log.exception("not a FUSE message")
            return
        handler = self._handlers.get(opcode)
        if handler is None:
            self._channel.reply(error_reply(unique, errno.ENOSYS))
            return
        try:
            answer = handler(unique, nodeid, uid, gid, buffer, end)
            if answer is not None:
                if isinstance(answer, bytes):
                    if not self._channel.reply(answer):
                        self._take_back(opcode, answer)
                else:
                    self._later(Request(opcode, unique, nodeid, pid, local=True), answer)
        except Frozen as frozen:
            self._later(Request(opcode, unique, nodeid, pid), self._renewed(unique, frozen.file))
        except (NotLoaded, NotLocal, TooLong) as need:
            request = Request(opcode, unique, nodeid, pid, local=isinstance(need, TooLong))
            if not isinstance(need, TooLong):
                if len(self._waiting) >= self._most_waiting:
                    self._fail(request, Throttled(f"{len(self._waiting)} requests wait already"))
                    return
                try:
                    self._demand.note(pid, need)
                except Refused as refused:
                    self._fail(request, refused)
                    return
            request.message = message = bytes(buffer[:length])
            again = self._driver.run(lambda: handler(unique, nodeid, uid, gid, memoryview(message), end))
            self._later(request, again)
        except Exception as error:
            self._fail(Request(opcode, unique, nodeid, pid), error)
        if self._tree.dropped:
            self._reaper.wake()

    async def invalidate(self, stale: list[tuple[Node, bytes | None]]) -> None:
        """Return when the kernel believes nothing about these names and attributes any more."""
        entries = [(node.ino, name) for node, name in stale if name is not None and node.lookups]
        attributes = dict.fromkeys(
            node.ino
            for node, name in stale
            if name is None and node.lookups and not self._is_out_of_sight(node)
        )
        if len(entries) >= _EPOCH_FROM and self.minor >= INC_EPOCH_MINOR_VERSION:
            messages = [notify_inc_epoch()]
        else:
            messages = [notify_inval_entry(ino, name) for ino, name in entries]
        messages.extend(notify_inval_inode(ino) for ino in attributes)
        if messages:
            await self._notifier.send(messages)

    def _is_out_of_sight(self, node: Node) -> bool:
        """Whether nobody can ask for the attributes of a node: a file without a name that is not open."""
        return isinstance(node, File) and not node.nlink and not self._files.is_open(node)

    def abandon(self) -> None:
        """The mount is gone: end the requests that wait, for nobody waits for their answers any more."""
        self._waiting.abandon()

    def resume(self, agreed: Agreed) -> None:
        """Go on with a kernel that has spoken with another process before: no INIT will come."""
        self.minor = agreed.minor
        self.features = Init(agreed.features)
        self._most_waiting = _background() * 3 // 4
        if self.features & Init.HANDLE_KILLPRIV_V2:
            self._handlers |= self._xattr_handlers
        self._passthrough.enabled = agreed.passthrough and self._passthrough.wanted

    @property
    def agreed(self) -> Agreed:
        """What INIT settled."""
        return Agreed(self.minor, int(self.features), self._passthrough.enabled)

    def ask_again(self, requests: list[bytes]) -> None:
        """Serve requests that `quiesce` returned, here or in another process."""
        for message in requests:
            self.on_request(memoryview(message), len(message))

    async def quiesce(self, seconds: float) -> list[bytes]:
        """See Waiting.come_to_rest. To be called when no request is read any more."""
        requests = await self._waiting.come_to_rest(seconds)
        while self._names.forgetting:  # noqa: ASYNC110 - a matter of milliseconds
            await asyncio.sleep(0)
        return requests

    # within

    def _later(self, request: Request, answer: Awaitable[bytes | Awaitable[bytes] | None]) -> None:
        self._waiting.add(request, self._wait(request, answer))

    async def _wait(self, request: Request, answer: Awaitable[bytes | Awaitable[bytes] | None]) -> None:
        unique = request.unique
        try:
            try:
                result = await answer
            except Frozen as frozen:
                request.message = None
                result = await self._renewed(unique, frozen.file)
            request.message = None
            if result is not None and not isinstance(result, bytes):
                request.local = True
                result = await result
            if result is not None and not self._channel.reply(result):
                self._take_back(request.opcode, result)
        except asyncio.CancelledError:
            # The caller is to stop, or has gone, or we are stopping. The kernel takes EINTR for each.
            if not request.given_up:
                request.message = None
                self._channel.reply(error_reply(unique, errno.EINTR))
            raise
        except Exception as error:
            request.message = None
            self._fail(request, error)
        finally:
            if self._tree.dropped:
                self._reaper.wake()

    async def _renewed(self, unique: int, file: File) -> bytes:
        """Have the caller come again: to ESTALE the kernel answers by looking the path up anew, and finds another node there."""
        await self._driver.run(lambda: self._tree.renew(file))
        stale, self._tree.stale = self._tree.stale, []
        await self.invalidate(stale)
        return error_reply(unique, errno.ESTALE)

    def _fail(self, request: Request, error: Exception) -> None:
        """One log line and one errno for a request that went wrong."""
        opcode, nodeid = request.opcode, request.nodeid
        if isinstance(error, OutputdError):
            number = of_error(error)
            took = time.monotonic() - request.began
            wanted = self.wanted(nodeid)
            # What Content raises again for the second READ of one read(2) was told before.
            again = isinstance(error.__cause__, OutputdError) and str(error.__cause__) == str(error)
            if number == errno.ENOSPC:  # every write fails then, and one line tells as much as a thousand
                now = time.monotonic()
                again = now - self._full_told < _FULL_AGAIN
                self._full_told = self._full_told if again else now
            # The one is told once for the whole job, the other is no trouble of ours: what was asked for is too much for any disk.
            again = again or isinstance(error, Refused | TooLarge)
            _log.log(
                logging.DEBUG if again else logging.WARNING,
                "%s of %s for process %d failed with %s%s: %s%s",
                Opcode(opcode).name,
                self.path(nodeid),
                request.pid,
                errno.errorcode[number],
                f" after {took:.1f} s" if took >= _SLOW else "",
                error,
                f" ({wanted})" if wanted and wanted.rpartition(" ")[2] not in str(error) else "",
            )
        elif isinstance(error, KeyError) and nodeid not in self._tree.inodes:
            number = errno.ESTALE
            _log.warning("%s of unknown inode %d", Opcode(opcode).name, nodeid)
        else:
            number = errno.EIO
            _log.error("%s of %s: our own fault", Opcode(opcode).name, self.path(nodeid), exc_info=error)
        if opcode not in UNANSWERED:
            self._channel.reply(error_reply(request.unique, number))

    def _take_back(self, opcode: int, answer: bytes) -> None:
        """The request was interrupted and the kernel never got this answer: it holds neither the node nor the handle."""
        if len(answer) < 24 or struct.unpack_from("=i", answer, 4)[0]:
            return
        (first,) = struct.unpack_from("=Q", answer, 16)
        if opcode in (Opcode.LOOKUP, Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK):
            self._tree.forget(first, 1)
        elif opcode in (Opcode.CREATE, Opcode.TMPFILE):
            self._files.drop(struct.unpack_from("=Q", answer, 144)[0])
            self._tree.forget(first, 1)
        elif opcode == Opcode.OPEN:
            self._files.drop(first)
        elif opcode == Opcode.OPENDIR:
            self._listings.drop(first)
        elif opcode == Opcode.READDIRPLUS:
            at = 16
            while at < len(answer):
                nodeid, cookie, name_size = struct.unpack_from("=Q120x8xQI", answer, at)
                if cookie > 2:
                    self._tree.forget(nodeid, 1)
                at += direntplus_size(name_size)

    def _init(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        major, minor, max_readahead, offered = decode_init(message, end)
        if major != KERNEL_VERSION or minor < OLDEST_MINOR_VERSION:
            _log.error(
                "the kernel speaks FUSE %d.%d, outputd needs %d.%d (Linux 5.4) or later",
                major,
                minor,
                KERNEL_VERSION,
                OLDEST_MINOR_VERSION,
            )
            return error_reply(unique, errno.EPROTO)
        self.minor = min(minor, KERNEL_MINOR_VERSION)
        self.features = offered & _WANTED
        if self._xattr_handlers and offered & Init.HANDLE_KILLPRIV_V2:
            # Without this (Linux before 5.11) the kernel would ask for `security.capability` before every write(2), not
            # only before the first one after it has looked at the attributes.
            self.features |= Init.HANDLE_KILLPRIV_V2
            self._handlers |= self._xattr_handlers
        if self._passthrough.wanted and offered & Init.PASSTHROUGH:
            self.features |= Init.PASSTHROUGH
            self._passthrough.enabled = True
        background = _background()
        self._most_waiting = background * 3 // 4
        self._on_agreed(self.agreed)
        return init_reply(
            unique,
            minor=KERNEL_MINOR_VERSION,
            max_readahead=max_readahead,
            flags=self.features,
            max_background=background,
            congestion_threshold=self._most_waiting,
            max_write=MAX_WRITE,
            time_gran=1,
            max_pages=MAX_WRITE >> 12,
            max_stack_depth=1 if self._passthrough.enabled else 0,
        )

    def _interrupt(
        self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int
    ) -> bytes | None:
        self._waiting.interrupt(decode_interrupt(message, end))
        return None  # an INTERRUPT is answered only to have it sent again

    def _destroy(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        return error_reply(unique, 0)

    def wanted(self, nodeid: int) -> str:
        """What an inode is known by while its bytes or children are not here; empty when they may be."""
        node = self._tree.inodes.get(nodeid)
        if isinstance(node, File) and isinstance(node.content, Digest):
            return f"blob {node.content}"
        if isinstance(node, Directory) and node.children is None:
            return f"Tree {node.tree}" if node.digest is None else f"Directory {node.digest}"
        return ""

    def path(self, nodeid: int) -> str:
        """Where an inode lies below the mount point, for people."""
        node: Node | None = self._tree.inodes.get(nodeid)
        parts: list[str] = []
        while node is not None and node.ino != ROOT_INO:
            parts.append(node.name.decode(errors="backslashreplace") or f"(removed inode {nodeid})")
            node = node.parent
        return "/" + "/".join(reversed(parts))


def _background() -> int:
    """max_background for INIT. What the kernel allows who is not root: it is cut to that (process_init_limits)."""
    try:
        with open("/sys/module/fuse/parameters/max_user_bgreq") as file:
            return min(_MAX_BACKGROUND, int(file.read()))
    except OSError:
        return _MAX_BACKGROUND
