"""What an Actor does through the mount, as local actions and people do: every call that changes something, one at a time."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from tests.crash.actor import Actor, Killed
from tests.crash.changes import Whole, Write, is_empty, nothing, touched
from tests.crash.expected import DIRECTORY, FIFO, FILE, LINK, Expected, Thing

_libc: Final = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD: Final = -100
_AT_SYMLINK_FOLLOW: Final = 0x400
_RENAME_EXCHANGE: Final = 2
_MODES: Final = (0o700, 0o744, 0o755, 0o777, *((0o555,) if os.geteuid() == 0 else ()))
# In a process of its own: where the pages of a mapping are ours to serve, to touch them when the daemon is dead is SIGBUS.
_MAP: Final = """
import mmap, sys
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
    mapping[: len(sys.argv[2])] = sys.argv[2].encode()
    mapping.flush()
"""


class LocalActor(Actor):
    """An Actor with everything it can do, in any order."""

    def __init__(self, base: str, seed: str, outputs: Path, dead: threading.Event) -> None:
        super().__init__(base, seed, outputs, dead)
        self._open: list[int] = []
        """Descriptors that are left open for writing."""
        self._orphans: list[int] = []
        """Those that a crash has cut off: what is written to them is nobody's any more."""
        self._ways: dict[Callable[[], None], int] = {
            self.stage_files: 6,
            self.stage_trees: 2,
            self.finalize_artifacts: 2,
            self.finalize_build: 3,
            self.start_build: 1,
            self.clean: 1,
            self.look: 6,
            self.list_directory: 4,
            self.make_file: 10,
            self.append: 6,
            self.overwrite: 4,
            self.truncate: 3,
            self.map_file: 1,
            self.leave_open: 1,
            self.rename: 5,
            self.exchange: 2,
            self.unlink: 5,
            self.make_directory: 4,
            self.remove_directory: 2,
            self.make_symlink: 3,
            self.make_fifo: 1,
            self.make_link: 4,
            self.make_nameless: 2,
            self.change_mode: 4,
            self.set_times: 4,
            self.set_xattr: 2,
        }

    def run(self) -> None:
        """Work until the daemon is killed."""
        ways, weights = list(self._ways), list(self._ways.values())
        self._orphans += self._open
        self._open.clear()
        for fd in self._orphans:
            try:
                os.write(fd, b"a process that outlived the daemon writes on")
            except OSError:
                pass  # without passthrough it cannot
        try:
            while True:
                if not self.running:
                    self.start_build()
                self.random.choices(ways, weights)[0]()
        except Killed:
            pass

    def close(self) -> None:
        """Give up what was left open."""
        for fd in [*self._orphans, *self._open]:
            _close(fd)
        self._orphans.clear()
        self._open.clear()

    # choosing

    def _path(self, *kinds: str) -> str | None:
        """Some path of these kinds."""
        paths = self.expected.paths(*kinds)
        return self.random.choice(paths) if paths else None

    def _new_path(self) -> str:
        """A path where nothing is, in a directory that is there."""
        return f"{self.random.choice(('', *self.expected.paths(DIRECTORY)))}/n{self.serial()}".lstrip("/")

    def _target(self) -> str:
        """A path for something other than a directory: mostly new, else in place of a file."""
        old = self._path(FILE, LINK, FIFO) if self.random.random() < 0.3 else None
        return old or self._new_path()

    def _at(self, path: str) -> str:
        return str(self.top / path)

    def _data(self) -> bytes:
        size = self.random.choice((1, 30, 500, 5000, 5000, 200_000))
        return f"{self.base} wrote {self.serial()} ".encode().ljust(size, b"~")

    # files

    def make_file(self) -> None:
        path = self._new_path()
        fd = self.step(
            Whole(f"create {path}", lambda expected: expected.enter(path, Thing(FILE, 0o640))),
            lambda: os.open(self._at(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640),
        )
        self._write_and_close(fd, path, 0)

    def append(self) -> None:
        """To a file that may be a blob of the store."""
        path = self._path(FILE)
        if path is not None:
            fd = self.step(
                nothing(f"open for append {path}"), lambda: os.open(self._at(path), os.O_WRONLY | os.O_APPEND)
            )
            self._write_and_close(fd, path, len(self.expected.things[path].content))

    def overwrite(self) -> None:
        path = self._path(FILE)
        if path is not None:
            fd = self.step(
                touched("O_TRUNC", path, lambda expected: _set_content(expected, path, b"")),
                lambda: os.open(self._at(path), os.O_WRONLY | os.O_TRUNC),
            )
            self._write_and_close(fd, path, 0)

    def truncate(self) -> None:
        path = self._path(FILE)
        if path is not None:
            old = self.expected.things[path].content
            size = self.random.choice((0, len(old) // 2, len(old), len(old) + 100))
            self.step(
                touched(
                    f"truncate to {size}",
                    path,
                    lambda expected: _set_content(expected, path, old[:size].ljust(size, b"\0")),
                ),
                lambda: os.truncate(self._at(path), size),
            )

    def map_file(self) -> None:
        path = self._path(FILE)
        if path is None or len(self.expected.things[path].content) < 20:
            return
        text = f"mapped {self.serial():>10}"
        content = text.encode() + self.expected.things[path].content[len(text) :]

        def run() -> None:
            command = [sys.executable, "-S", "-c", _MAP, self._at(path), text]
            if subprocess.run(command, capture_output=True, timeout=30, check=False).returncode:
                raise OSError(f"{path}: could not be mapped")

        self.step(touched("mmap", path, lambda expected: _set_content(expected, path, content)), run)

    def leave_open(self) -> None:
        """Write to a file and do not close it."""
        if len(self._open) + len(self._orphans) < 20:
            path, data = self._new_path(), self._data()
            fd = self.step(
                Whole(
                    f"create {path}, leave open", lambda expected: expected.enter(path, Thing(FILE, 0o600))
                ),
                lambda: os.open(self._at(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600),
            )
            self._open.append(fd)
            self.step(Write(path, 0, data), lambda: os.write(fd, data))

    def _write_and_close(self, fd: int, path: str, offset: int) -> None:
        try:
            for _ in range(self.random.choice((0, 1, 1, 2))):
                data = self._data()
                written = self.step(Write(path, offset, data), partial(os.write, fd, data))
                assert written == len(data), "a short write"
                offset += written
        finally:
            _close(fd)

    # names

    def rename(self) -> None:
        old = self._path(FILE, LINK, FIFO, DIRECTORY)
        if old is None:
            return
        directory = self.expected.things[old].kind == DIRECTORY
        new = self._new_path() if directory else self._target()
        if not f"{new}/".startswith(f"{old}/"):
            self.step(
                Whole(f"rename {old} {new}", lambda expected: expected.move(old, new)),
                lambda: os.rename(self._at(old), self._at(new)),
            )

    def exchange(self) -> None:
        one, other = self._path(FILE, LINK, DIRECTORY), self._path(FILE, LINK, DIRECTORY)
        if one is None or other is None:
            return
        if not f"{one}/".startswith(f"{other}/") and not f"{other}/".startswith(f"{one}/"):
            self.step(
                Whole(f"exchange {one} {other}", lambda expected: expected.exchange(one, other)),
                lambda: self._renameat2(one, other, _RENAME_EXCHANGE),
            )

    def unlink(self) -> None:
        path = self._path(FILE, LINK, FIFO)
        if path is not None:
            self.step(
                Whole(f"unlink {path}", lambda expected: expected.remove(path)),
                lambda: os.unlink(self._at(path)),
            )

    def make_directory(self) -> None:
        path = self._new_path()
        self.step(
            Whole(f"mkdir {path}", lambda expected: expected.enter(path, Thing(DIRECTORY, 0o750))),
            lambda: os.mkdir(self._at(path), 0o750),
        )

    def remove_directory(self) -> None:
        empty = [path for path in self.expected.paths(DIRECTORY) if is_empty(self.expected, path)]
        if empty:
            path = self.random.choice(empty)
            self.step(
                Whole(f"rmdir {path}", lambda expected: expected.remove(path)),
                lambda: os.rmdir(self._at(path)),
            )

    def make_symlink(self) -> None:
        path, target = self._new_path(), self.random.choice(("x", "../nowhere", "/dev/null"))
        self.step(
            Whole(
                f"symlink {path}", lambda expected: expected.enter(path, Thing(LINK, 0o777, target.encode()))
            ),
            lambda: os.symlink(target, self._at(path)),
        )

    def make_fifo(self) -> None:
        path = self._new_path()
        self.step(
            Whole(f"mkfifo {path}", lambda expected: expected.enter(path, Thing(FIFO, 0o600))),
            lambda: os.mkfifo(self._at(path), 0o600),
        )

    def make_link(self) -> None:
        path = self._path(FILE, LINK, FIFO)
        if path is not None:
            new = self._new_path()
            self.step(
                Whole(f"link {path} {new}", lambda expected: _link(expected, path, new)),
                lambda: os.link(self._at(path), self._at(new), follow_symlinks=False),
            )

    def make_nameless(self) -> None:
        """O_TMPFILE, bytes, then a name."""
        path, data = self._new_path(), self._data()
        fd = self.step(nothing("O_TMPFILE"), lambda: os.open(self.top, os.O_TMPFILE | os.O_WRONLY, 0o640))
        try:
            self.step(nothing("write without a name"), lambda: os.write(fd, data))
            self.step(
                Whole(f"linkat {path}", lambda expected: expected.enter(path, Thing(FILE, 0o640, data))),
                lambda: self._link_descriptor(fd, path),
            )
        finally:
            _close(fd)

    # attributes

    def change_mode(self) -> None:
        path = self._path(FILE, FIFO, DIRECTORY)
        if path is not None:
            mode = self.random.choice(_MODES)
            self.step(
                Whole(f"chmod {path} {mode:o}", lambda expected: _set_mode(expected, path, mode)),
                lambda: os.chmod(self._at(path), mode),
            )

    def set_times(self) -> None:
        path = self._path(FILE, FIFO, DIRECTORY, LINK)
        if path is not None:
            mtime = self.random.randrange(10**18, 2 * 10**18)
            self.step(
                touched(f"utimens {mtime}", path, lambda expected: _set_mtime(expected, path, mtime)),
                lambda: os.utime(self._at(path), ns=(1, mtime), follow_symlinks=False),
            )

    def set_xattr(self) -> None:
        path = self._path(FILE, DIRECTORY)
        if path is not None:
            value = b"%d" % self.serial()
            self.step(
                Whole(f"setxattr {path}", lambda expected: _set_xattr(expected, path, value)),
                lambda: os.setxattr(self._at(path), "user.of.a.test", value),
            )

    # calls that the os module has not got

    def _renameat2(self, old: str, new: str, flags: int) -> None:
        _checked(
            _libc.renameat2(
                _AT_FDCWD, os.fsencode(self._at(old)), _AT_FDCWD, os.fsencode(self._at(new)), flags
            )
        )

    def _link_descriptor(self, fd: int, path: str) -> None:
        source = os.fsencode(f"/proc/self/fd/{fd}")
        _checked(_libc.linkat(_AT_FDCWD, source, _AT_FDCWD, os.fsencode(self._at(path)), _AT_SYMLINK_FOLLOW))


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass  # FLUSH finds the daemon dead; the descriptor is closed all the same (close(2))


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _set_content(expected: Expected, path: str, content: bytes) -> None:
    expected.things[path].content = content


def _set_mode(expected: Expected, path: str, mode: int) -> None:
    thing = expected.things[path]
    thing.mode, thing.seen, thing.untouched = mode, None, False


def _set_mtime(expected: Expected, path: str, mtime: int) -> None:
    expected.things[path].mtime = mtime


def _set_xattr(expected: Expected, path: str, value: bytes) -> None:
    thing = expected.things[path]
    thing.xattrs["user.of.a.test"] = value
    thing.seen, thing.untouched = None, False


def _link(expected: Expected, path: str, new: str) -> None:
    thing = expected.things[path]
    thing.seen, thing.untouched = None, False
    expected.enter(new, thing)
