"""A mount against a plain directory: random system calls in both, the same outcome and the same picture after every step.

`OUTPUTD_NIGHTLY=1` runs it for thousands of steps.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.posix.at import libc, plain, shown
from tests.posix.mounted import Mounted, stage

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

NIGHTLY = "OUTPUTD_NIGHTLY" in os.environ

NAMES = st.sampled_from(["a", "b", "c", "d"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
DATA = st.binary(min_size=1, max_size=8).map(lambda piece: piece * 1000)
OFFSETS = st.sampled_from([0, 1, 4095, 4096, 5000, 9000])
SIZES = st.sampled_from([0, 1, 4096, 5000, 12000])
MODES = st.sampled_from([0o644, 0o600, 0o755, 0o4755, 0o2711, 0o1777])
OPENED: Final = {
    "read": os.O_RDONLY,
    "write": os.O_WRONLY,
    "both": os.O_RDWR,
    "append": os.O_RDWR | os.O_APPEND,
    "truncate": os.O_RDWR | os.O_TRUNC,
    "create": os.O_RDWR | os.O_CREAT,
    "exclusive": os.O_RDWR | os.O_CREAT | os.O_EXCL,
    "directory": os.O_RDONLY | os.O_DIRECTORY,
}
LONG_AGO: Final = 10**18
"""Nanoseconds. No clock shows this any more; the times that are set do."""


class MountAgainstDirectory(RuleBasedStateMachine):
    """`roots` are a plain directory and one in the mount; every call is made in both."""

    mounted: Mounted
    directory: str

    @initialize()
    def begin(self) -> None:
        self.roots = tuple(tempfile.mkdtemp(dir=parent) for parent in (self.directory, self.mounted.root))
        self.open: list[tuple[int, int]] = []
        for name, data in (("a", b"a blob of the first moment\n" * 300), ("c", b"another\n")):
            self.stage(name, data, True)

    def teardown(self) -> None:
        for root, fds in zip(
            getattr(self, "roots", ()), zip(*self.open, strict=True) if self.open else ((), ()), strict=True
        ):
            for fd in fds:
                os.close(fd)
            shutil.rmtree(root)

    def both(self, action: Callable[[str], object]) -> object:
        """Do it in both; the outcome, which must be one."""
        outcomes = []
        for root in self.roots:
            try:
                outcomes.append(plain(action(root)))
            except OSError as error:
                outcomes.append(errno.errorcode[error.errno or 0])
        assert outcomes[0] == outcomes[1], (
            f"a plain directory tells {outcomes[0]!r}, the mount {outcomes[1]!r}"
        )
        return outcomes[0]

    def through(self, which: int, action: Callable[[int], object]) -> object:
        """The same through a handle."""
        fds = self.open[which % len(self.open)]
        return self.both(lambda root: action(fds[self.roots.index(root)]))

    # names

    @rule(path=PATHS)
    def make_directory(self, path: str) -> None:
        self.both(lambda root: os.mkdir(f"{root}/{path}"))

    @rule(path=PATHS, data=DATA)
    def create(self, path: str, data: bytes) -> None:
        def create(root: str) -> int:
            fd = os.open(f"{root}/{path}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                return os.write(fd, data)
            finally:
                os.close(fd)

        self.both(create)

    @rule(path=PATHS, data=DATA, here=st.booleans())
    def stage(self, path: str, data: bytes, here: bool) -> None:
        """As an RPC does it, over whatever file stands there that is not open; where it would not be possible, nothing."""
        first, second = self.roots
        parent = os.path.dirname(f"{first}/{path}")
        if (
            not os.path.isdir(parent)
            or os.path.realpath(parent) != parent
            or os.path.isdir(f"{first}/{path}")
        ):
            return
        if os.path.lexists(f"{first}/{path}"):
            inode = os.lstat(f"{first}/{path}").st_ino
            if any(os.fstat(fd).st_ino == inode for fd, _ in self.open):
                return  # the kernel goes on showing the link count that the file had
            os.unlink(f"{first}/{path}")
        with open(f"{first}/{path}", "xb") as file:
            file.write(data)
        os.chmod(f"{first}/{path}", 0o755)
        stage(self.mounted.control, os.path.relpath(f"{second}/{path}", self.mounted.root), data, here=here)

    @rule(path=PATHS, to=st.sampled_from(["a", "b/c", "../a", ".", "nowhere"]))
    def make_symlink(self, path: str, to: str) -> None:
        self.both(lambda root: os.symlink(to, f"{root}/{path}"))

    @rule(path=PATHS)
    def make_fifo(self, path: str) -> None:
        self.both(lambda root: os.mkfifo(f"{root}/{path}"))

    @rule(old=PATHS, new=PATHS)
    def link(self, old: str, new: str) -> None:
        self.both(lambda root: os.link(f"{root}/{old}", f"{root}/{new}", follow_symlinks=False))

    @rule(old=PATHS, new=PATHS, flags=st.sampled_from([0, 0, 0, 1, 2]))
    def rename(self, old: str, new: str, flags: int) -> None:
        self.both(
            lambda root: libc(
                "renameat2", -100, f"{root}/{old}".encode(), -100, f"{root}/{new}".encode(), flags
            )
        )

    @rule(path=PATHS)
    def unlink(self, path: str) -> None:
        self.both(lambda root: os.unlink(f"{root}/{path}"))

    @rule(path=PATHS)
    def remove_directory(self, path: str) -> None:
        self.both(lambda root: os.rmdir(f"{root}/{path}"))

    # attributes

    @rule(path=PATHS, mode=MODES)
    def chmod(self, path: str, mode: int) -> None:
        self.both(lambda root: os.chmod(f"{root}/{path}", mode))

    @rule(path=PATHS, time=st.integers(0, LONG_AGO - 1))
    def set_times(self, path: str, time: int) -> None:
        self.both(lambda root: os.utime(f"{root}/{path}", ns=(time, time), follow_symlinks=False))

    @rule(path=PATHS, name=st.sampled_from(["user.x", "user.y"]), value=st.binary(max_size=10))
    def set_xattr(self, path: str, name: str, value: bytes) -> None:
        self.both(lambda root: os.setxattr(f"{root}/{path}", name, value))

    @rule(path=PATHS, name=st.sampled_from(["user.x", "user.y"]))
    def remove_xattr(self, path: str, name: str) -> None:
        self.both(lambda root: os.removexattr(f"{root}/{path}", name))

    # bytes

    @rule(path=PATHS, size=SIZES)
    def truncate(self, path: str, size: int) -> None:
        self.both(lambda root: os.truncate(f"{root}/{path}", size))

    @precondition(lambda self: len(self.open) < 4)
    @rule(path=PATHS, how=st.sampled_from(sorted(OPENED)))
    def open_file(self, path: str, how: str) -> None:
        fds: list[int] = []

        def open_one(root: str) -> None:
            fds.append(os.open(f"{root}/{path}", OPENED[how] | os.O_NONBLOCK, 0o640))

        if self.both(open_one) is None:
            self.open.append((fds[0], fds[1]))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 3))
    def close(self, which: int) -> None:
        for fd in self.open.pop(which % len(self.open)):
            os.close(fd)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 3), offset=OFFSETS, data=DATA)
    def write(self, which: int, offset: int, data: bytes) -> None:
        self.through(which, lambda fd: os.pwrite(fd, data, offset))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 3), offset=OFFSETS)
    def read(self, which: int, offset: int) -> None:
        self.through(which, lambda fd: os.pread(fd, 5000, offset))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 3), size=SIZES)
    def cut(self, which: int, size: int) -> None:
        self.through(which, lambda fd: os.ftruncate(fd, size))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 3), mode=st.sampled_from([0, 1, 3, 16]), offset=OFFSETS, length=SIZES)
    def allocate(self, which: int, mode: int, offset: int, length: int) -> None:
        self.through(which, lambda fd: libc("fallocate", fd, mode, offset, length))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 3), offset=OFFSETS)
    def write_through_a_mapping(self, which: int, offset: int) -> None:
        def write(fd: int) -> None:
            if os.fstat(fd).st_size > offset:
                with mmap.mmap(fd, 0) as view:
                    view[offset : offset + 1] = b"M"

        self.through(which, write)

    @precondition(lambda self: self.open)
    @rule(source=st.integers(0, 3), into=st.integers(0, 3), offset=OFFSETS, length=SIZES)
    def copy_range(self, source: int, into: int, offset: int, length: int) -> None:
        sources = self.open[source % len(self.open)]
        self.through(
            into, lambda fd: os.copy_file_range(sources[fd in self.mount_fds()], fd, length, 0, offset)
        )

    def mount_fds(self) -> set[int]:
        return {mounted for _, mounted in self.open}

    # what both must show

    @invariant()
    def same_picture(self) -> None:
        first, second = (picture(root) for root in getattr(self, "roots", ("", "")))
        assert first == second

    @invariant()
    def same_handles(self) -> None:
        for plain_fd, mounted_fd in getattr(self, "open", ()):
            assert shown(plain_fd) == shown(mounted_fd)


def picture(root: str) -> dict[str, object]:
    """Every name below, with all that a program can see of it."""
    if not root:
        return {}
    seen: dict[str, object] = {}
    inodes: dict[int, str] = {}
    for at, directories, files in os.walk(root):
        directories.sort()
        for name in sorted(directories + files):
            path = f"{at}/{name}"
            short = path[len(root) :]
            status = os.lstat(path)
            look = shown(path)
            content: object = None
            if look["kind"] == "file":
                with open(path, "rb") as file:
                    content = file.read()
            elif look["kind"] == "symlink":
                content = os.readlink(path)
            attributes = {n: os.getxattr(path, n) for n in os.listxattr(path, follow_symlinks=False)}
            time = status.st_mtime_ns if status.st_mtime_ns < LONG_AGO else "lately"
            seen[short] = look, content, attributes, time, inodes.setdefault(status.st_ino, short)
    return seen


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with Mounted(tmp_path_factory.mktemp("mounted"), xattrs=True) as served:
        yield served


@pytest.mark.timeout(3600 if NIGHTLY else 300)
def test_a_mount_is_as_a_directory(mounted: Mounted, tmp_path: Path) -> None:
    MountAgainstDirectory.mounted = mounted
    MountAgainstDirectory.directory = str(tmp_path)
    run_state_machine_as_test(
        MountAgainstDirectory,
        settings=settings(
            max_examples=300 if NIGHTLY else 10,
            stateful_step_count=100 if NIGHTLY else 40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
