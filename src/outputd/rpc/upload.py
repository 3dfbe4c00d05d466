"""One blob on its way into the store, over as many calls as it takes; never looks at a protocol message.

The store takes an upload as one stream, while the client's stream may break and be continued by another call. So the
store's side runs as a task of its own, which waits a while for the next call, and calls push pieces to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from outputd.digest import Digest
from outputd.errors import TimedOut, Unavailable
from outputd.rpc.edge import outcome
from outputd.store.base import BlobStore

# Pieces that may wait for the store; then the client waits, by HTTP/2 flow control.
_WAITING: Final = 2


class Upload:
    """Pieces go in at one end by `push`, the store takes them at the other end in `run`."""

    def __init__(self, digest: Digest, *, patience: float) -> None:
        """`patience`: seconds to wait for a next piece before the upload is given up."""
        self.digest = digest
        self.received = 0
        """Bytes taken in order so far: where a next call has to go on."""
        self.feeder: object | None = None
        """The call that feeds it now; None while nobody does."""
        self._patience = patience
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._taken = asyncio.Event()
        self._ended = asyncio.Event()
        self._error: Exception | None = Unavailable("this upload was begun anew, or given up; begin it again")

    async def run(self, store: BlobStore) -> None:
        """The store's side: returns when the upload has ended in whatever way, raises nothing but cancellation."""
        async with aclosing(self._feed()) as pieces:
            result = await outcome(store.write(self.digest, pieces))
        self._error = result if isinstance(result, Exception) else None

    def end(self) -> None:
        """To be called when `run` is over, or was cancelled before it began: nobody takes pieces any more."""
        self._ended.set()
        self._taken.set()

    async def room(self) -> bool:
        """Wait until a piece may be pushed. False when the store has the blob already; raises what stopped it.

        Another call may have come and pushed in the meantime: look at `feeder` and `received` again.
        """
        while not self._ended.is_set() and self._pieces.qsize() >= _WAITING:
            self._taken.clear()
            await self._taken.wait()
        return not self._complete()

    def push(self, piece: bytes) -> None:
        """The next bytes. Never waits, so that what is counted is never lost with a call that breaks."""
        self._pieces.put_nowait(piece)
        self.received += len(piece)

    async def finish(self) -> None:
        """There are no more pieces; return when the store has the blob. Raises what stopped it."""
        self._pieces.put_nowait(None)
        await self._ended.wait()
        self._complete()

    def _complete(self) -> bool:
        if self._ended.is_set() and self._error is not None:
            raise self._error
        return self._ended.is_set()

    async def _feed(self) -> AsyncGenerator[bytes, None]:
        while True:
            try:
                async with asyncio.timeout(self._patience):
                    piece = await self._pieces.get()
            except TimeoutError as error:
                raise TimedOut(
                    f"upload of {self.digest}: nothing came for {self._patience:g} s after {self.received} bytes"
                ) from error
            self._taken.set()
            if piece is None:
                return
            yield piece
