"""Builds on a real state directory and a real local store, with a remote CAS that is a dict and a kernel that only listens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Any

from outputd.builds.builds import BuildRequest, Builds, Options
from outputd.builds.healing import Healing
from outputd.builds.journals import Journals
from outputd.builds.leases import Leases
from outputd.builds.presence import LeaseOptions, Presence
from outputd.builds.state import State
from outputd.digest import Digest, DigestFunction
from outputd.disk.disk import Disk, RealDisk
from outputd.drive.content import Content
from outputd.drive.ingest import Ingest
from outputd.drive.loader import Loader
from outputd.drive.private_files import PrivateFiles
from outputd.drive.reaper import Reaper
from outputd.errors import NotFound, OutputdError
from outputd.store.base import BlobStore, Ranges
from outputd.store.disk_store import DiskStore
from outputd.tree.identity import remember_all
from outputd.tree.node import Child, Directory, File, Local, Node, Symlink, packed_content
from outputd.tree.status import Status
from outputd.tree.tree import Tree

SHA256 = DigestFunction.SHA256
SECOND = 1_000_000_000
BASE = "9da951b8cb759233037166e28f7ea186"
PREFIX = "/home/ed/mnt/outputs"
EXECROOT = "/home/ed/.cache/bazel/x/execroot/ws"


class Cas:
    """A BlobStore: the local store, and behind it a dict that can lose blobs and be out of reach."""

    def __init__(self, local: DiskStore) -> None:
        self.local = local
        self.blobs: dict[Digest, bytes] = {}
        self.lost: set[Digest] = set()
        """What `find_missing` calls missing, besides what nobody ever had."""
        self.down: OutputdError | None = None
        self.asked: list[set[Digest]] = []
        """The questions of `find_missing` and `missing_remotely`."""
        self.uploaded: list[Digest] = []
        self.read_digests: list[Digest] = []
        self.instances: set[str] = set()
        """REv2 instance names that were asked for."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.vouches = True
        """Say of blobs that were never uploaded that they are there: tests stage by digest what nobody reads."""

    def of_instance(self, name: str) -> BlobStore:
        self.instances.add(name)
        return self

    def add(self, data: bytes, function: DigestFunction = SHA256) -> Digest:
        digest = Digest.of(function, data)
        self.blobs[digest] = data
        return digest

    async def fetch(self, digest: Digest) -> None:
        if self.local.has(digest):
            return
        await self.gate.wait()
        if self.down is not None:
            raise self.down
        if digest not in self.blobs or digest in self.lost:
            raise NotFound(f"blob {digest}: is nowhere")
        self.local.put(digest, self.blobs[digest])

    async def fetch_many(self, digests: Collection[Digest]) -> dict[Digest, Exception]:
        raise AssertionError("not asked by builds")

    async def read(self, digest: Digest) -> bytes:
        self.read_digests.append(digest)
        await self.fetch(digest)
        data = self.local.read(digest)
        assert data is not None
        return data

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        return self.local.missing(await self.missing_remotely(digests))

    def ranges(self, digest: Digest) -> Ranges | None:
        return None

    async def missing_remotely(self, digests: Collection[Digest]) -> set[Digest]:
        self.asked.append(set(digests))
        await self.gate.wait()
        if self.down is not None:
            raise self.down
        return {d for d in digests if d in self.lost or not (self.vouches or d in self.blobs)}

    async def write(self, digest: Digest, data: AsyncIterator[bytes]) -> None:
        if self.down is not None:
            raise self.down
        assert self.local.has(digest), "what builds upload is in the local store"
        self.lost.discard(digest)
        self.uploaded.append(digest)

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, OutputdError]:
        raise AssertionError("not asked by builds")


NAMELESS = ("", None)
"""What the kernel is told of a file that has lost its last name: its link count has changed, for whoever has it open."""


