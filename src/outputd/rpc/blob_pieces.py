"""A blob of the local store in pieces; never fetches one."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator

from outputd.digest import Digest
from outputd.errors import Corrupt, Unavailable
from outputd.rpc.limits import PIECE
from outputd.store.base import LocalStore


async def blob_pieces(
    local: LocalStore, digest: Digest, offset: int, end: int
) -> AsyncGenerator[bytes, None]:
    """The bytes from `offset` to `end`. Raises Unavailable when the blob went away, Corrupt when its file is too short.

    Reading 512 KiB of a local disk takes less than handing it to a thread.
    """
    descriptor = local.open(digest)
    if descriptor is None:
        raise Unavailable(f"{digest}: removed from the local store while it was asked for; ask again")
    try:
        while offset < end:
            piece = _pread(descriptor, min(PIECE, end - offset), offset, digest)
            if not piece:
                raise Corrupt(f"{digest}: its file in the local store ends at {offset}")
            yield piece
            offset += len(piece)
    finally:
        os.close(descriptor)


def _pread(descriptor: int, count: int, offset: int, digest: Digest) -> bytes:
    try:
        return os.pread(descriptor, count, offset)
    except OSError as error:
        raise Unavailable(
            f"{digest}: its file in the local store cannot be read at {offset}: {error}"
        ) from error
