"""A large blob in chunks (REv2, SplitBlob): which there are, and each of them brought and verified; never decides what is read.

The server tells the chunks of a blob. What is then read of it comes chunk by chunk: from a blob of the local store, from another
blob that has the same chunk, else from the remote, and nobody sees a byte of a chunk that was not hashed. That the chunks make up
the blob is the server's word until all of it is here and is hashed as a whole.
"""

from __future__ import annotations

import asyncio
import logging
import os
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from outputd.digest import Digest
from outputd.errors import Corrupt, NotFound, OutputdError, Unsupported
from outputd.store.base import LocalStore, RemoteBlobs
from outputd.store.partial import PartialBlob
from outputd.store.partials import Partials
from outputd.store.waiting import in_thread

_log = logging.getLogger(__name__)

_LARGEST: Final = 16 << 20
"""Bytes of a chunk, which is in memory as a whole. REv2 allows FastCDC 4 MiB, and recommends 512 KiB for RepMaxCDC."""
_TOGETHER: Final = 2 << 20
"""Bytes of chunks that are asked for in one go, if it is more than one."""
_PATIENCE: Final = 1.0
"""Seconds for which a reader waits to be told the chunks. A server that knows them answers at once; one that cuts the blob only now
takes a second for some megabytes."""
_GIVEN_UP: Final = 20.0
"""Seconds after which nobody waits for it in the background either; less than the deadline of a call, for it would count as a
server that does not answer."""
_REMEMBERED: Final = 50_000
"""Chunks of all lists that are kept: 25 GiB of blobs, 12 MB of memory."""


class ChunkList:
    """The chunks of one blob, in order."""

    __slots__ = ("digests", "offsets")

    def __init__(self, blob: Digest, digests: Sequence[Digest]) -> None:
        """Raises Corrupt for what cannot be the chunks of this blob, or is of no use."""
        offsets = array("q", [0])
        for chunk in digests:
            if not 0 < chunk.size <= _LARGEST:
                raise Corrupt(f"a chunk has {chunk.size} bytes; expected 1 to {_LARGEST}")
            offsets.append(offsets[-1] + chunk.size)
        if offsets[-1] != blob.size:
            raise Corrupt(f"the chunks have {offsets[-1]} bytes together; expected {blob.size}")
        self.digests: Final = tuple(digests)
        self.offsets: Final = offsets
        """Where each begins, and the end of the blob."""

    def spanning(self, start: int, end: int) -> range:
        """The indices of the chunks that have these bytes."""
        return range(bisect_right(self.offsets, start) - 1, bisect_left(self.offsets, end))


class Stretch(NamedTuple):
    """Chunks in a row."""

    known: ChunkList
    chunks: range
    """Their indices in it."""

    @property
    def start(self) -> int:
        """The first byte."""
        return self.known.offsets[self.chunks.start]

    @property
    def end(self) -> int:
        return self.known.offsets[self.chunks.stop]


class ChunkLists:
    """The lists that were told last, and which blobs on this machine have a chunk. For one event loop."""

    def __init__(self, local: LocalStore, partials: Partials, tasks: asyncio.TaskGroup) -> None:
        self._local = local
        self._partials = partials
        self._tasks = tasks
        self._lists: OrderedDict[Digest, ChunkList | None] = OrderedDict()
        """By blob, the ones not used for longest first. None: it is not to be had in chunks."""
        self._count = 0
        self._places: dict[Digest, tuple[Digest, int]] = {}
        """By chunk: the blob that it came for last, and where in it. The bytes may have gone since: they are hashed when read."""
        self._asking: dict[Digest, tuple[asyncio.Task[None], asyncio.Event]] = {}

    def find(self, blob: Digest) -> ChunkList | None:
        if blob in self._lists:
            self._lists.move_to_end(blob)
        return self._lists.get(blob)

    def ask(self, blob: Digest, remote: RemoteBlobs) -> asyncio.Event | None:
        """Have the server asked for the chunks of a blob; what is set when that is over, None when it is already."""
        if blob in self._lists:
            return None
        asking = self._asking.get(blob)
        if asking is None:
            asking = self._tasks.create_task(self._ask(blob, remote)), asyncio.Event()
            self._asking[blob] = asking
        return asking[1]

    def reject(self, blob: Digest) -> None:
        """It is not to be had in chunks, whatever the server says."""
        self._keep(blob, None)

    def close(self) -> None:
        """Nobody wants to be told any more."""
        for task, _ in self._asking.values():
            task.cancel()

    async def _ask(self, blob: Digest, remote: RemoteBlobs) -> None:
        try:
            async with asyncio.timeout(_GIVEN_UP):
                told = await remote.split(blob)
            # Of one chunk nothing could be verified before all is here.
            self._keep(blob, ChunkList(blob, told) if told is not None and len(told) > 1 else None)
        except (Corrupt, Unsupported) as error:
            self.reject(blob)
            _log.warning(
                "blob %s: the server does not tell its chunks as it should, so it is read in plain ranges: %s",
                blob,
                error,
            )
        except TimeoutError:
            self.reject(blob)
            _log.info(
                "blob %s: its chunks were not told in %g s, so it is read in plain ranges", blob, _GIVEN_UP
            )
        except OutputdError as error:
            _log.debug(
                "blob %s: its chunks are not known: %s", blob, error
            )  # the reader is told by the ranges
        finally:
            self._asking.pop(blob)[1].set()

    def _keep(self, blob: Digest, chunks: ChunkList | None) -> None:
        self._drop(blob)
        self._lists[blob] = chunks
        self._count += _cost(chunks)
        while self._count > _REMEMBERED and len(self._lists) > 1:
            self._drop(next(iter(self._lists)))

    def _drop(self, blob: Digest) -> None:
        if blob not in self._lists:
            return
        chunks = self._lists.pop(blob)
        self._count -= _cost(chunks)
        for chunk in () if chunks is None else chunks.digests:
            if chunk in self._places and self._places[chunk][0] == blob:
                del self._places[chunk]

    def arrived(self, blob: Digest, offset: int, chunk: Digest) -> None:
        """The bytes of a chunk are in their place in a blob that has a list."""
        self._places[chunk] = blob, offset

    async def here(self, chunks: Sequence[Digest]) -> dict[Digest, bytes]:
        """The bytes of those that are on this machine."""
        places = {chunk: self._places.get(chunk) for chunk in chunks}
        return await in_thread(self._read, places)

    def _read(self, places: dict[Digest, tuple[Digest, int] | None]) -> dict[Digest, bytes]:
        found = {}
        for chunk, place in places.items():
            try:
                data = self._local.read(chunk)
                if data is None and place is not None:
                    data = self._read_place(chunk, *place)
            except (OutputdError, OSError) as error:
                _log.debug("chunk %s: cannot be read here: %s", chunk, error)  # then the remote has it
                continue
            if data is not None:
                found[chunk] = data
        return found

    def _read_place(self, chunk: Digest, blob: Digest, offset: int) -> bytes | None:
        fd = self._local.open(blob)
        if fd is None:
            fd = self._partials.open_to_read(blob)
        if fd is None:
            return None
        try:
            data = os.pread(fd, chunk.size, offset)
        finally:
            os.close(fd)
        return data if Digest.of(chunk.function, data) == chunk else None


