"""The power is cut at every call to the disk: what is promised to survive is there, and nothing is ever wrong.

The promises are those of docs/explanation/durability.md: a build whose checkpoint was written is intact; any other state of an
output path is one that a checkpoint had; no blob of another content is served. `OUTPUTD_NIGHTLY=1` makes more images at each call.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from outputd.builds import journals, leases
from outputd.builds.state import State
from outputd.digest import Digest
from outputd.disk.atomic import make_directories, replace_file
from outputd.errors import OutputdError
from outputd.store import doubt, partials
from outputd.store.disk_store import DiskStore
from tests.crash.simulated_disk import Image, SimulatedDisk
from tests.unit.builds.world import BASE, SHA256, World, world

VARIANTS = 20 if "OUTPUTD_NIGHTLY" in os.environ else 2
ACTION = Digest.of(SHA256, b"action")

Listing: TypeAlias = "dict[str, object]"


class History:
    """A scripted life of two output bases, and what was promised when."""

    def __init__(self, top: Path, disk: SimulatedDisk, monkeypatch: pytest.MonkeyPatch) -> None:
        self._top = top
        self._disk = disk
        self.states: list[dict[str, Listing]] = [{}]
        """What each checkpoint found, of all output bases."""
        self.results: list[bytes | None] = [None]
        self._hear_commits(monkeypatch)

    def digests(self) -> set[Digest]:
        """All blobs that ever were."""
        listings = [listing for state in self.states for listing in state.values()]
        contents = {content for listing in listings for content in listing.values()}
        return {content for content in contents if isinstance(content, Digest)}

    def _hear_commits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        commit, disk, top = State._commit, self._disk, self._top

        def heard(state: State, write: Callable[[sqlite3.Connection], object] | None, durable: bool) -> None:
            commit(state, write, durable)
            if durable:
                disk.committed(f"{top}/state/state.db")
            else:
                disk.cut("commit that is not synced")

        monkeypatch.setattr(State, "_commit", heard)

    async def play(self) -> None:
        async with world(self._top, crash=True, disk=self._disk) as w:
            await w.start("b1")
            await self._stage(w, "b1", "a", "d/b", "d/c")
            w.write("local", b"written here")
            await self._finish(w, "b1")
            await w.start("c1", "other")
            await self._stage(w, "c1", "x", base="other")
            await self._finish(w, "c1")
            await w.start("b2")
            await self._stage(w, "b2", "d/b", "e/f")
            w.unlink("d/c")
            w.write("d/local too", b"and that")
            w.symlink("link", "d/b")
            await w.ingest.settle()
            await self._update(w, b"first result")
            await self._finish(w, "b2")
            await self._update(w, b"second result")
            await self._clean(w, "other")
            await w.start("c2", "other")
            await self._stage(w, "c2", "y", base="other")
            await self._finish(w, "c2")
            w.write("never saved", b"at all")
            await w.ingest.settle()

    async def _stage(self, w: World, build_id: str, *paths: str, base: str = BASE) -> None:
        items = []
        for path in paths:
            data = f"{build_id} {path} ".encode() * 300
            digest = Digest.of(SHA256, data)
            w.store.put(digest, data)
            items.append((path, digest))
        assert await w.stage(*items, build_id=build_id) == [None] * len(items)

    async def _finish(self, w: World, build_id: str) -> None:
        await w.ingest.settle()
        self.states.append({base: await w.listing(base) for base in _bases(w)})
        await w.finalize(build_id)
        self._disk.acknowledged = len(self.states) - 1

    async def _clean(self, w: World, base: str) -> None:
        self.states.append({other: listing for other, listing in self.states[-1].items() if other != base})
        await w.builds.clean(base)
        self._disk.acknowledged = len(self.states) - 1

    async def _update(self, w: World, result: bytes) -> None:
        self.results.append(result)
        await w.state.put("main", ACTION, result)


class Found:
    """What a daemon finds that is started on an image, after the machine was."""

    def __init__(self, history: History, image: Image) -> None:
        self._history = history
        self._image = image

    async def check(self, top: Path) -> None:
        """Raises AssertionError, with what is not as promised."""
        self._image.write(top)
        async with world(top, crash=True, local_only=True) as w:
            w.cas.vouches = False
            for digest in self._history.digests():
                data = w.store.read(digest)
                assert data is None or Digest.of(SHA256, data) == digest, f"{digest}: holds other bytes"
            allowed = self._history.states[self._image.acknowledged :]
            bases = {base: await w.listing(base) for base in _bases(w)}
            assert w.state.set_aside is None, "the database was damaged"
            for base in {*bases, *(base for state in allowed for base in state)}:
                states = [state.get(base) for state in allowed]
                assert bases.get(base) in states, f"{base} is {bases.get(base)}, expected one of {states}"
            for base, listing in bases.items():
                for name, content in listing.items():
                    if isinstance(content, Digest):
                        assert w.store.has(content), f"{base}/{name}: its blob {content} is gone"
            assert await w.state.get("main", ACTION) in self._history.results
            # And the next build finds nothing to take away.
            for number, base in enumerate(bases):
                await w.start(f"after {number}", base)
                assert await w.listing(base) == bases[base]


def _bases(w: World) -> list[str]:
    return [name.decode() for name in w.tree.children(w.tree.outputs)]


def _failures(
    history: History, disk: SimulatedDisk, place: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What is wrong after a cut, for all images that the disk has made."""
    for room in (journals, leases, doubt, partials):
        monkeypatch.setattr(room, "boot_id", lambda: b"after the cut...")
    failures: list[str] = []
    for number, image in enumerate(disk.images):
        top = place / f"image{number}"
        top.mkdir()
        try:
            asyncio.run(Found(history, image).check(top))
        except* (AssertionError, OutputdError) as group:
            failures.append(f"cut at call {image.moment} ({image.call}): {group.exceptions[0]!r:.600}")
    return failures


