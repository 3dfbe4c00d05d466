"""After a power cut: what may be damaged is hashed before it is served, and nothing else is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.disk.disk import RealDisk
from outputd.store.disk_store import DiskStore

SHA256 = DigestFunction.SHA256
OLD = [Digest.of(SHA256, b"old %d" % number) for number in range(3)]
NEW = [Digest.of(SHA256, b"new %d" % number) for number in range(3)]


class LoggingDisk(RealDisk):
    """Counts syncs of the whole file system."""

    def __init__(self) -> None:
        super().__init__()
        self.synced = 0

    def sync_file_system(self, fd: int) -> None:
        self.synced += 1


@contextmanager
def opened(path: Path, boot: str, disk: RealDisk | None = None) -> Iterator[DiskStore]:
    """A store that ends with the process, not in order."""
    store = DiskStore(str(path), disk or LoggingDisk(), boot=boot)
    yield store
    store._temporaries.close()


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Digest]:
    """The blobs that are hashed from here on."""
    done: list[Digest] = []
    real = Digest.of_descriptor.__func__  # type: ignore[attr-defined]

    def of_descriptor(cls: type[Digest], function: DigestFunction, fd: int) -> Digest:
        done.append(real(cls, function, fd))
        return done[-1]

    monkeypatch.setattr(Digest, "of_descriptor", classmethod(of_descriptor))
    return done


def damage(store: DiskStore, digest: Digest) -> None:
    """Zeros of the right length, as after ftruncate and a power cut."""
    path = store.layout.path(digest)
    os.chmod(path, 0o644)
    with open(path, "wb") as file:
        file.write(bytes(digest.size))
    os.chmod(path, 0o444)


def test_what_was_not_synced_is_hashed_once_and_what_is_damaged_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, "first") as store:
        for number, digest in enumerate(NEW):
            store.put(digest, b"new %d" % number)
        damage(store, NEW[1])
    done = hashed(monkeypatch)
    with opened(tmp_path, "second") as store:
        assert store.read(NEW[0]) == b"new 0"
        assert store.has(NEW[0])
        assert done == [NEW[0]]
        assert not store.has(NEW[1])
        assert store.open(NEW[1]) is None
        assert os.listdir(tmp_path / "damaged") == [f"sha256-{NEW[1].hash_hex}"]
        # The true blob may come again, and is believed.
        store.put(NEW[1], b"new 1")
        assert store.read(NEW[1]) == b"new 1"
        assert len(done) == 2


def test_what_was_synced_is_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = LoggingDisk()
    with opened(tmp_path, "first", disk) as store:
        for number, digest in enumerate(OLD):
            store.put(digest, b"old %d" % number)
        store.flush()
        store.flush()
        assert disk.synced == 1
        store._doubt.synced(time.time_ns() + 2_000_000_000)  # as if it had been some time ago
    done = hashed(monkeypatch)
    with opened(tmp_path, "second") as store:
        assert store.missing(OLD) == set()
        assert store.settle_doubt() == 0
    assert done == []


def test_a_daemon_that_is_killed_is_no_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path, "first") as store:
        store.put(NEW[0], b"new 0")
    done = hashed(monkeypatch)
    with opened(tmp_path, "first") as store:
        assert store.has(NEW[0])
        assert done == []
    # But what it had not synced, nobody has since.
    with opened(tmp_path, "second") as store:
        assert store.has(NEW[0])
    assert done == [NEW[0]]


def test_an_ordered_stop_leaves_no_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskStore(str(tmp_path), RealDisk(), boot="first")
    store.put(NEW[0], b"new 0")
    store.close()
    done = hashed(monkeypatch)
    with opened(tmp_path, "second") as store:
        assert store.has(NEW[0])
    assert done == []


def test_doubt_outlives_a_restart_until_everything_was_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, "first") as store:
        for number, digest in enumerate(NEW):
            store.put(digest, b"new %d" % number)
        damage(store, NEW[2])
    done = hashed(monkeypatch)
    with opened(tmp_path, "second") as store:
        assert store.has(NEW[0])
        store.flush()
    store = DiskStore(str(tmp_path), RealDisk(), boot="second")
    assert store.has(NEW[0])
    assert done == [NEW[0], NEW[0]]
    store.close()  # in order, and still in doubt
    with opened(tmp_path, "second") as store:
        assert store.settle_doubt() == 1
        assert len(done) == 5
        assert store.missing(NEW) == {NEW[2]}
    with opened(tmp_path, "second") as store:
        assert store.has(NEW[1])
        assert len(done) == 5


def test_a_record_that_cannot_be_read_leaves_everything_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path, "first") as store:
        store.put(NEW[0], b"new 0")
    (tmp_path / "synced").write_text("no such words")
    done = hashed(monkeypatch)
    with opened(tmp_path, "first") as store:
        assert store.has(NEW[0])
    assert done == [NEW[0]]
    assert "cannot be understood" in caplog.text


def test_a_full_disk_stops_nothing_but_leaves_everything_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class FullDisk(RealDisk):
        def open(self, path: str, flags: int, mode: int = 0o600) -> int:
            if path.endswith("synced.new"):
                raise OSError(28, "No space left on device")
            return super().open(path, flags, mode)

    store = DiskStore(str(tmp_path), RealDisk(), boot="first")
    store.put(NEW[0], b"new 0")
    store.close()
    with opened(tmp_path, "first", FullDisk()) as store:
        store.flush()
    assert "cannot be written" in caplog.text
    done = hashed(monkeypatch)
    with opened(tmp_path, "first") as store:
        assert store.has(NEW[0])
    assert done == [NEW[0]]


def test_a_system_without_boot_ids_trusts_only_what_was_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, bytes(16).hex()) as store:
        store.put(NEW[0], b"new 0")
    done = hashed(monkeypatch)
    with opened(tmp_path, bytes(16).hex()) as store:
        assert store.has(NEW[0])
    assert done == [NEW[0]]
