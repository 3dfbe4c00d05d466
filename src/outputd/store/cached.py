"""The local store before the remote one: what is not here is brought once, verified, and kept; never talks a protocol.

Small blobs asked for in the same turn of the loop travel in one batch, large ones stream into the local store while they are
hashed. Bytes that do not match their digest are asked for once more, and never kept.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial as bound
from types import TracebackType
from typing import Final, Self

from outputd.digest import Digest
from outputd.errors import Corrupt, NotFound, OutputdError, Unavailable, Unreachable
from outputd.store.base import BlobWriter, LocalStore, Piece, RemoteBlobs
from outputd.store.batches import batches
from outputd.store.chunked import ChunkLists
from outputd.store.flight import Departure, Flight
from outputd.store.partial import PartialBlob
from outputd.store.partials import Partials
from outputd.store.ranged import RangedBlob, RangedReading
from outputd.store.urgency import carrying
from outputd.store.waiting import in_thread

_log = logging.getLogger(__name__)

# A blob up to this size travels in a batch: one round trip for many, and in memory as a whole.
_SMALL: Final = 256 << 10
_BATCH_BYTES: Final = 2 << 20
# Of what is given to the remote while a client waits to be told what it lacks: a second on a line of 64 Mbit/s.
_PROVIDED_BYTES: Final = 8 << 20
# What is written or read in one go by a thread; hashing it takes about 0.5 ms.
_STRIDE: Final = 256 << 10
# Up to here it is over before a thread has started: some lookups, some small files.
_LOOKUPS_HERE: Final = 200
_PUTS_HERE: Final = 2
_BYTES_HERE: Final = 64 << 10
# From here on only what is read of a blob is fetched, and a little ahead; below, a round trip costs as much as the rest.
_RANGED: Final = 4 << 20
# Instance names in use at once before idle ones are let go: a client may send any name.
_SIBLINGS: Final = 100
# Flights of one fetch_many at the same time, and how many of them begin before the loop gets its turn.
_WINDOW: Final = 2_000
_BOARDINGS_A_TURN: Final = 250


class CachedStore:
    """A BlobStore. Use as an asynchronous context manager, which owns the tasks of all flights. For one event loop."""

    def __init__(
        self,
        local: LocalStore,
        remote: RemoteBlobs | None,
        partials: Partials | None = None,
        spoilt: Callable[[Digest], object] = lambda _: None,
    ) -> None:
        """Without `partials` every blob is fetched as a whole, and verified before anybody sees a byte of it. `spoilt` is told of
        one of which wrong bytes were read."""
        self._local = local
        self._remote = remote
        self._partials = partials
        self._spoilt = spoilt
        self._ranged: dict[Digest, RangedBlob] = {}
        """Blobs of which only what is read is fetched."""
        self._flights: dict[Digest, Flight] = {}
        """Those that are not over."""
        self._gate: list[Flight] = []
        """Small ones that leave together at the next turn of the loop."""
        self._tasks = asyncio.TaskGroup()
        self._lists = None if partials is None else ChunkLists(local, partials, self._tasks)
        self._closed = True
        self._siblings: dict[str, CachedStore] = {}
        """The same for other instance names of the remote."""

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._closed = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for store in (self, *self._siblings.values()):
            store._closed = True
            for flight in list(store._flights.values()):
                flight.close(Unavailable("the store is closing"))
        if self._lists is not None:
            self._lists.close()
        await self._tasks.__aexit__(kind, error, traceback)
        for blob in self._ranged.values():
            blob.save()

    @property
    def local(self) -> LocalStore:
        return self._local

    def of_instance(self, name: str) -> CachedStore:
        if not name or self._remote is None:
            return self
        sibling = self._siblings.get(name)
        if sibling is None:
            if len(self._siblings) >= _SIBLINGS:
                idle = [known for known, store in self._siblings.items() if not store._flights]
                for known in idle:
                    del self._siblings[known]
            sibling = self._siblings[name] = CachedStore(
                self._local, self._remote.of_instance(name), self._partials, self._spoilt
            )
            sibling._tasks = self._tasks
            sibling._ranged = self._ranged
            sibling._lists = self._lists
            sibling._closed = self._closed
        return sibling

    async def fetch(self, digest: Digest) -> None:
        if self._local.has(digest):
            return
        flight = self._board(digest)
        try:
            await flight.arrival()
        finally:
            self._leave(flight)

    def ranges(self, digest: Digest) -> RangedReading | None:
        if self._remote is None or digest.size < _RANGED or self._local.has(digest):
            return None
        blob = self._ranged_blob(digest)
        return None if blob is None else RangedReading(blob, self._remote)

    async def fetch_many(self, digests: Collection[Digest]) -> dict[Digest, Exception]:
        failures: dict[Digest, Exception] = {}
        missing = list(await self._missing_here(digests))
        for start in range(0, len(missing), _WINDOW):
            aboard: deque[Flight] = deque()
            try:
                for count, digest in enumerate(missing[start : start + _WINDOW], 1):
                    try:
                        aboard.append(self._board(digest))
                    except OutputdError as error:
                        failures[digest] = error
                    if count % _BOARDINGS_A_TURN == 0:
                        await asyncio.sleep(0)
                while aboard:
                    try:
                        await aboard[0].arrival()
                    except OutputdError as error:
                        failures[aboard[0].digest] = error
                    self._leave(aboard.popleft())
            finally:
                for flight in aboard:
                    self._leave(flight)
        return failures

    def under_way(self) -> Iterator[tuple[Flight, str]]:
        """What is being brought at this moment, each with the instance name it is asked of; empty for the one of the settings."""
        for name, store in (("", self), *self._siblings.items()):
            yield from ((flight, name) for flight in store._flights.values() if not flight.over)

    async def read(self, digest: Digest) -> bytes:
        data = await self._read_here(digest)
        if data is None:
            await self.fetch(digest)
            data = await self._read_here(digest)
        if data is None:
            raise NotFound(f"blob {digest} was stored and is gone again")
        return data

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        return await self._missing_here(await self.missing_remotely(digests))

    async def missing_remotely(self, digests: Collection[Digest]) -> set[Digest]:
        if self._remote is None:
            return set(digests)
        absent = await self._remote.find_missing(digests)
        await self._confirm([digest for digest in digests if digest not in absent])
        return absent

    async def provide(self, digests: Collection[Digest]) -> set[Digest]:
        if self._remote is None:
            return await self._missing_here(digests)
        absent = await self.missing_remotely(digests)
        blobs: dict[Digest, bytes] = {}
        room = _PROVIDED_BYTES
        for digest in absent - await self._missing_here(absent):
            if digest.size <= min(_SMALL, room):
                data = await self._read_here(digest)
                if data is not None:
                    blobs[digest] = data
                    room -= digest.size
        return absent.difference(blobs).union(await self.write_many(blobs))

    async def write(self, digest: Digest, data: AsyncIterator[bytes]) -> None:
        """As BlobStore says. `data` is not read when the blob is here already."""
        if not self._local.has(digest):
            await self._keep_stream(digest, data, local_only=True)
        if self._remote is None:
            return
        try:
            if digest.size <= _SMALL:
                failures = await self._remote.write_batch({digest: await self.read(digest)})
                if digest in failures:
                    raise failures[digest]
            else:
                await self._remote.write(digest, bound(self._pieces, digest))
        except Corrupt as error:
            raise _not_the_bytes(error) from error
        await self._confirm([digest])

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, OutputdError]:
        """As BlobStore says. The bytes of a blob that is here already are not looked at."""
        absent = await self._missing_here(blobs)
        failures = await self._keep({digest: blobs[digest] for digest in absent}, local_only=True)
        if self._remote is not None:
            kept = {digest: data for digest, data in blobs.items() if digest not in failures}
            try:
                refused = await self._remote.write_batch(kept)
            except Corrupt as error:
                raise _not_the_bytes(error) from error
            for digest, failure in refused.items():
                failures[digest] = _not_the_bytes(failure) if isinstance(failure, Corrupt) else failure
            await self._confirm([digest for digest in kept if digest not in refused])
        return failures

    def _board(self, digest: Digest) -> Flight:
        """Wait for a blob that is not here, with whoever waits for it already; `_leave` must follow.

        Raises NotFound or Unavailable.
        """
        flight = self._flights.get(digest)
        if flight is None or flight.over:
            flight = self._take_off(digest)
        flight.board()
        return flight

    def _leave(self, flight: Flight) -> None:
        flight.leave()
        self._tidy(flight)

    def _tidy(self, flight: Flight) -> None:
        if flight.over and self._flights.get(flight.digest) is flight:
            del self._flights[flight.digest]

    def _take_off(self, digest: Digest) -> Flight:
        if self._remote is None:
            raise NotFound(f"blob {digest} is not in the local store, and there is no remote to ask")
        if self._closed:
            raise Unavailable("the store is closing")
        flight = self._flights[digest] = Flight(digest)
        if digest.size > _SMALL:
            self._depart([flight], self._remote)
        else:
            self._gate.append(flight)
            if len(self._gate) == 1:
                asyncio.get_running_loop().call_soon(self._open_gate, self._remote)
        return flight

    def _open_gate(self, remote: RemoteBlobs) -> None:
        """Send the small ones off, in batches."""
        leaving = [flight for flight in self._gate if not flight.over]
        self._gate.clear()
        for urgent in (True, False):  # apart: who waits is not to wait for what nobody waits for
            wanted = {flight.digest: flight for flight in leaving if flight.urgent == urgent}
            for digests in batches(wanted, _BATCH_BYTES):
                self._depart([wanted[digest] for digest in digests], remote)

    def _depart(self, flights: Sequence[Flight], remote: RemoteBlobs) -> None:
        departure = Departure(flights)
        context = carrying(departure.errand)
        departure.carried_by(self._tasks.create_task(self._bring(departure, remote), context=context))

    async def _bring(self, departure: Departure, remote: RemoteBlobs) -> None:
        with departure as flights:
            if flights[0].digest.size > _SMALL:
                await self._bring_large(flights[0], remote)
            else:
                failures = await self._bring_small([flight.digest for flight in flights], remote)
                for flight in flights:
                    flight.land(failures.get(flight.digest))
        for flight in flights:
            self._tidy(flight)  # of one that nobody waits for any more no other end is noticed

    async def _bring_small(
        self, digests: Collection[Digest], remote: RemoteBlobs
    ) -> dict[Digest, OutputdError]:
        failures = await self._keep(await remote.read_batch(digests))
        wrong = [digest for digest, error in failures.items() if isinstance(error, Corrupt)]
        if wrong:
            for digest in wrong:
                del failures[digest]
            failures |= await self._keep(await remote.read_batch(wrong))
        return failures

    def _ranged_blob(self, digest: Digest) -> RangedBlob | None:
        """Raises Exhausted or Unavailable."""
        blob = self._ranged.get(digest)
        if blob is None and self._partials is not None and self._lists is not None and not self._closed:
            partial = self._partials.open(digest)
            blob = self._ranged[digest] = RangedBlob(
                partial, self._local, self._lists, self._tasks, self._ranged_ended, self._spoilt
            )
        return blob

    def _ranged_ended(self, partial: PartialBlob) -> None:
        del self._ranged[partial.digest]
        assert self._partials is not None
        self._partials.closed(partial)

    async def _bring_large(self, flight: Flight, remote: RemoteBlobs) -> None:
        if flight.digest.size >= _RANGED and (ranged := self._ranged_blob(flight.digest)) is not None:
            await ranged.whole(remote)
            if self._local.has(flight.digest):
                return
            # Its bytes were wrong, and are not kept: once more, in one piece.
        for last in (False, True):
            flight.received = 0
            try:
                async with (
                    aclosing(remote.read_stream(flight.digest)) as pieces,
                    aclosing(_counted(flight, pieces)) as counted,
                ):
                    await self._keep_stream(flight.digest, counted)
                return
            except Corrupt:
                if last:
                    raise

    async def _keep(
        self, blobs: Mapping[Digest, bytes | OutputdError], *, local_only: bool = False
    ) -> dict[Digest, OutputdError]:
        """Put into the local store what came; the failures of all."""

        def put_all() -> dict[Digest, OutputdError]:
            failures = {}
            for digest, data in blobs.items():
                try:
                    if isinstance(data, OutputdError):
                        failures[digest] = data
                    else:
                        self._local.put(digest, data, local_only=local_only)
                except OutputdError as error:
                    failures[digest] = error
            return failures

        few = len(blobs) <= _PUTS_HERE and sum(digest.size for digest in blobs) <= _BYTES_HERE
        return put_all() if few else await in_thread(put_all)

    async def _keep_stream(
        self, digest: Digest, data: AsyncIterator[Piece], *, local_only: bool = False
    ) -> None:
        """Put into the local store what comes, while it comes."""
        with self._local.writer(digest, local_only=local_only) as writer:
            pieces: list[Piece] = []
            size = 0
            async for piece in data:
                pieces.append(piece)
                size += len(piece)
                if size >= _STRIDE:
                    await in_thread(_write_all, writer, pieces)
                    pieces = []
                    size = 0
            if digest.size <= _BYTES_HERE:
                _finish(writer, pieces)
            else:
                await in_thread(_finish, writer, pieces)

    async def _pieces(self, digest: Digest) -> AsyncGenerator[bytes]:
        """A blob of the local store, for an upload."""
        fd = self._local.open(digest)
        if fd is None:
            raise NotFound(f"blob {digest} was stored and is gone again")
        try:
            for offset in range(0, digest.size, _STRIDE):
                yield await in_thread(os.pread, fd, _STRIDE, offset)
        except OSError as error:
            raise Unavailable(
                f"blob {digest}: cannot read it from the local store: {error.strerror}"
            ) from error
        finally:
            os.close(fd)

    async def _read_here(self, digest: Digest) -> bytes | None:
        if digest.size <= _BYTES_HERE:
            return self._local.read(digest)
        return await in_thread(self._local.read, digest)

    async def _confirm(self, digests: Sequence[Digest]) -> None:
        """The remote has these. That a mark cannot be set is no reason to fail: the blob is then kept for longer."""
        try:
            if len(digests) <= _LOOKUPS_HERE:
                self._local.confirm_remote(digests)
            else:
                await in_thread(self._local.confirm_remote, digests)
        except Unavailable as error:
            _log.warning("a blob stays marked as only here: %s", error)

    async def _missing_here(self, digests: Collection[Digest]) -> set[Digest]:
        if len(digests) <= _LOOKUPS_HERE:
            return self._local.missing(digests)
        return await in_thread(self._local.missing, digests)


def _not_the_bytes(error: Corrupt) -> Unreachable:
    """What a remote that talks nonsense about an upload is: what was sent to it was right."""
    return Unreachable(str(error))


async def _counted(flight: Flight, pieces: AsyncIterator[Piece]) -> AsyncGenerator[Piece]:
    async for piece in pieces:
        flight.received += len(piece)
        yield piece


def _write_all(writer: BlobWriter, pieces: list[Piece]) -> None:
    for piece in pieces:
        writer.write(piece)


def _finish(writer: BlobWriter, pieces: list[Piece]) -> None:
    _write_all(writer, pieces)
    writer.commit()
