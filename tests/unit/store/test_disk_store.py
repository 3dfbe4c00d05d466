"""The store on disk: the conformance of every local store, and what only this one does."""

from __future__ import annotations

import errno
import hashlib
import itertools
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.disk.disk import RealDisk
from outputd.errors import Exhausted, Precondition, Unavailable
from outputd.store.disk_store import DiskStore
from outputd.store.layout import TAG, TAG_DIGEST
from tests.unit.store.conformance import check_local_store

ONE = Digest.of(DigestFunction.SHA256, b"one")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    store = DiskStore(str(tmp_path / "cas"), RealDisk())
    yield store
    store.close()


def blob_path(tmp_path: Path, digest: Digest) -> Path:
    digits = digest.hash_hex
    return tmp_path / "cas" / "blobs" / digest.function.lower / digits[:2] / digits[2:]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0


def test_conformance(tmp_path: Path) -> None:
    before = descriptors()
    made = []
    numbers = itertools.count()

    def make() -> DiskStore:
        made.append(DiskStore(str(tmp_path / f"cas{next(numbers)}"), RealDisk()))
        return made[-1]

    check_local_store(make, str(tmp_path))
    for store in made:
        assert os.listdir(store.layout.tmp) != []
        store.close()
        assert os.listdir(store.layout.tmp) == []
    assert descriptors() == before


def test_layout(store: DiskStore, tmp_path: Path) -> None:
    store.put(ONE, b"one")
    path = blob_path(tmp_path, ONE)
    assert path.read_bytes() == b"one"
    assert path.stat().st_mode & 0o7777 == 0o444
    assert os.path.isdir(store.private)


def test_blobs_are_found_again_after_a_restart(store: DiskStore, tmp_path: Path) -> None:
    store.put(ONE, b"one")
    store.flush()
    again = DiskStore(str(tmp_path / "cas"), RealDisk())
    assert again.read(ONE) == b"one"
    again.close()


@pytest.mark.parametrize("found", [b"", b"on", b"one and more"])
def test_a_damaged_file_is_absent_and_makes_way_for_the_true_blob(
    store: DiskStore, tmp_path: Path, found: bytes
) -> None:
    store.put(ONE, b"one")
    path = blob_path(tmp_path, ONE)
    path.chmod(0o644)
    path.write_bytes(found)
    assert not store.has(ONE)
    assert store.open(ONE) is None
    assert store.read(ONE) is None
    store.put(ONE, b"one")
    assert store.read(ONE) == b"one"
    [aside] = (tmp_path / "cas" / "damaged").iterdir()
    assert aside.read_bytes() == found


def test_a_file_cut_while_it_is_read_is_absent(store: DiskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(ONE, b"one")
    monkeypatch.setattr(os, "pread", lambda fd, count, offset: b"o" if offset == 0 else b"")
    assert store.read(ONE) is None


def test_the_next_start_sweeps_what_a_killed_process_left(tmp_path: Path) -> None:
    root = tmp_path / "cas"
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, signal, sys\n"
            "from outputd.digest import Digest, DigestFunction\n"
            "from outputd.disk.disk import RealDisk\n"
            "from outputd.store.disk_store import DiskStore\n"
            f"store = DiskStore({str(root)!r}, RealDisk())\n"
            "store.writer(Digest.of(DigestFunction.SHA256, b'one')).write(b'o')\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n",
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert killed.returncode == -9
    [left] = (root / "tmp").iterdir()
    assert [file.read_bytes() for file in left.iterdir()] == [b"o"]
    (root / "tmp" / "a file of somebody else").touch()
    store = DiskStore(str(root), RealDisk())
    assert not left.exists()
    store.close()
    assert os.listdir(root / "tmp") == ["a file of somebody else"]


def test_a_start_beside_a_living_process_leaves_its_blobs_alone(store: DiskStore, tmp_path: Path) -> None:
    with store.writer(ONE) as writer:
        writer.write(b"one")
        other = DiskStore(str(tmp_path / "cas"), RealDisk())
        writer.commit()
    assert other.read(ONE) == b"one"
    other.close()


def test_close_does_not_mind_what_is_still_on_its_way_in(tmp_path: Path) -> None:
    store = DiskStore(str(tmp_path / "cas"), RealDisk())
    with store.writer(ONE):
        store.close()
    DiskStore(str(tmp_path / "cas"), RealDisk()).close()
    assert os.listdir(tmp_path / "cas" / "tmp") == []


class FaultyDisk(RealDisk):
    """Fails one call with one error."""

    def __init__(self, call: str, number: int) -> None:
        super().__init__()
        self.armed = False

        def fail(*args: object) -> None:
            if self.armed:
                raise OSError(number, os.strerror(number))
            real(*args)

        real = getattr(self, call)
        setattr(self, call, fail)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "rename"])
