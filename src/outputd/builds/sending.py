"""Blobs of the local store on their way to a remote: small ones in batches, large ones piece by piece, no faster than a rate. Never
decides what is to go, nor when it is tried again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from outputd.digest import Digest
from outputd.errors import NotFound, OutputdError, Unavailable
from outputd.store.base import LocalStore, RemoteBlobs
from outputd.store.batches import batches
from outputd.store.waiting import in_thread

_log = logging.getLogger(__name__)

BLOBS_A_QUESTION: Final = 10_000
"""As many as one call of FindMissingBlobs takes (store/remote/client.py)."""
BATCH_BYTES: Final = 2 << 20
_SMALL: Final = 256 << 10
"""A blob up to this size travels in a batch."""
_STRIDE: Final = 256 << 10
"""Bytes of a large blob that are read, and waited for by the rate, in one go."""


class Rate:
    """So many bytes in a second, on average; 0: as many as there are."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._free = 0.0
        """When all that was let through so far has had its time, by time.monotonic()."""

    async def spend(self, size: int) -> None:
        """Return when it is the turn of these bytes."""
        if self._rate:
            now = time.monotonic()
            wait = self._free - now
            self._free = max(self._free, now) + size / self._rate
            if wait > 0:
                await asyncio.sleep(wait)


class Sending:
    """To one remote."""

    def __init__(
        self,
        remote: RemoteBlobs,
        local: LocalStore,
        rate: Rate,
        *,
        of_one: Callable[[OutputdError], bool],
        sent: Callable[[Sequence[Digest]], object],
    ) -> None:
        """`of_one` tells the errors that say nothing of other blobs; all others are raised by whatever meets them. `sent` is told
        what the remote has taken, and when."""
        self._remote = remote
        self._local = local
        self._rate = rate
        self._of_one = of_one
        self._sent = sent

    async def blobs(self, digests: Collection[Digest]) -> dict[Digest, OutputdError]:
        """Send these, which the remote lacks; those that it did not get, with why. Raises Unavailable, too, when what lies here
        cannot be read."""
        failures: dict[Digest, OutputdError] = {}
        for some in batches((digest for digest in digests if digest.size <= _SMALL), BATCH_BYTES):
            here = await in_thread(self._read_all, some)
            for digest in some:
                if digest not in here:
                    failures[digest] = self._failed(_gone(digest))
            failures |= await self.batch(here)
            await in_thread(self._confirm, [digest for digest in here if digest not in failures])
        for digest in digests:
            if digest.size > _SMALL:
                try:
                    await self._remote.write(digest, partial(self._pieces, digest))
                except OutputdError as error:
                    failures[digest] = self._failed(error)
                else:
                    self._sent([digest])
                    self._confirm([digest])
        return failures

    async def batch(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, OutputdError]:
        """The same for some whose bytes are here, and may lie nowhere else."""
        if not blobs:
            return {}
        await self._rate.spend(sum(map(len, blobs.values())))
        refused = await self._remote.write_batch(blobs)
        self._sent([digest for digest in blobs if digest not in refused])
        return {digest: self._failed(error) for digest, error in refused.items()}

    # within

    def _failed(self, error: OutputdError) -> OutputdError:
        if not self._of_one(error):
            raise error
        return error

    def _confirm(self, digests: list[Digest]) -> None:
        try:
            self._local.confirm_remote(digests)
        except Unavailable as error:
            _log.warning("a blob stays marked as only here: %s", error)

    def _read_all(self, digests: Iterable[Digest]) -> dict[Digest, bytes]:
        """Those that are here."""
        found = {digest: self._local.read(digest) for digest in digests}
        return {digest: data for digest, data in found.items() if data is not None}

    async def _pieces(self, digest: Digest) -> AsyncGenerator[bytes]:
        """The bytes of a large blob, as fast as the rate allows."""
        fd = self._local.open(digest)
        if fd is None:
            raise _gone(digest)
        try:
            for offset in range(0, digest.size, _STRIDE):
                await self._rate.spend(min(_STRIDE, digest.size - offset))
                yield await in_thread(os.pread, fd, _STRIDE, offset)
        except OSError as error:
            raise Unavailable(
                f"blob {digest}: cannot read it from the local store: {error.strerror}"
            ) from error
        finally:
            os.close(fd)


def _gone(digest: Digest) -> NotFound:
    return NotFound(f"blob {digest}: nobody has it any more")