class Kernel:
    """A KernelCache that writes down what it is told, as `path of the directory` and name."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bytes | None]] = []

    async def invalidate(self, stale: list[tuple[Node, bytes | None]]) -> None:
        self.told += [(path_of(directory), name) for directory, name in stale]


class World:
    """One run of a daemon, without its mount and its server."""

    def __init__(
        self,
        path: str,
        tasks: asyncio.TaskGroup,
        options: Mapping[str, bool | int],
        timeout: float,
        disk: Disk,
    ) -> None:
        self.later = 0
        """By how much this world's clock is ahead, in nanoseconds."""
        self.disk = disk
        self.state = State(f"{path}/state", self.disk)
        self.store = DiskStore(f"{path}/cache", self.disk)
        self.cas = Cas(self.store)
        self.kernel = Kernel()
        self.tree = Tree(uid=os.getuid(), gid=os.getgid(), now=time.time_ns())
        private = PrivateFiles(self.disk, self.store.private)
        self.ingest = Ingest(self.tree, self.store, private)
        self.content = Content(
            self.tree,
            self.cas,
            private,
            tasks,
            read_timeout=timeout,
            closed=self.ingest.closed,
            gone=lambda file: self.builds.gone(file),
        )
        self.loader = Loader(self.state, self.cas, tasks, max_tree_bytes=1 << 20, timeout=timeout)
        self.reaper = Reaper(self.tree, self.content)
        self.leases = Leases(f"{path}/cache", str, self.disk)
        self.healing = Healing(self.cas)
        self.presence = Presence(
            self.loader,
            self.cas,
            self.leases,
            self.healing,
            LeaseOptions(
                duration=int(options.get("lease", 3600)) * SECOND,
                always_asked=int(options.get("always_asked", 1000)),
                patience=int(options.get("patience", 30 * SECOND)),
                local_only=bool(options.get("local_only", False)),
            ),
            now=self.now,
        )
        self.builds = Builds(
            self.tree,
            self.loader,
            self.content,
            self.ingest,
            self.reaper,
            self.cas,
            self.state,
            Journals(f"{path}/state/journals", self.disk),
            self.kernel,
            self.presence,
            Options(
                local_only=bool(options.get("local_only", False)),
                initial_contents=bool(options.get("initial_contents", False)),
                max_tree_bytes=int(options.get("max_tree_bytes", 1 << 20)),
            ),
        )

    def now(self) -> int:
        return time.time_ns() + self.later

    async def start(self, build_id: str = "b1", base: str = BASE, **changes: Any) -> None:
        """StartBuild as Bazel sends it."""
        await self.builds.start(request(build_id, base, **changes))

    async def finalize(self, build_id: str = "b1", *, successful: bool = True) -> None:
        """FinalizeBuild, and the checkpoint that follows it."""
        self.builds.finalize_build(build_id, successful=successful)
        await self.builds.checkpoints.all()

    def root(self, base: str = BASE) -> Directory:
        node = self.tree.lookup(self.tree.outputs, base.encode())
        assert isinstance(node, Directory)
        return node

    def at(self, path: str, base: str = BASE) -> Node | None:
        """The node at a plain path, all of it loaded."""
        node: Node | None = self.root(base)
        for name in path.encode().split(b"/"):
            assert isinstance(node, Directory)
            node = self.tree.lookup(node, name)
        return node

    async def load(self, base: str = BASE) -> None:
        """Expand everything."""
        stack: list[Child] = [self.root(base)]
        while stack:
            node = stack.pop()
            if isinstance(node, Directory):
                await self.loader.load(node)
                stack.extend(self.tree.children(node).values())

    async def listing(self, base: str = BASE) -> dict[str, object]:
        """Every path below an output path: a file's digest, a symlink's target, None for a directory."""
        await self.load(base)
        found: dict[str, object] = {}
        stack: list[tuple[str, Directory]] = [("", self.root(base))]
        while stack:
            prefix, directory = stack.pop()
            for name, node in self.tree.children(directory).items():
                path = prefix + name.decode(errors="surrogateescape")
                if isinstance(node, Directory):
                    found[path + "/"] = None
                    stack.append((path + "/", node))
                elif isinstance(node, bytes):
                    found[path] = packed_content(node)
                elif isinstance(node, File):
                    found[path] = node.content
                elif isinstance(node, Symlink):
                    found[path] = node.target
                else:
                    found[path] = type(node).__name__
        return found

    async def stage(self, *items: tuple[str, object], build_id: str = "b1") -> list[OutputdError | None]:
        """StageArtifacts."""
        async with self.builds.staging(build_id) as staging:
            return await staging.place([(path.encode(), content) for path, content in items])  # type: ignore[misc]

    def write(self, path: str, data: bytes, base: str = BASE, *, close: bool = True) -> File:
        """Create a file as a local action does through the mount."""
        directory, name = self._parent(path, base)
        local, fd = self.content.private.new()
        file = File(0o100644, time.time_ns(), local)
        assert (
            self.tree.create(directory, name, file, uid=os.getuid(), gid=os.getgid(), now=time.time_ns())
            is Status.OK
        )
        opened = self.content.open_created(file, fd)
        self.content.write(opened, 0, memoryview(data), append=False)
        if close:
            self.content.release(opened, writing=True)
        return file

    def symlink(self, path: str, target: str, base: str = BASE) -> None:
        directory, name = self._parent(path, base)
        link = Symlink(target.encode(), time.time_ns())
        assert (
            self.tree.create(directory, name, link, uid=os.getuid(), gid=os.getgid(), now=time.time_ns())
            is Status.OK
        )

    def mkdir(self, path: str, base: str = BASE) -> None:
        directory, name = self._parent(path, base)
        made = self.tree.make_directory(
            directory, name, 0o755, uid=os.getuid(), gid=os.getgid(), now=time.time_ns()
        )
        assert isinstance(made, Directory)

    def unlink(self, path: str, base: str = BASE) -> None:
        directory, name = self._parent(path, base)
        assert self.tree.unlink(directory, name, time.time_ns()) is Status.OK

    def close(self, file: File) -> None:
        """Close the writing handle that `write` left open."""
        assert isinstance(file.content, Local)
        self.content.release(self.content._open[file], writing=True)
        self.reaper.wake()

    def private_files(self) -> list[str]:
        return sorted(os.listdir(self.store.private))

    def _parent(self, path: str, base: str) -> tuple[Directory, bytes]:
        head, _, name = path.rpartition("/")
        directory = self.at(head, base) if head else self.root(base)
        assert isinstance(directory, Directory)
        return directory, name.encode()