def test_no_room_is_told_with_path_and_room_and_leaves_nothing(
    tmp_path: Path, call: str, number: int
) -> None:
    disk = FaultyDisk(call, number)
    store = DiskStore(str(tmp_path / "cas"), disk)
    disk.armed = True
    with pytest.raises(
        Exhausted, match=rf"{ONE.hash_hex}.*{tmp_path}/cas/tmp/.*\d+ bytes and \d+ files are left"
    ) as caught:
        store.put(ONE, b"one")
    assert isinstance(caught.value.__cause__, OSError)
    disk.armed = False
    assert not store.has(ONE)
    store.close()
    assert os.listdir(tmp_path / "cas" / "tmp") == []


def test_a_broken_disk_is_unavailable(tmp_path: Path) -> None:
    disk = FaultyDisk("write", errno.EIO)
    store = DiskStore(str(tmp_path / "cas"), disk)
    disk.armed = True
    with pytest.raises(Unavailable, match="Input/output error"):
        store.put(ONE, b"one")
    disk.armed = False
    store.close()


def test_a_root_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match=f"prepare the store {tmp_path}/file: "):
        DiskStore(str(tmp_path / "file"), RealDisk())


def test_adopting_a_file_that_is_gone_is_told(store: DiskStore) -> None:
    with pytest.raises(Unavailable, match="/nowhere: No such file"):
        store.adopt("/nowhere", ONE)


def test_nobody_counted_yet(store: DiskStore) -> None:
    store.put(ONE, b"one")
    assert (store.usage().blobs, store.usage().blob_bytes) == (-1, -1)


def test_once_counted_the_numbers_stay_true(store: DiskStore, tmp_path: Path) -> None:
    store.put(ONE, b"one")
    store.put(Digest.of(DigestFunction.BLAKE3, b"other"), b"other")
    store.count()
    assert (store.usage().blobs, store.usage().blob_bytes) == (2, 8)
    store.put(Digest.of(DigestFunction.SHA256, b"three"), b"three")
    store.put(ONE, b"one")
    assert (store.usage().blobs, store.usage().blob_bytes) == (3, 13)
    path = blob_path(tmp_path, ONE)
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    store.count()
    assert (store.usage().blobs, store.usage().blob_bytes) == (3, 17)
    store.put(ONE, b"one")
    assert (store.usage().blobs, store.usage().blob_bytes) == (3, 13)


def test_counting_while_blobs_arrive_counts_each_once(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = {Digest.of(DigestFunction.SHA256, data): data for data in (b"%04d" % i for i in range(300))}
    some = list(blobs)[:100]
    for digest in some:
        store.put(digest, blobs[digest])
    walking = threading.Event()
    arrived = threading.Event()
    scan = os.scandir

    def scan_slowly(path: str) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
        # After the first directory, everything else arrives, on both sides of where the walk stands.
        if walking.is_set():
            arrived.wait()
        walking.set()
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_slowly)
    counter = threading.Thread(target=store.count)
    counter.start()
    walking.wait()
    for digest, data in blobs.items():
        store.put(digest, data)
    arrived.set()
    counter.join()
    assert (store.usage().blobs, store.usage().blob_bytes) == (300, 1200)


def mode(tmp_path: Path, digest: Digest) -> int:
    return blob_path(tmp_path, digest).stat().st_mode & 0o7777


def test_what_only_we_have_is_marked_until_a_remote_has_it(store: DiskStore, tmp_path: Path) -> None:
    two = Digest.of(DigestFunction.SHA256, b"two")
    with store.writer(ONE, local_only=True) as writer:
        writer.write(b"one")
        writer.commit()
    Path(store.private, "2").write_bytes(b"two")
    store.adopt(f"{store.private}/2", two)
    assert (mode(tmp_path, ONE), mode(tmp_path, two)) == (0o1444, 0o1444)
    store.count()
    assert (store.usage().local_only_blobs, store.usage().local_only_bytes) == (2, 6)
    store.confirm_remote([ONE, Digest.of(DigestFunction.SHA256, b"not here")])
    assert (mode(tmp_path, ONE), mode(tmp_path, two)) == (0o444, 0o1444)
    assert (store.usage().local_only_blobs, store.usage().local_only_bytes) == (1, 3)
    # Made here once more: the remote still has it.
    Path(store.private, "1").write_bytes(b"one")
    store.adopt(f"{store.private}/1", ONE)
    assert mode(tmp_path, ONE) == 0o444
    # Fetched: so the remote has it.
    store.put(two, b"two")
    assert mode(tmp_path, two) == 0o444
    assert store.usage().local_only_blobs == 0
    assert store.usage().blobs == 2