class ChunkedBlob:
    """One blob that is read in parts, as far as its chunks are known. For one event loop."""

    def __init__(self, partial: PartialBlob, lists: ChunkLists) -> None:
        self._partial = partial
        self._lists = lists
        self._list: ChunkList | None = None
        self._here = bytearray()
        """By chunk of the list, whether its bytes are in the file; those that came before the list was known do not count."""
        self._impatient = False

    def ready(self, remote: RemoteBlobs) -> bool:
        """Whether the chunks are known, or are not to be waited for; else the server is asked for them."""
        return self._lists.ask(self._partial.digest, remote) is None or self._impatient

    async def told(self, remote: RemoteBlobs) -> None:
        """Return when that is so."""
        asked = self._lists.ask(self._partial.digest, remote)
        if asked is None or self._impatient:
            return
        try:
            async with asyncio.timeout(_PATIENCE):
                await asked.wait()
        except TimeoutError:
            if not self._impatient:
                self._impatient = True
                _log.info(
                    "blob %s: the server takes long to tell its chunks; what is read meanwhile is not verified",
                    self._partial.digest,
                )

    def stretches(self, start: int, end: int) -> Iterator[Stretch] | None:
        """The chunks that have these bytes and are not here, some at a time; None: the bytes come in plain ranges."""
        known = self._known()
        return None if known is None else self._stretches(known, start, end)

    async def bring(self, stretch: Stretch, remote: RemoteBlobs) -> None:
        """Have the bytes of these chunks in the file, verified. Raises what RemoteBlobs.read_batch raises or answers, and OSError.

        Where it turns out that the server's list is none, this returns without them, and the blob comes in plain ranges.
        """
        known, chunks = stretch
        blob = self._partial.digest
        wanted = known.digests[chunks.start : chunks.stop]
        found = await self._lists.here(wanted)
        absent = {chunk for chunk in wanted if chunk not in found}
        for last in (False, True):
            if not absent:
                break
            answers = await remote.read_batch(absent, part_of=blob)
            for chunk, answer in answers.items():
                if isinstance(answer, bytes):
                    found[chunk] = answer
                    absent.discard(chunk)
                elif isinstance(answer, NotFound):
                    self.distrust(f"the server tells of a chunk that it has not: {answer}")
                    return
                elif last or not isinstance(answer, Corrupt):
                    raise answer
        await in_thread(self._write, stretch, found)
        if self._known() is known:  # else what counts as here is not told by these chunks any more
            for index in chunks:
                self._arrived(known, index)

    def distrust(self, reason: str) -> None:
        """Go on with plain ranges: the list is wrong."""
        if self._known() is not None:
            self._lists.reject(self._partial.digest)
            _log.warning("blob %s: %s; it is read in plain ranges", self._partial.digest, reason)

    def _known(self) -> ChunkList | None:
        found = self._lists.find(self._partial.digest)
        if found is not self._list:
            self._list = found
            self._here = bytearray(0 if found is None else len(found.digests))
        return found

    def _stretches(self, known: ChunkList, start: int, end: int) -> Iterator[Stretch]:
        first: int | None = None
        span = known.spanning(start, end)
        for index in span:
            if first is not None and (
                self._here[index] or known.offsets[index + 1] - known.offsets[first] > _TOGETHER
            ):
                yield Stretch(known, range(first, index))
                first = None
            if first is None and not self._here[index]:
                first = index
        if first is not None:
            yield Stretch(known, range(first, span.stop))

    def _write(self, stretch: Stretch, found: Mapping[Digest, bytes]) -> None:
        known, chunks = stretch
        for index in chunks:
            self._partial.write(known.offsets[index], found[known.digests[index]])

    def _arrived(self, known: ChunkList, index: int) -> None:
        self._here[index] = 1
        # With its neighbours: a granule that two chunks share counts once both are here.
        first = self._here.rfind(0, 0, index) + 1
        stop = self._here.find(0, index)
        self._partial.fill(known.offsets[first], known.offsets[stop if stop >= 0 else len(self._here)])
        self._lists.arrived(self._partial.digest, known.offsets[index], known.digests[index])


def _cost(chunks: ChunkList | None) -> int:
    return 1 if chunks is None else len(chunks.digests)
