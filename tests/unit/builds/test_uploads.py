"""Uploading what builds have made: parents after children, each blob once, the rest next time; a failure of one blob and of all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from outputd._proto import remote_execution_pb2 as reapi
from outputd.builds.output_base import OutputBase
from outputd.builds.sending import Rate
from outputd.builds.uploads import Uploads
from outputd.digest import Digest
from outputd.errors import Denied, Exhausted, OutputdError, Throttled, Unreachable
from outputd.store.base import RemoteAbilities
from tests.rev2_tree import Entry, Rev2Tree
from tests.unit.builds.world import SECOND, SHA256, World, until, world

LARGE = b"large" * 100_000


class Remote:
    """A RemoteBlobs that is a dict, and never takes a Directory message before what it names."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.asked: list[Digest] = []
        self.sent: list[Digest] = []
        self.refused: dict[Digest, OutputdError] = {}
        self.down: OutputdError | None = None
        self.instances: set[str] = set()
        self.directories: set[Digest] = set()
        """Those whose bytes are Directory messages, as far as the test knows."""

    async def abilities(self) -> RemoteAbilities:
        raise AssertionError("not asked")

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        if self.down is not None:
            raise self.down
        self.asked += digests
        return {digest for digest in digests if digest.size and digest not in self.blobs}

    async def read_batch(
        self, digests: Collection[Digest], *, part_of: Digest | None = None
    ) -> Mapping[Digest, bytes | OutputdError]:
        raise AssertionError("not asked")

    async def split(self, digest: Digest) -> Sequence[Digest] | None:
        raise AssertionError("not asked")

    def read_stream(self, digest: Digest, offset: int = 0, limit: int = 0) -> AsyncGenerator[bytes]:
        raise AssertionError("not asked")

    async def write(self, digest: Digest, data: Callable[[], AsyncGenerator[bytes]]) -> None:
        if digest in self.refused:
            raise self.refused[digest]
        self._take(digest, b"".join([piece async for piece in data()]))

    async def write_batch(self, blobs: Mapping[Digest, bytes]) -> Mapping[Digest, OutputdError]:
        for digest in blobs.keys() - self.refused.keys():
            self._take(digest, blobs[digest])
        return {digest: self.refused[digest] for digest in blobs if digest in self.refused}

    def of_instance(self, name: str) -> Remote:
        self.instances.add(name)
        return self

    async def close(self) -> None: ...

    def _take(self, digest: Digest, data: bytes) -> None:
        assert Digest.of(SHA256, data) == digest
        if digest in self.directories:
            message = reapi.Directory.FromString(data)
            named = [file.digest for file in message.files]
            named += [directory.digest for directory in message.directories]
            assert {Digest.parse(SHA256, one.hash, one.size_bytes) for one in named} <= {
                *self.blobs,
                Digest.of(SHA256, b""),
            }
        self.sent.append(digest)
        self.blobs[digest] = data


class Uploading:
    """A world with one output base, and the remote that it goes to."""

    def __init__(self, w: World, remote: Remote) -> None:
        self.w = w
        self.remote = remote
        self.uploads = Uploads(
            remote,
            w.store,
            w.state.directory,
            w.leases,
            trusted=3600 * SECOND,
            rates={"": Rate(0)},
            now=w.now,
        )

    @property
    def base(self) -> OutputBase:
        (base,) = self.w.builds.live()
        return base

    async def build(self, entries: Mapping[str, Entry], build_id: str = "b") -> Digest:
        """A build that makes these files here; the digest that its root has by our own reckoning."""
        await self.w.start(build_id)
        self._write(entries, "")
        await self.w.ingest.settle()
        await self.w.finalize(build_id)
        tree = Rev2Tree(entries)
        self.remote.directories |= {Digest.of(SHA256, message) for message in tree.directories}
        return Digest.of(SHA256, tree.directories[-1])

    async def upload(self) -> None:
        self.uploads.ask(self.base)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.uploads.run())
            queue = self.uploads._lanes[""].queue
            await until(lambda: queue.get(self.base, 1.0) and not self.base.upload.running)
            task.cancel()

    def _write(self, entries: Mapping[str, Entry], prefix: str) -> None:
        for name, entry in entries.items():
            path = prefix + name
            if isinstance(entry, bytes):
                self.w.write(path, entry)
            elif isinstance(entry, Mapping):
                self.w.mkdir(path)
                self._write(entry, path + "/")


@asynccontextmanager
async def uploading(path: Path, remote: Remote | None = None) -> AsyncIterator[Uploading]:
    async with world(path) as w:
        yield Uploading(w, remote or Remote())


TREE: Mapping[str, Entry] = {
    "a": b"one",
    "empty": b"",
    "d": {"b": b"two", "large": LARGE, "e": {"c": b"one", "nothing": {}}},
    "same": {"c": b"one", "nothing": {}},
}
BLOBS = 3 + 3  # one, two, large; e and same are equal, nothing is the empty blob


def test_the_whole_is_there_by_its_root_digest(tmp_path: Path) -> None:
    async def run() -> None:
        async with uploading(tmp_path) as u:
            root = await u.build(TREE)
            await u.upload()
            progress = u.base.upload
            assert progress.root == root == u.remote.sent[-1]
            assert (progress.error, progress.waiting) == ("", 0)
            assert sorted(set(u.remote.sent)) == sorted(u.remote.sent)
            assert progress.blobs == len(u.remote.sent) == BLOBS
            assert progress.bytes == sum(digest.size for digest in u.remote.sent)
            assert u.remote.instances == {"main"}
            assert u.w.store.only_here(u.remote.sent) == set(), "they may be evicted"

    asyncio.run(run())


