"""One file, thousands of random operations, and after each what it must hold: in the manner of fsx(8). Real mount, real kernel.

The file is local or a blob, small or large, with and without passthrough, and becomes a blob again and again on the way. With
OUTPUTD_NIGHTLY=1 each run has another seed, and a failure says which.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import daemon_fixture
from tests.service_client import BuildClient, Cas, digest_of

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

SEED = int(
    os.environ.get("OUTPUTD_TEST_SEED", time.time_ns() if "OUTPUTD_NIGHTLY" in os.environ else 20261122)
)
STEPS = int(os.environ.get("OUTPUTD_TEST_STEPS", "400"))
KEEP_SIZE, PUNCH, ZERO = 1, 2, 16

libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module", params=[True, False], ids=["passthrough", "served"])
def build(request: pytest.FixtureRequest) -> Iterator[tuple[Path, BuildClient, Cas]]:
    settings = {"mount.passthrough": str(request.param).lower()}
    with (
        daemon_fixture.running(settings=settings) as daemon,
        daemon_fixture.connected(daemon) as channel,
    ):
        client = BuildClient(channel, daemon.outputs, "base")
        client.start()
        yield daemon.outputs / "base", client, Cas(channel)
        client.finish()


@functools.cache
def zeroes_ranges() -> bool:
    """Whether the disk does on which the daemon keeps its files; tmpfs does not."""
    with tempfile.TemporaryFile() as file:
        done: int = libc.fallocate(file.fileno(), ZERO, ctypes.c_int64(0), ctypes.c_int64(4096))
        return done == 0


class Shadowed:
    """A file in the mount and, beside it, what it must hold."""

    def __init__(self, build: tuple[Path, BuildClient, Cas], chosen: random.Random, largest: int) -> None:
        top, self._client, self._cas = build
        self._name = f"file-{time.monotonic_ns()}"
        self.path = top / self._name
        self._top = top
        self._chosen = chosen
        self._largest = largest
        self.truth = bytearray()
        self._handles: list[int] = []
        self._reader = -1

    # opening and closing

    def create(self) -> None:
        self._handles.append(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))

    def stage(self) -> None:
        """Put a blob in its place."""
        self.close()
        self.truth = bytearray(self._chosen.randbytes(self._chosen.randrange(self._largest)))
        self._client.stage({self._name: self._cas.put(bytes(self.truth))})

    def open(self) -> None:
        self._leave_reading()
        flags = self._chosen.choice((os.O_RDWR, os.O_RDWR, os.O_RDWR | os.O_TRUNC))
        if flags & os.O_TRUNC:
            self.truth.clear()
        self._handles.append(os.open(self.path, flags))

    def close(self) -> None:
        """All handles: the file is about to become a blob."""
        while self._handles:
            os.close(self._handles.pop())
        self._leave_reading()

    def hash(self) -> None:
        self.close()
        # The kernel tells of the last close(2) when it has returned.
        deadline = time.monotonic() + 30
        while (found := self._client.digests(self._name)[0]) is None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert found == digest_of(bytes(self.truth))

    def rename(self) -> None:
        new = f"file-{time.monotonic_ns()}"
        os.rename(self.path, self._top / new)
        self._name, self.path = new, self._top / new

    def link(self) -> None:
        """Another name for it, which is the one it keeps."""
        old, self._name = self._name, f"file-{time.monotonic_ns()}"
        self.path = self._top / self._name
        os.link(self._top / old, self.path)
        assert os.stat(self.path).st_nlink == 2
        os.unlink(self._top / old)

    # changing

    def write(self) -> None:
        offset, data = self._place(), self._data()
        os.pwrite(self._writer(), data, offset)
        self._extend(offset + len(data))
        self.truth[offset : offset + len(data)] = data

    def append(self) -> None:
        self._writer()
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        data = self._data()
        os.write(fd, data)
        self.truth += data
        os.close(fd)

    def truncate(self) -> None:
        size = self._place()
        if self._handles and self._chosen.random() < 0.5:
            os.ftruncate(self._handles[-1], size)
        else:
            self._leave_reading()
            os.truncate(self.path, size)
        del self.truth[size:]
        self._extend(size)

    def punch(self) -> None:
        offset, length = self._place(), len(self._data())
        mode = self._chosen.choice((PUNCH | KEEP_SIZE, ZERO | KEEP_SIZE, ZERO))
        if mode & ZERO and not zeroes_ranges():
            return
        self._fallocate(mode, offset, length)
        if mode == ZERO:
            self._extend(offset + length)
        end = min(offset + length, len(self.truth))
        if offset < end:
            self.truth[offset:end] = bytes(end - offset)

    def allocate(self) -> None:
        offset, length = self._place(), len(self._data())
        keep = self._chosen.random() < 0.5
        self._fallocate(KEEP_SIZE if keep else 0, offset, length)
        if not keep:
            self._extend(offset + length)

    def copy(self) -> None:
        fd = self._writer()
        if len(self.truth) < 2:
            return
        half = len(self.truth) // 2
        source, target = self._chosen.randrange(half), half + self._chosen.randrange(half)
        length = self._chosen.randrange(1, half - source + 1) if half > source else 1
        done = os.copy_file_range(fd, fd, length, source, target)
        assert done == min(length, len(self.truth) - source)
        self.truth[target : target + done] = self.truth[source : source + done]

    def write_mapped(self) -> None:
        fd = self._writer()
        if not self.truth:
            return
        with mmap.mmap(fd, len(self.truth)) as view:
            offset = self._chosen.randrange(len(self.truth))
            data = self._data()[: len(self.truth) - offset]
            view[offset : offset + len(data)] = data
            self.truth[offset : offset + len(data)] = data
            if self._chosen.random() < 0.5:
                view.flush()

    def sync(self) -> None:
        self._chosen.choice((os.fsync, os.fdatasync))(self._writer())

    # looking

    def read(self) -> None:
        offset, length = self._place(), len(self._data())
        fd = self._chosen.choice([*self._handles, self._reading()])
        assert os.pread(fd, length, offset) == self.truth[offset : offset + length]

    def read_mapped(self) -> None:
        if self.truth:
            fd = self._chosen.choice([*self._handles, self._reading()])
            with mmap.mmap(fd, len(self.truth), prot=mmap.PROT_READ) as view:
                offset = self._chosen.randrange(len(self.truth))
                assert view[offset : offset + 5000] == self.truth[offset : offset + 5000]

    def seek(self) -> None:
        """What is told to be a hole reads as zeros."""
        fd = self._reading()
        offset = 0
        while offset < len(self.truth):
            try:
                data = os.lseek(fd, offset, os.SEEK_DATA)
            except OSError:
                data = len(self.truth)
            assert not any(self.truth[offset:data])
            if data < len(self.truth):
                data = os.lseek(fd, data, os.SEEK_HOLE)
            offset = data

    def check(self) -> None:
        assert os.stat(self.path).st_size == len(self.truth)
        assert self.path.read_bytes() == self.truth

    # within

    def _place(self) -> int:
        return self._chosen.randrange(self._chosen.choice((4096, len(self.truth) + 1, self._largest)))

    def _data(self) -> bytes:
        most = self._chosen.choice((10, 5000, self._largest // 4))
        return self._chosen.randbytes(self._chosen.randrange(1, most))

    def _extend(self, size: int) -> None:
        self.truth += bytes(max(0, size - len(self.truth)))

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        done = libc.fallocate(self._writer(), mode, ctypes.c_int64(offset), ctypes.c_int64(length))
        assert done == 0, (os.strerror(ctypes.get_errno()), mode, offset, length, len(self.truth))

    def _writer(self) -> int:
        if not self._handles:
            self._leave_reading()
            self._handles.append(os.open(self.path, os.O_RDWR))
        return self._chosen.choice(self._handles)

    def _reading(self) -> int:
        if self._reader < 0:
            self._reader = os.open(self.path, os.O_RDONLY)
        return self._reader

    def _leave_reading(self) -> None:
        """Who reads a large blob that another then opens to write keeps the old bytes (docs/reference/file-system.md)."""
        if self._reader >= 0 and not self._handles:
            os.close(self._reader)
            self._reader = -1


CHANGES = ("write", "append", "truncate", "punch", "allocate", "copy", "write_mapped")
OTHERS = ("open", "close", "hash", "stage", "rename", "link", "sync", "read", "read_mapped", "seek", "check")


@pytest.mark.parametrize("largest", [20_000, 300_000, 3 << 20], ids=["small", "large", "larger"])
def test_random_operations_leave_what_they_must(
    build: tuple[Path, BuildClient, Cas], largest: int, request: pytest.FixtureRequest
) -> None:
    chosen = random.Random(SEED)
    file = Shadowed(build, chosen, largest)
    file.create()
    done: list[str] = []
    try:
        for _ in range(STEPS if largest < 1 << 20 else STEPS // 4):
            done.append(chosen.choice((*CHANGES, *CHANGES, *OTHERS)))
            operation: Callable[[], None] = getattr(file, done[-1])
            operation()
            if chosen.random() < 0.3:
                if chosen.random() < 0.5:
                    file.close()  # what is read now goes into the page cache of the mount
                file.check()
        file.check()
        file.hash()
        file.check()
    except BaseException as error:
        error.add_note(f"OUTPUTD_TEST_SEED={SEED}, step {len(done)}: {' '.join(done[-12:])}")
        raise
    finally:
        file.close()
        file.path.unlink(missing_ok=True)
