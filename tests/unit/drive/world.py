"""A tree with content, on a real local store and a remote that is a dict; for tests of drive and of the fronts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Collection, Mapping

from outputd.digest import Digest, DigestFunction
from outputd.disk.disk import RealDisk
from outputd.drive.content import Content
from outputd.drive.driver import Driver
from outputd.drive.ingest import Ingest
from outputd.drive.loader import Loader
from outputd.drive.private_files import PrivateFiles
from outputd.drive.reaper import Reaper
from outputd.errors import NotFound, OutputdError
from outputd.store.base import BlobStore, Ranges
from outputd.store.disk_store import DiskStore
from outputd.tree.node import EXECUTABLE_MODE, Directory, File, Volume
from outputd.tree.tree import Tree

SHA256 = DigestFunction.SHA256


class DictRemote:
    """A BlobStore whose remote is a dict; `gate` can hold fetches back, `fetched` lists them."""

    def __init__(self, local: DiskStore) -> None:
        self.local = local
        self.blobs: dict[Digest, bytes] = {}
        self.fetched: list[Digest] = []
        self.batches: list[int] = []
        """Sizes of what `fetch_many` was asked for."""
        self.gate = asyncio.Event()
        self.gate.set()

    def of_instance(self, name: str) -> BlobStore:
        return self

    async def fetch(self, digest: Digest) -> None:
        if self.local.has(digest):
            return
        self.fetched.append(digest)
        await self.gate.wait()
        if digest not in self.blobs:
            raise NotFound(f"blob {digest} is nowhere")
        self.local.put(digest, self.blobs[digest])

    async def fetch_many(self, digests: Collection[Digest]) -> dict[Digest, Exception]:
        """Ahead of readers."""
        self.batches.append(len(digests))
        for digest in digests:
            if digest in self.blobs:
                self.local.put(digest, self.blobs[digest])
        return {}

    async def read(self, digest: Digest) -> bytes:
        await self.fetch(digest)
        data = self.local.read(digest)
        assert data is not None
        return data

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        raise AssertionError("not asked by drive")

    def ranges(self, digest: Digest) -> Ranges | None:
        return None

    async def missing_remotely(self, digests: Collection[Digest]) -> set[Digest]:
        raise AssertionError("not asked by drive")

    async def write(self, digest: Digest, data: AsyncIterator[bytes]) -> None:
        raise AssertionError("not asked by drive")

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, OutputdError]:
        raise AssertionError("not asked by drive")


class Objects:
    """Directory messages and records in memory."""

    def __init__(self) -> None:
        self.directories: dict[Digest, bytes] = {}
        self.records: dict[bytes, bytes] = {}

    def directory(self, digest: Digest) -> bytes | None:
        return self.directories.get(digest)

    def record(self, digest: bytes) -> bytes | None:
        return self.records.get(digest)

    def keep_directories(self, messages: Mapping[Digest, bytes]) -> None:
        self.directories.update(messages)


class World:
    """Everything drive has, around one output path."""

    def __init__(self, path: str, tasks: asyncio.TaskGroup, read_timeout: float) -> None:
        self.store = DiskStore(path, RealDisk())
        self.remote = DictRemote(self.store)
        self.objects = Objects()
        self.tree = Tree(uid=os.getuid(), gid=os.getgid(), now=time.time_ns())
        self.volume: Volume = self.tree.add_volume(1, b"base", time.time_ns())
        self.root: Directory = self.volume.root
        private = PrivateFiles(RealDisk(), self.store.private)
        self.ingest = Ingest(self.tree, self.store, private)
        self.content = Content(
            self.tree,
            self.remote,
            private,
            tasks,
            read_timeout=read_timeout,
            closed=self.ingest.closed,
        )
        self.loader = Loader(self.objects, self.remote, tasks, max_tree_bytes=1 << 20, timeout=read_timeout)
        self.driver = Driver(self.loader, self.content)
        self.reaper = Reaper(self.tree, self.content)

    def staged(self, name: bytes, data: bytes, *, local: bool = False, known: bool = True) -> File:
        """A staged file whose bytes lie in the remote, or `local`ly too, or (not `known`) nowhere."""
        digest = Digest.of(SHA256, data)
        if known:
            self.remote.blobs[digest] = data
        if local:
            self.store.put(digest, data)
        file = File(EXECUTABLE_MODE, time.time_ns(), digest)
        self.tree.place(self.root, name, file, file.mtime)
        return file

    def written(self, name: bytes, data: bytes) -> File:
        """A file written by a local action and closed."""
        local, fd = self.content.private.new()
        file = File(0o100644, time.time_ns(), local)
        self.tree.place(self.root, name, file, file.mtime)
        opened = self.content.open_created(file, fd)
        self.content.write(opened, 0, memoryview(data), append=False)
        self.content.release(opened, writing=True)
        return file

    def private_files(self) -> list[str]:
        return os.listdir(self.store.private)


@contextlib.asynccontextmanager
async def world(path: object, read_timeout: float = 5.0) -> AsyncIterator[World]:
    """A World whose background tasks run."""
    async with asyncio.TaskGroup() as tasks:
        made = World(str(path), tasks, read_timeout)
        background = [
            tasks.create_task(made.ingest.run()),
            tasks.create_task(made.reaper.run()),
            tasks.create_task(made.content.read_ahead.run()),
        ]
        try:
            yield made
        finally:
            for task in background:
                task.cancel()
            made.store.close()
