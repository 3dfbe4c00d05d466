"""What the store's tests begin with: a fake remote on a socket, a client of it, a local store, one loop for all."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from outputd.disk.disk import RealDisk
from outputd.store.base import ServedBlobs
from outputd.store.cached import CachedStore
from outputd.store.disk_store import DiskStore
from outputd.store.remote import RemoteOptions, RemoteStore
from tests.unit.store.fake_remote import FakeRemote

PATIENT = RemoteOptions(timeout=5.0, retry_seconds=5.0)
"""For tests in which the last try succeeds: the limits are for a machine that stands still."""
HASTY = RemoteOptions(timeout=5.0, retry_seconds=0.2)
"""For tests in which the client gives up trying."""
IMPATIENT = RemoteOptions(timeout=0.1, retry_seconds=0.15)
"""For tests in which it gives up waiting. Nothing may be expected to succeed."""
BOUND = 20.0
"""Seconds in which everything must end that such a client begins, on a machine that stands still for a while."""


@asynccontextmanager
async def remote_world(options: RemoteOptions = PATIENT) -> AsyncIterator[tuple[FakeRemote, RemoteStore]]:
    # pytest's own directories have paths too long for a socket.
    with tempfile.TemporaryDirectory(prefix="outputd-test-") as directory:
        async with FakeRemote(f"{directory}/remote") as fake:
            client = RemoteStore(fake.url, options=options)
            try:
                yield fake, client
            finally:
                await client.close()


@asynccontextmanager
async def local_world() -> AsyncIterator[DiskStore]:
    with tempfile.TemporaryDirectory(prefix="outputd-test-") as directory:
        local = DiskStore(directory, RealDisk())
        yield local
        local.close()


@asynccontextmanager
async def cached_world(
    options: RemoteOptions = PATIENT,
) -> AsyncIterator[tuple[FakeRemote, DiskStore, ServedBlobs]]:
    async with (
        remote_world(options) as (fake, client),
        local_world() as local,
        CachedStore(local, client) as store,
    ):
        yield fake, local, store


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """One test in a loop of its own, which must end."""

    async def limited() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(limited())


async def until(condition: Callable[[], bool]) -> None:
    """Return when it holds, which must be soon."""
    end = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)
