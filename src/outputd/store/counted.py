"""A remote that tells what came from it, blob by blob; changes nothing of it and decides nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import TypeAlias

from outputd.digest import Digest
from outputd.errors import OutputdError
from outputd.store.base import Piece, RemoteAbilities, RemoteBlobs

Arrived: TypeAlias = Callable[[Digest, int], object]
"""Told of each blob, or piece of a large one, and how many bytes came."""


class Counted:
    """A RemoteBlobs around another one, which whoever made that closes."""

    def __init__(self, remote: RemoteBlobs, arrived: Arrived) -> None:
        self._remote = remote
        self._arrived = arrived

    async def abilities(self) -> RemoteAbilities:
        return await self._remote.abilities()

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        return await self._remote.find_missing(digests)

    async def read_batch(
        self, digests: Collection[Digest], *, part_of: Digest | None = None
    ) -> Mapping[Digest, bytes | OutputdError]:
        found = await self._remote.read_batch(digests, part_of=part_of)
        for digest, data in found.items():
            if isinstance(data, bytes):
                self._arrived(part_of or digest, len(data))
        return found

    async def read_stream(self, digest: Digest, offset: int = 0, limit: int = 0) -> AsyncGenerator[Piece]:
        async with aclosing(self._remote.read_stream(digest, offset, limit)) as pieces:
            async for piece in pieces:
                self._arrived(digest, len(piece))
                yield piece

    async def split(self, digest: Digest) -> Sequence[Digest] | None:
        return await self._remote.split(digest)

    async def write(self, digest: Digest, data: Callable[[], AsyncGenerator[bytes]]) -> None:
        await self._remote.write(digest, data)

    async def write_batch(self, blobs: Mapping[Digest, bytes]) -> Mapping[Digest, OutputdError]:
        return await self._remote.write_batch(blobs)

    def of_instance(self, name: str) -> Counted:
        return Counted(self._remote.of_instance(name), self._arrived)

    async def close(self) -> None:
        await self._remote.close()