def _play(top: Path, monkeypatch: pytest.MonkeyPatch, disk: SimulatedDisk) -> History:
    history = History(top, disk, monkeypatch)
    asyncio.run(history.play())
    disk.close()
    monkeypatch.undo()
    return history


@pytest.mark.timeout(3600 if VARIANTS > 2 else 300)
def test_a_power_cut_at_any_call_breaks_no_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimulatedDisk(_made(tmp_path / "live"), "any call", variants=VARIANTS)
    history = _play(tmp_path / "live", monkeypatch, disk)
    assert len({image.moment for image in disk.images}) > 100
    failures = _failures(history, disk, tmp_path, monkeypatch)
    assert not failures, "\n".join(failures[:10])


def test_a_disk_that_does_not_sync_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimulatedDisk(_made(tmp_path / "live"), "deaf", variants=1, deaf=True)
    history = _play(tmp_path / "live", monkeypatch, disk)
    assert _failures(history, disk, tmp_path, monkeypatch)


def test_a_checkpoint_without_a_flush_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiskStore, "flush", lambda store: None)
    disk = SimulatedDisk(_made(tmp_path / "live"), "no flush", variants=1)
    history = _play(tmp_path / "live", monkeypatch, disk)
    failures = _failures(history, disk, tmp_path, monkeypatch)
    assert failures and all("blob" in failure for failure in failures), failures


@pytest.mark.parametrize("deaf", (False, True))
def test_a_replaced_file_has_the_old_or_the_new_content(tmp_path: Path, deaf: bool) -> None:
    top = _made(tmp_path / "live" / "state")
    disk = SimulatedDisk(tmp_path / "live", "replace", variants=20, deaf=deaf)
    make_directories(disk, str(top))
    disk.sync_file_system(-1)
    contents = [b"%d" % number * 5000 for number in range(3)]
    for data in contents:
        replace_file(disk, f"{top}/file", data)
        disk.acknowledged += 1
    disk.close()
    wrong = [
        image
        for image in disk.images
        if image.files.get("state/file") not in [None, *contents][image.acknowledged :][:2]
    ]
    assert bool(wrong) is deaf


def _made(path: Path) -> Path:
    path.mkdir(parents=True)
    return path
