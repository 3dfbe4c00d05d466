"""The calls of the client, one of each kind, and what they are fed with."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from outputd.digest import Digest, DigestFunction
from outputd.errors import OutputdError
from outputd.store.remote import RemoteStore
from tests.unit.store.fake_remote import FakeRemote

SHA256 = DigestFunction.SHA256
Code = grpc.StatusCode


async def stream(client: RemoteStore, digest: Digest, offset: int = 0) -> bytes:
    async with aclosing(client.read_stream(digest, offset)) as pieces:
        return b"".join([piece async for piece in pieces])


def source(data: bytes, piece: int = 60_000) -> Callable[[], AsyncGenerator[bytes]]:
    async def pieces() -> AsyncGenerator[bytes]:
        for start in range(0, len(data), piece):
            yield data[start : start + piece]

    return pieces


def absent(data: bytes) -> Digest:
    return Digest.of(SHA256, data)


async def find(fake: FakeRemote, client: RemoteStore) -> None:
    await client.find_missing([absent(b"x")])


async def read_batch(fake: FakeRemote, client: RemoteStore) -> None:
    [answer] = (await client.read_batch([fake.add(b"data")])).values()
    if isinstance(answer, OutputdError):
        raise answer
    assert answer == b"data"


async def read_stream(fake: FakeRemote, client: RemoteStore) -> None:
    assert await stream(client, fake.add(b"data")) == b"data"


async def write(fake: FakeRemote, client: RemoteStore) -> None:
    await client.write(absent(b"new"), source(b"new"))


async def write_batch(fake: FakeRemote, client: RemoteStore) -> None:
    for error in (await client.write_batch({absent(b"new"): b"new"})).values():
        raise error


Operation = Callable[[FakeRemote, RemoteStore], Coroutine[Any, Any, None]]
OPERATIONS: dict[str, Operation] = {
    "FindMissingBlobs": find,
    "BatchReadBlobs": read_batch,
    "Read": read_stream,
    "Write": write,
    "BatchUpdateBlobs": write_batch,
}