def test_next_time_only_what_has_changed_is_asked_for(tmp_path: Path) -> None:
    async def run() -> None:
        async with uploading(tmp_path) as u:
            await u.build(TREE)
            await u.upload()
            u.remote.asked.clear()
            u.remote.sent.clear()
            await u.upload()
            assert u.remote.asked == []
            await u.build({"new": b"three"}, "b2")
            u.remote.directories.clear()
            await u.upload()
            assert Digest.of(SHA256, b"two") not in u.remote.asked
            assert len(u.remote.sent) == 2, "the file and the root"
            u.w.later = 3600 * SECOND
            await u.upload()
            assert Digest.of(SHA256, b"two") in u.remote.asked, "the lease is too old"
            assert len(u.remote.sent) == 2

    asyncio.run(run())


def test_a_restart_goes_on_where_the_last_run_was(tmp_path: Path) -> None:
    remote = Remote()

    async def first() -> None:
        async with uploading(tmp_path, remote) as u:
            await u.build(TREE)
            remote.refused[Digest.of(SHA256, b"two")] = Unreachable("away")
            await u.upload()
            assert u.base.upload.error == "away"
            assert u.base.upload.root is None

    async def second() -> None:
        remote.refused.clear()
        before = list(remote.sent)
        async with uploading(tmp_path, remote) as u:
            await u.upload()
            assert u.base.upload.root == u.base.volume.root.digest
            assert u.base.upload.blobs == BLOBS - len(before)
            assert sorted(set(remote.sent)) == sorted(remote.sent)

    asyncio.run(first())
    asyncio.run(second())


def test_what_one_blob_lacks_is_lacked_by_its_directories_alone(tmp_path: Path) -> None:
    async def run() -> None:
        async with uploading(tmp_path) as u:
            root = await u.build(TREE)
            u.remote.refused[Digest.of(SHA256, LARGE)] = Exhausted("too large")
            await u.upload()
            progress = u.base.upload
            assert (progress.root, progress.error, progress.waiting) == (None, "too large", 0)
            assert root not in u.remote.blobs
            assert len(u.remote.sent) == BLOBS - 3, "without the file, d and the root"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "again"), [(Denied("read only"), False), (Unreachable("away"), True), (Throttled("busy"), True)]
)
def test_a_failure_of_all_is_told_once_and_a_refusal_is_final(
    error: OutputdError, again: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with uploading(tmp_path) as u:
            await u.build(TREE)
            u.remote.refused[Digest.of(SHA256, b"one")] = error
            await u.upload()
            assert (u.base in u.uploads._lanes[""].queue) is again
            await u.upload()
            assert u.base.upload.error == str(error)
            u.remote.refused.clear()
            await u.upload()
            assert u.base.upload.error == ""
            assert u.base.upload.root is not None

    asyncio.run(run())
    assert caplog.text.count("is not uploaded, ") == 1


def test_a_later_checkpoint_and_a_clean_end_what_is_under_way(tmp_path: Path) -> None:
    async def run() -> None:
        async with uploading(tmp_path) as u:
            await u.build(TREE)
            base = u.base
            await u.w.builds.clean(base.id)
            u.uploads.ask(base)
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(u.uploads.run())
                await until(lambda: not u.uploads._lanes[""].queue)
                task.cancel()
            assert u.remote.asked == []

    asyncio.run(run())


def test_what_was_found_lost_is_not_believed_to_be_there(tmp_path: Path) -> None:
    async def run() -> None:
        async with uploading(tmp_path) as u:
            await u.build(TREE)
            await u.upload()
            directory = u.w.at("d")
            assert directory is not None
            u.w.presence.doubt(directory)  # type: ignore[arg-type]
            u.remote.blobs.clear()
            u.remote.sent.clear()
            await u.upload()
            assert Digest.of(SHA256, LARGE) in u.remote.sent

    asyncio.run(run())


def test_the_rate_is_kept_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal clock
        clock += seconds
        slept.append(seconds)

    monkeypatch.setattr("time.monotonic", lambda: clock)
    monkeypatch.setattr("asyncio.sleep", sleep)

    async def run() -> None:
        rate = Rate(1000)
        for _ in range(5):
            await rate.spend(500)
        await Rate(0).spend(1 << 40)

    asyncio.run(run())
    assert slept == [0.5] * 4


def test_each_remote_has_its_own_queue(tmp_path: Path) -> None:
    async def run() -> None:
        async with uploading(tmp_path) as u:
            gone: dict[str, str | None] = {"main": "team"}
            u.uploads = Uploads(
                u.remote,
                u.w.store,
                u.w.state.directory,
                u.w.leases,
                trusted=3600 * SECOND,
                rates={"": Rate(0), "team": Rate(0)},
                remote_of=lambda name: gone.get(name),
            )
            await u.build(TREE)
            for prefix in ("nobody's", None):
                gone["main"] = prefix
                u.uploads.ask(u.base)  # that remote is to have nothing
            assert not any(lane.queue for lane in u.uploads._lanes.values())
            gone["main"] = "team"
            u.uploads.ask(u.base)
            assert [lane.queue for lane in u.uploads._lanes.values()] == [{}, {u.base: 0.0}]
            gone["main"] = ""  # another build has come meanwhile, for another remote
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(u.uploads.run())
                await until(lambda: not u.uploads._lanes["team"].queue)
                assert not u.remote.asked
                u.uploads.ask(u.base)
                await until(lambda: u.base.upload.root)
                task.cancel()

    asyncio.run(run())
