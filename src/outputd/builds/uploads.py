"""What builds have made here goes to the remote in the background, with the Directory messages that name it. Fails no build, and
takes no part in deciding what a build sees.

Afterwards the whole of an output path can be had on any machine by the digest of its root Directory, and its blobs may be evicted
here. A message is sent only when the remote has all that it names. What the remote was seen to have is remembered with the leases
(leases.py): after a build what it has changed is looked at, and a restart goes on where the last run was. What REv2 cannot say
(docs/explanation/identity.md) stays here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from outputd.builds.leases import Lease, Leases, sent_key
from outputd.builds.output_base import OutputBase, Upload
from outputd.builds.pace import Pace
from outputd.builds.sending import BATCH_BYTES, BLOBS_A_QUESTION, Rate, Sending
from outputd.digest import Digest
from outputd.drive.loader import decoding_directory
from outputd.drive.slices import in_slices
from outputd.errors import (
    Corrupt,
    Denied,
    Exhausted,
    Invalid,
    NotFound,
    OutputdError,
    Precondition,
    Throttled,
    Unsupported,
)
from outputd.store.base import LocalStore, RemoteBlobs
from outputd.store.batches import batches

_log = logging.getLogger(__name__)

_RETRY: Final = 60.0
"""Seconds after which an output path is tried again for which the remote did not answer."""
_REFUSALS: Final = (Denied, Unsupported, Precondition)
"""Errors after which trying again makes no sense before the next build ends."""
_OF_ONE_BLOB: Final = (NotFound, Corrupt, Invalid, Exhausted)
"""Errors that say nothing of other blobs: it is gone, or larger than the server takes. But for Throttled."""


class _Lane:
    """What goes to one remote."""

    __slots__ = ("queue", "rate", "wake")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.queue: dict[OutputBase, float] = {}
        """With the time, by time.monotonic(), before which it is not tried."""
        self.wake = asyncio.Event()


class Uploads:
    """For each remote a queue of output bases, worked off one after the other. Lives on the event loop."""

    def __init__(
        self,
        remote: RemoteBlobs,
        local: LocalStore,
        message: Callable[[Digest], bytes | None],
        leases: Leases,
        *,
        trusted: int,
        rates: Mapping[str, Rate],
        remote_of: Callable[[str], str | None] = lambda _: "",
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        """`message` finds the Directory messages that lie here. `trusted`: for how many nanoseconds the remote is believed to have
        what it was seen to have; `rates`: of each remote that is to have anything, by its prefix; `remote_of` tells which remote
        has an instance name; `now` tells nanoseconds since 1970.
        """
        self._remote = remote
        self._local = local
        self._message = message
        self._leases = leases
        self._trusted = trusted
        self._lanes = {prefix: _Lane(rate) for prefix, rate in rates.items()}
        self._remote_of = remote_of
        self._now = now

    def ask(self, base: OutputBase) -> None:
        """Its last checkpoint is to be in the remote. What was under way for an earlier one is left."""
        lane = self._lane(base)
        if lane is not None:
            lane.queue[base] = 0.0
            lane.wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes.values():
                group.create_task(self._work(lane))

    # within

    def _lane(self, base: OutputBase) -> _Lane | None:
        """None: its remote is to have nothing."""
        prefix = self._remote_of(base.instance_name)
        return None if prefix is None else self._lanes.get(prefix)

    async def _work(self, lane: _Lane) -> None:
        while True:
            lane.wake.clear()
            now = time.monotonic()
            base = next((base for base, when in lane.queue.items() if when <= now), None)
            if base is not None:
                del lane.queue[base]
                if self._lane(base) is lane:  # else it has another instance name by now
                    await self._upload(base, lane)
                continue
            again = min(lane.queue.values(), default=None)
            try:
                async with asyncio.timeout(None if again is None else again - now):
                    await lane.wake.wait()
            except TimeoutError:
                pass  # one is to be tried again

    async def _upload(self, base: OutputBase, lane: _Lane) -> None:
        progress, sealed = base.upload, base.sealed
        if sealed is None or base.removed:
            return
        before = progress.blobs, progress.bytes
        progress.running = True
        try:
            remote = self._remote.of_instance(base.instance_name) if base.instance_name else self._remote
            tree = _Tree(
                remote, base.instance_name, self._local, self._message, self._leases, lane.rate, progress
            )
            trusted = self._now() - self._trusted
            whole = await tree.send(sealed.digest, trusted, self._now, lambda: self._is_left(base, lane))
        except OutputdError as error:
            again = not isinstance(error, _REFUSALS)
            if again:
                lane.queue.setdefault(base, time.monotonic() + _RETRY)
            if progress.error != str(error):
                then = f"tried again in {_RETRY:g} s" if again else "tried again after the next build"
                _log.warning("output base %s is not uploaded, %s: %s", base.id, then, error)
            progress.error = str(error)
            return
        finally:
            progress.running = False
            progress.waiting = 0
            await self._leases.flush()
        if self._is_left(base, lane):
            return
        progress.error = tree.error
        blobs, size = progress.blobs - before[0], progress.bytes - before[1]
        if not whole:
            _log.warning("output base %s is not uploaded as a whole: %s", base.id, tree.error)
        elif progress.root != sealed.digest or blobs:
            progress.root = sealed.digest
            _log.info(
                "output base %s is in the remote as Directory %s; %d blobs, %d bytes were uploaded",
                base.id,
                sealed.digest,
                blobs,
                size,
            )

    def _is_left(self, base: OutputBase, lane: _Lane) -> bool:
        """There is a later checkpoint to be uploaded, or nothing any more."""
        return base.removed or base in lane.queue or self._lane(base) is not lane


class _Tree:
    """One root and all below it."""

    def __init__(
        self,
        remote: RemoteBlobs,
        instance_name: str,
        local: LocalStore,
        message: Callable[[Digest], bytes | None],
        leases: Leases,
        rate: Rate,
        progress: Upload,
    ) -> None:
        self._remote = remote
        self._instance_name = instance_name
        self._local = local
        self._message = message
        self._leases = leases
        self._progress = progress
        self._sending = Sending(remote, local, rate, of_one=_is_of_one_blob, sent=self._sent)
        self._inner: dict[Digest, list[Digest]] = {}
        """The directories that were looked into, with those in them of which it is not known that the remote has them."""
        self._height: dict[Digest, int] = {}
        """Of each of these, how many such lie one in the other below it."""
        self._lacking: set[Digest] = set()
        """Directories of which the remote lacks something."""
        self.error = ""
        """Why it lacks the first of what it lacks."""

    async def send(
        self, root: Digest, trusted: int, now: Callable[[], int], left: Callable[[], bool]
    ) -> bool:
        """Whether the remote has everything at the end, or `left` has ended it. `trusted`: since when leases count, in nanoseconds
        since 1970. Raises what RemoteBlobs raises, and Unavailable or Corrupt when what lies here cannot be read."""
        began = now()
        await self._walk(root, trusted, left)
        levels: dict[int, list[Digest]] = {}
        for directory, height in self._height.items():
            levels.setdefault(height, []).append(directory)
        for _, level in sorted(levels.items()):
            for start in range(0, len(level), BLOBS_A_QUESTION):
                if left():
                    return True
                await self._send_messages(level[start : start + BLOBS_A_QUESTION], began)
        return root not in self._lacking

    async def _walk(self, root: Digest, trusted: int, left: Callable[[], bool]) -> None:
        """Find the directories to be sent, and send the files in them."""
        pace = Pace()
        files: dict[Digest, list[Digest]] = {}
        count = 0
        stack = [(root, False)] if not self._known([root], trusted) else []
        while stack and not left():
            directory, below_done = stack.pop()
            if below_done:
                below = (self._height[inner] for inner in self._inner[directory])
                self._height[directory] = 1 + max(below, default=-1)
            elif directory not in self._inner:
                message = self._read(directory)
                self._inner[directory] = []
                stack.append((directory, True))
                if message is not None:  # else it came from the remote, as did all that is in it
                    listing = await in_slices(decoding_directory(directory, message))
                    digests = list(dict.fromkeys(digest for _, digest in listing.directories))
                    known = self._known(digests, trusted)
                    self._inner[directory] = [digest for digest in digests if digest not in known]
                    stack += ((digest, False) for digest in self._inner[directory])
                    files[directory] = [digest for _, digest, _ in listing.files]
                    count += len(files[directory])
            if count >= BLOBS_A_QUESTION or (not stack and files):
                await self._send_files(files)
                files, count = {}, 0
            if pace.due:
                await pace.turn()

    def _known(self, directories: list[Digest], trusted: int) -> set[Digest]:
        """Those that the remote is believed to have, with all below."""
        keys = {sent_key(directory): directory for directory in directories}
        leases = self._leases.get(self._instance_name, list(keys))
        return {keys[key] for key, lease in leases.items() if lease.asked >= trusted}

    def _read(self, directory: Digest) -> bytes | None:
        """Its message, None when that does not lie here."""
        message = self._message(directory)
        return self._local.read(directory) if message is None else message

    async def _send_files(self, files: dict[Digest, list[Digest]]) -> None:
        missing = await self._remote.find_missing({digest for some in files.values() for digest in some})
        self._progress.waiting += len(missing)
        failed = await self._send_blobs(missing)
        if failed:
            self._lacking |= {directory for directory, some in files.items() if not failed.isdisjoint(some)}

    async def _send_messages(self, level: list[Digest], began: int) -> None:
        """Those of directories of which all that they name is in the remote, or is not."""
        ready: list[Digest] = []
        for directory in level:
            if directory in self._lacking or not self._lacking.isdisjoint(self._inner[directory]):
                self._lacking.add(directory)
            else:
                ready.append(directory)
        missing = await self._remote.find_missing(ready)
        self._progress.waiting += len(missing)
        for some in batches([directory for directory in ready if directory in missing], BATCH_BYTES):
            messages: dict[Digest, bytes] = {}
            for directory in some:
                message = self._read(directory)
                if message is None:
                    gone = NotFound(f"Directory {directory}: nobody has its message any more")
                    self._fail({directory: gone})
                    self._lacking.add(directory)
                else:
                    messages[directory] = message
            failures = await self._sending.batch(messages)
            self._fail(failures)
            self._lacking |= set(failures)
        sent = [sent_key(directory) for directory in ready if directory not in self._lacking]
        self._leases.put(self._instance_name, dict.fromkeys(sent, Lease(began, 1)))
        await self._leases.flush()

    async def _send_blobs(self, digests: Collection[Digest]) -> set[Digest]:
        """Send blobs of the local store; those that the remote still lacks."""
        failures = await self._sending.blobs(digests)
        self._fail(failures)
        return set(failures)

    def _fail(self, failures: Mapping[Digest, OutputdError]) -> None:
        """Go on without these."""
        for digest, error in failures.items():
            _log.debug("blob %s is not uploaded: %s", digest, error)
            self.error = self.error or str(error)
        self._progress.waiting -= len(failures)

    def _sent(self, digests: Sequence[Digest]) -> None:
        self._progress.blobs += len(digests)
        self._progress.bytes += sum(digest.size for digest in digests)
        self._progress.waiting -= len(digests)


def _is_of_one_blob(error: OutputdError) -> bool:
    return isinstance(error, _OF_ONE_BLOB) and not isinstance(error, Throttled)