async def until(condition: Callable[[], object]) -> None:
    """Let others run until it is so. For what has no event to wait for; the test's own limit ends it."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


def request(build_id: str, base: str = BASE, **changes: Any) -> BuildRequest:
    fields: dict[str, Any] = {
        "instance_name": "main",
        "function": SHA256,
        "prefix": PREFIX,
        "aliases": {f"{EXECROOT}/bazel-out": "."},
    }
    return BuildRequest(base, build_id, **(fields | changes))


def path_of(node: Node) -> str:
    names: list[str] = []
    walk: Node | None = node
    while walk is not None and walk.parent is not None:
        names.append(walk.name.decode())
        walk = walk.parent
    return "/".join(reversed(names))


def seen(w: World, *directories: Directory) -> None:
    """Let the kernel hold references of these directories, and all that lies in them by now."""
    for directory in directories:
        remember_all(directory, list(w.tree.children(directory)))
        assert directory.parent is not None
        w.tree.remember(directory, directory.parent)


@contextlib.asynccontextmanager
async def world(
    path: object,
    *,
    timeout: float = 5.0,
    crash: bool = False,
    disk: Disk | None = None,
    **options: bool | int,
) -> AsyncIterator[World]:
    """A World that has restored what an earlier one on the same path saved. With `crash` it ends without saving."""
    async with asyncio.TaskGroup() as tasks:
        w = World(str(path), tasks, options, timeout, disk or RealDisk())
        background = [
            tasks.create_task(w.ingest.run()),
            tasks.create_task(w.reaper.run()),
        ]
        try:
            await w.builds.restore()
            await w.ingest.settle()
            yield w
            if not crash:
                await w.builds.checkpoints.all()
        finally:
            for task in background:
                task.cancel()
            await w.leases.close()
            await w.state.close()
            w.store.close()