def test_what_is_retained_counts_as_only_here_until_a_remote_has_it(store: DiskStore, tmp_path: Path) -> None:
    two, empty = Digest.of(DigestFunction.SHA256, b"two"), Digest.of(DigestFunction.SHA256, b"")
    store.put(ONE, b"one")
    store.count()
    ((found,),) = [fan for fan in store.walk() if fan]
    assert store.retain([ONE, two, empty]) == {two}
    assert store.retain([ONE]) == set()
    assert mode(tmp_path, ONE) == 0o1444
    assert (store.usage().local_only_blobs, store.usage().local_only_bytes) == (1, 3)
    assert not store.evict(found, math.inf), "it was looked at before it was retained"
    assert not store.forget(ONE)
    store.confirm_remote([ONE])
    assert store.usage().local_only_blobs == 0
    assert store.forget(ONE)
    assert store.retain([ONE]) == {ONE}


@pytest.mark.parametrize(("hours", "noted"), [(2, True), (0.5, False)])
def test_use_is_noted_once_an_hour(store: DiskStore, tmp_path: Path, hours: float, noted: bool) -> None:
    store.put(ONE, b"one")
    path = blob_path(tmp_path, ONE)
    before = time.time() - hours * 3600
    # A mount with relatime updates the atime of what is read by itself where it is older than the mtime.
    os.utime(path, (before, before - 1))
    fd = store.open(ONE)
    assert fd is not None
    os.close(fd)
    assert (path.stat().st_atime > before + 1) is noted
    assert path.stat().st_mtime == pytest.approx(before - 1)


def test_to_be_told_that_a_blob_is_here_keeps_it_where_only_we_have_it(
    store: DiskStore, tmp_path: Path
) -> None:
    two = Digest.of(DigestFunction.SHA256, b"two")
    store.put(ONE, b"one")
    with store.writer(two, local_only=True) as writer:
        writer.write(b"two")
        writer.commit()
    for digest in (ONE, two):
        os.utime(blob_path(tmp_path, digest), (1e9, 1e9))
    assert store.missing([ONE, two]) == set()
    assert blob_path(tmp_path, ONE).stat().st_atime == 1e9
    assert blob_path(tmp_path, two).stat().st_atime > time.time() - 60


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    DiskStore(str(tmp_path / "cas"), RealDisk()).close()
    (tmp_path / "cas" / "format").write_text("3\n")
    with pytest.raises(Precondition, match=r"has format '3', and this outputd reads 2"):
        DiskStore(str(tmp_path / "cas"), RealDisk())
    assert (tmp_path / "cas" / "format").read_text() == "3\n"


def test_the_store_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cas").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(tmp_path).st_uid + 1)
    with pytest.raises(Precondition, match=r"cas: belongs to uid \d+, and this is uid \d+"):
        DiskStore(str(tmp_path / "cas"), RealDisk())
    assert os.listdir(tmp_path / "cas") == []


def test_the_mark_of_a_cache_is_a_blob_that_is_always_here(store: DiskStore, tmp_path: Path) -> None:
    tag = tmp_path / "cas" / "CACHEDIR.TAG"
    assert tag.read_bytes() == TAG
    assert hashlib.sha256(TAG).hexdigest() == TAG_DIGEST.hash_hex
    assert store.has(TAG_DIGEST) and store.is_here(TAG_DIGEST)
    assert store.read(TAG_DIGEST) == TAG
    assert not store.forget(TAG_DIGEST)
    assert not list(store.walk())
    tag.unlink()
    tag.write_bytes(b"something else")
    DiskStore(str(tmp_path / "cas"), RealDisk()).close()
    assert tag.read_bytes() == TAG


def test_a_full_disk_without_the_mark_starts_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    DiskStore(str(tmp_path / "cas"), RealDisk()).close()
    (tmp_path / "cas" / "CACHEDIR.TAG").unlink()
    disk = FaultyDisk("write", errno.ENOSPC)
    disk.armed = True
    store = DiskStore(str(tmp_path / "cas"), disk)
    assert "CACHEDIR.TAG cannot be written, backups take the cache in" in caplog.text
    with pytest.raises(Unavailable, match=r"cannot open .*CACHEDIR\.TAG"):
        store.read(TAG_DIGEST)
    disk.armed = False
    store.close()


def test_a_full_disk_says_who_holds_it(tmp_path: Path) -> None:
    disk = FaultyDisk("write", errno.ENOSPC)
    store = DiskStore(str(tmp_path / "cas"), disk)
    store.put(ONE, b"one")
    store.count()
    disk.armed = True
    with pytest.raises(
        Exhausted,
        match=r"the store holds 3 bytes that can be fetched again and 0 bytes that are only here, open local files 0 bytes"
        r".*outputd gc --dry-run",
    ):
        store.put(Digest.of(DigestFunction.SHA256, b"two"), b"two")
    disk.armed = False
    store.close()
