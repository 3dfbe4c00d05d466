"""What cases are made of: a directory to work in, calls of which the outcome is told, children under another user or limit.

An outcome is plain data, the same on every file system that behaves the same: errnos by name, modes, bytes, listings, and of
times only how they stand to each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final, TypeVar

NOBODY: Final = 65534
OTHERS: Final = 12345
"""A group of nobody we run as."""

F = TypeVar("F", bound=Callable[..., object])

_libc: Final = ctypes.CDLL(None, use_errno=True)
_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
_TARGETS: Final = {
    "symlink": "target",
    "symlink to a directory": "target directory",
    "dangling symlink": "nowhere",
}
_SPECIALS: Final = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "device": stat.S_IFBLK}


class At:
    """The directory of one case."""

    def __init__(self, path: str, stage: Callable[[str, bytes], None], text: bytes = b"") -> None:
        self.path = path
        self._stage = stage
        self.text = text
        """What a case stages that does not mind what it is."""
        self.by_others = False
        """Whether it has done something as another user, which some mounts do not allow."""

    def __truediv__(self, name: str) -> str:
        return f"{self.path}/{name}"

    def file(self, name: str, data: bytes = b"data", mode: int = 0o644) -> str:
        """Make a file, whatever the umask."""
        path = self / name
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, data)
        os.fchmod(fd, mode)
        os.close(fd)
        return path

    def make(self, kind: str, name: str) -> str:
        """Make a node of the kind called so; `nothing` makes nothing."""
        path = self / name
        if kind == "file":
            self.file(name)
        elif kind == "directory":
            os.mkdir(path)
        elif kind == "full directory":
            os.mkdir(path)
            self.file(f"{name}/inner")
        elif kind in _TARGETS:
            os.symlink(_TARGETS[kind], path)
        elif kind in _SPECIALS:
            os.mknod(path, _SPECIALS[kind] | 0o600, os.makedev(7, 200) if kind == "device" else 0)
        else:
            assert kind == "nothing", kind
        return path

    def directory(self, name: str, mode: int = 0o755) -> str:
        path = self / name
        os.mkdir(path)
        os.chmod(path, mode)
        return path

    def blob(self, name: str, data: bytes) -> str:
        """Stage a file of mode 0755 by digest, where that is possible, else write one."""
        path = self / name
        self._stage(path, data)
        return path

    @contextlib.contextmanager
    def opened(self, name: str, flags: int, mode: int = 0o644) -> Iterator[int]:
        fd = os.open(self / name, flags, mode)
        try:
            yield fd
        finally:
            os.close(fd)

    def content(self, name: str) -> str:
        with open(self / name, "rb") as file:
            return file.read().decode("latin-1")

    def tree(self) -> list[str]:
        """Everything below, each with what kind it is."""
        found = []
        for at, directories, files in os.walk(self.path):
            for name in directories + files:
                path = os.path.join(at, name)
                found.append(f"{os.path.relpath(path, self.path)}: {kind(path)}")
        return sorted(found)

    def in_child(
        self, action: Callable[[], object], *, user: int | None = None, groups: Iterable[int] = ()
    ) -> Any:
        """What `told` tells of an action in a process of its own, so that it may change what a process has: user, umask, limits."""
        self.by_others = self.by_others or user is not None
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reader)
                if user is not None and os.geteuid() == 0:
                    os.setgroups(list(groups))
                    os.setresgid(user, user, user)
                    os.setresuid(user, user, user)
                os.write(writer, json.dumps(told(action)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        return json.loads(answer or '"the child died"')


def plain(value: Any) -> Any:
    """As JSON can say it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    raise TypeError(f"no plain data: {value!r}")


def told(action: Callable[..., object], *args: Any, **options: Any) -> Any:
    """What a call returns, or the name of its errno."""
    try:
        return plain(action(*args, **options))
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def kind(path: str) -> str:
    return _KINDS[stat.S_IFMT(os.lstat(path).st_mode)]


def shown(path: str | int) -> dict[str, Any]:
    """What lstat(2) shows that must be the same everywhere."""
    seen = os.fstat(path) if isinstance(path, int) else os.lstat(path)
    return {
        "kind": _KINDS[stat.S_IFMT(seen.st_mode)],
        "mode": f"{stat.S_IMODE(seen.st_mode):04o}",
        "links": seen.st_nlink,
        "owner": [seen.st_uid, seen.st_gid],
        "size": None if stat.S_ISDIR(seen.st_mode) else seen.st_size,
        "device": seen.st_rdev,
    }


def times_changed(action: Callable[[], object], *paths: str) -> list[str]:
    """Which of mtime and ctime of each path are other after an action."""
    before = [os.lstat(path) for path in paths]
    time.sleep(0.011)  # ext4 takes its times from the timer tick, 1 to 10 ms
    action()
    changed = []
    for path, old in zip(paths, before, strict=True):
        new = os.lstat(path)
        names = [n for n in ("mtime", "ctime") if getattr(new, f"st_{n}_ns") != getattr(old, f"st_{n}_ns")]
        changed.append(f"{os.path.basename(path)}: {' '.join(names)}")
    return changed


def libc(function: str, *arguments: int | bytes) -> int:
    """Call what the os module does not have. Raises OSError."""
    converted = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    result: int = getattr(_libc, function)(*converted)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def modes(*values: int) -> dict[str, int]:
    """A column of modes."""
    return {f"{value:04o}": value for value in values}


class Cases:
    """The cases of one module, by name."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self.all: dict[str, Callable[[At], object]] = {}

    def add(self, function: F) -> F:
        """One case; it is called as the function is."""
        self._enter(function.__name__.replace("_", " "), function)
        return function

    def each(self, *columns: Iterable[Any]) -> Callable[[F], F]:
        """A case for every combination. Its name shows the values, or their keys where a column is a mapping."""
        labelled = [
            list(column.items()) if isinstance(column, Mapping) else [(str(value), value) for value in column]
            for column in columns
        ]

        def enter(function: F) -> F:
            for combination in itertools.product(*labelled):
                name = (
                    f"{function.__name__.replace('_', ' ')}: {', '.join(label for label, _ in combination)}"
                )
                self._enter(name, partial(_call, function, [value for _, value in combination]))
            return function

        return enter

    def _enter(self, name: str, function: Callable[[At], object]) -> None:
        full = f"{self._subject}: {name}"
        assert full not in self.all, full
        self.all[full] = function


def _call(function: Callable[..., object], values: list[Any], at: At) -> object:
    return function(at, *values)
