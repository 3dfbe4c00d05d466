"""Put a FUSE file system on a directory and take it off again; never serves a request and never runs on the event loop.

Everything here blocks, within stated deadlines. Taking a mount off may ask the daemon (dirty pages are written back, open
files flushed), so the daemon goes on serving while `unmount` runs in a thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from outputd.errors import Invalid, OutputdError, Precondition, TimedOut, Unavailable, Unsupported
from outputd.front.fuse.connection import abort_connection, connection_of

FSTYPE: Final = "fuse.outputd"
"""With a subtype of our own, updatedb and `find -fstype` can leave the tree alone."""
SOURCE: Final = "outputd"
DEVICE: Final = "/dev/fuse"

# sys/mount.h
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_CAP_SYS_ADMIN: Final = 1 << 21

_HELPER_DEADLINE: Final = 30.0
PROBE_DEADLINE: Final = 5.0
"""Seconds in which a mount that is alive answers `probe`."""
_RETRY_PAUSE: Final = 0.05

_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of /proc/self/mountinfo: proc(5). A device minor of a FUSE mount is the number of its connection."""

    minor: int
    mount_point: str
    fstype: str
    source: str


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount of ours. Whoever made it owns `fd`; the kernel ends the connection when its last copy is closed."""

    path: str
    """As mountinfo shows it: absolute, without symlinks."""
    fd: int
    connection: int
    by_us: bool
    """By mount(2), rather than by fusermount3; it is taken off the same way."""
    created: bool
    """The mount point was missing and has been made."""
    replaced: int
    """Mounts of dead daemons that lay there and were taken off."""


class Unmounted(StrEnum):
    """How a mount ended."""

    CLEAN = "clean"
    GONE = "gone"
    """Somebody else had taken it off."""
    DETACHED = "detached"
    """It was busy: out of sight, and what is still open in it fails once the device is closed."""
    ABORTED = "aborted"
    """The kernel waited for answers that did not come: they were failed, then it was taken off."""


# --- what is mounted

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


def parse_mountinfo(text: bytes) -> list[MountEntry]:
    """Entries in the kernel's order: of several on one mount point the last covers the others."""
    entries = []
    for line in text.removesuffix(b"\n").split(
        b"\n"
    ):  # splitlines() would split at a carriage return in a name
        # "36 35 98:0 /root /mount/point options optional:1 - fstype source super-options"
        before, separator, after = line.partition(b" - ")
        fields, kind = before.split(b" "), after.split(b" ")
        minor = fields[2].partition(b":")[2] if len(fields) > 5 else b""
        if not separator or not minor.isdigit() or len(kind) < 2:
            raise Unsupported(f"/proc/self/mountinfo: not a line as proc(5) describes it: {line[:200]!r}")
        entries.append(
            MountEntry(
                minor=int(minor),
                mount_point=_unescape(fields[4]),
                fstype=_unescape(kind[0]),
                source=_unescape(kind[1]),
            )
        )
    return entries


def _unescape(field: bytes) -> str:
    # seq_path() and show_mountinfo() write space, tab, newline, backslash and # as three octal digits.
    return os.fsdecode(_OCTAL.sub(lambda found: bytes((int(found[1], 8) & 0xFF,)), field))


def topmost(path: str) -> MountEntry | None:
    """The mount that is seen at `path`, a real path; does not touch the file system there."""
    return next(reversed(_mounted_on(path)), None)


def _mounted_on(path: str) -> list[MountEntry]:
    """The mounts at `path`, each covering those before it."""
    with open("/proc/self/mountinfo", "rb") as file:
        return [entry for entry in parse_mountinfo(file.read()) if entry.mount_point == path]


# --- mounting


def mount(
    path: str,
    *,
    allow_other: bool = False,
    default_permissions: bool = True,
    max_read: int = 0,
    by_us: bool | None = None,
) -> Mount:
    """Mount on `path` and return with the device open; requests wait until somebody serves it.

    `by_us` chooses between mount(2) and fusermount3; None takes mount(2) with CAP_SYS_ADMIN, fusermount3 without it or when it is
    refused. Raises Precondition when the place does not allow it, Unsupported when the host does not.
    """
    path = real_mount_point(path)
    replaced = _clear_dead(path)
    created = _prepare(path)
    options = [f"max_read={max_read}"] if max_read else []
    options += ["default_permissions"] if default_permissions else []
    options += ["allow_other"] if allow_other else []
    if by_us is None:
        fd, by_us = _mount_either_way(path, options)
    else:
        fd = _mount_by_us(path, options) if by_us else _mount_by_fusermount(path, options)
    try:
        connection = _first_here(path, fd, by_us=by_us)
    except BaseException:
        os.close(fd)
        raise
    return Mount(path, fd, connection, by_us, created, replaced)


def _first_here(path: str, fd: int, *, by_us: bool) -> int:
    """The connection of what was just mounted. Raises Precondition, and takes it off, when another outputd was faster: both have
    found the place free then."""
    entries = [entry for entry in _mounted_on(path) if entry.fstype == FSTYPE]
    if not entries:
        raise Unavailable(
            f"{path}: mounted, but /proc/self/mountinfo shows {topmost(path) or 'nothing'} there"
        )
    connection = connection_of(fd) or entries[-1].minor
    if entries[0].minor != connection:
        _take_off(path, by_us=by_us, lazy=True)
        raise Precondition(
            f"{path}: another outputd was mounted here at the same moment (connection {entries[0].minor}); choose another mount "
            "point, or start only one"
        )
    return connection


def _mount_either_way(path: str, options: list[str]) -> tuple[int, bool]:
    if not may_mount():
        return _mount_by_fusermount(path, options), False
    try:
        return _mount_by_us(path, options), True
    except Unsupported as first:
        # Root in a container often holds the capability and still may not mount: seccomp, AppArmor.
        try:
            return _mount_by_fusermount(path, options), False
        except OutputdError as second:
            raise Unsupported(f"{first}; and with fusermount3: {second}") from first


def real_mount_point(path: str) -> str:
    """`path` as mountinfo would spell it, resolved without a question to whatever is mounted there."""
    settled = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
    for _ in range(40):  # as many symlinks as the kernel follows: MAXSYMLINKS
        parent, name = os.path.split(settled.rstrip("/"))
        if name in ("", ".", ".."):
            return os.path.realpath(settled)
        settled = os.path.join(os.path.realpath(parent), name)
        if topmost(settled) is not None:
            return settled
        try:
            target = os.readlink(settled)
        except OSError:  # no symlink, or nothing there: `_prepare` looks closer
            return settled
        settled = os.path.join(os.path.dirname(settled), target)
    raise Invalid(f"{path}: too many symbolic links, a directory is needed")


def _clear_dead(path: str) -> int:
    """Take off what dead daemons left at `path` and count it; raise Precondition when a live one serves it."""
    for cleared in range(64):
        entry = topmost(path)
        if entry is None or entry.fstype != FSTYPE:
            _refuse_foreign(path, entry)
            return cleared
        code = probe(path, PROBE_DEADLINE)
        if code != errno.ENOTCONN:
            state = (
                f"does not answer within {PROBE_DEADLINE:.0f} s"
                if code is None
                else "belongs to another user"
                if code == errno.EACCES
                else "is alive"
            )
            raise Precondition(
                f"{path}: an outputd is mounted here already (connection {entry.minor}) and {state}; stop it, "
                f"take it off with `fusermount3 -uz {path}`, or choose another mount point"
            )
        _take_off(path, by_us=may_mount(), lazy=True)
    raise Precondition(
        f"{path}: more than 64 dead mounts lie here; take them off with `fusermount3 -uz {path}`"
    )


def _refuse_foreign(path: str, entry: MountEntry | None) -> None:
    # Before anybody looks into it: it may be dead, or hang.
    if entry is not None and entry.fstype.partition(".")[0] == "fuse":
        raise Precondition(
            f"{path}: a file system of type {entry.fstype} from {entry.source} is mounted here; choose another mount point"
        )


def probe(path: str, deadline: float) -> int | None:
    """What stat(2) and statfs(2) say of `path`: 0, an errno, or None when there was no answer within `deadline` seconds.

    The kernel answers stat from what it remembers of the root, long after the daemon has died; statfs it always asks.
    In a child, because a request that a hung daemon has read waits beyond any signal (request_wait_answer), and so would we.
    """
    code = "import os,sys\ntry:os.stat(sys.argv[1]);os.statvfs(sys.argv[1])\nexcept OSError as e:sys.exit(e.errno)"
    pid = os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", code, path], os.environ)
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(deadline * 1000):
            # Not waited for: it may never end. Our own end hands it to init.
            os.kill(pid, signal.SIGKILL)
            return None
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(pidfd)


def _prepare(path: str) -> bool:
    """Make the mount point when it is missing (True); raise Precondition when it cannot be one."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        try:
            os.makedirs(path)
        except OSError as error:
            raise Precondition(f"{path}: the mount point is missing and cannot be made: {error}") from error
        return True
    except OSError as error:
        raise Precondition(f"{path}: cannot be a mount point: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        raise Precondition(f"{path}: is no directory; a mount point must be one")
    try:
        with os.scandir(path) as names:
            first = next(names, None)
    except OSError as error:
        raise Precondition(f"{path}: cannot be looked into: {error.strerror}") from error
    if first is not None:
        entry = topmost(path)
        whose = "" if entry is None else f" ({entry.fstype} from {entry.source} is mounted here)"
        raise Precondition(
            f"{path}: is not empty{whose}: {first.name!r} would be hidden; empty it or choose another mount point"
        )
    return False


def may_mount() -> bool:
    """Whether mount(2) is ours to call, as far as capabilities tell (CAP_SYS_ADMIN)."""
    if sys.platform != "linux":
        return False
    with open("/proc/self/status", "rb") as file:
        found = re.search(rb"^CapEff:\s*([0-9a-f]+)$", file.read(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) & _CAP_SYS_ADMIN)


def _mount_by_us(path: str, options: list[str]) -> int:
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
        hint = "; load it with `modprobe fuse`, or pass the device into the container" if missing else ""
        raise Unsupported(f"{DEVICE}: {error.strerror}{hint}") from error
    data = ",".join(
        (
            f"fd={fd}",
            f"rootmode={stat.S_IFDIR:o}",
            f"user_id={os.geteuid()}",
            f"group_id={os.getegid()}",
            *options,
        )
    )
    # fuse_fill_super() does not wait for the answer to INIT, so this returns before anybody serves.
    failed = _libc.mount(
        SOURCE.encode(),
        os.fsencode(path),
        FSTYPE.encode(),
        ctypes.c_ulong(_MS_NOSUID | _MS_NODEV),
        data.encode(),
    )
    if failed:
        code = ctypes.get_errno()
        os.close(fd)
        raise Unsupported(f"{path}: mount(2) refused: {os.strerror(code)} (options {data})")
    return fd


def _mount_by_fusermount(path: str, options: list[str]) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        chosen = ",".join((f"fsname={SOURCE}", f"subtype={SOURCE}", "nosuid", "nodev", *options))
        child = _run_fusermount(["-o", chosen, "--", path], theirs.fileno())
        theirs.close()
        ours.settimeout(_HELPER_DEADLINE)
        # One byte with the descriptor in it; without one the program has failed and says why on stderr.
        fds: list[int] = []
        try:
            fds = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)[1]
        except OSError:  # late, or cut off: its end and its words tell more
            child.kill()
        said = _end(child)
    if child.returncode == 0 and fds:
        return fds[0]
    for fd in fds:
        os.close(fd)
    raise Unsupported(f"{path}: fusermount3 {said}")


def _run_fusermount(arguments: list[str], passed: int | None = None) -> subprocess.Popen[bytes]:
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        raise Unsupported("fusermount3 is not in PATH; it comes with the package fuse3")
    try:
        return subprocess.Popen(
            [program, *arguments],
            env=os.environ if passed is None else os.environ | {"_FUSE_COMMFD": str(passed)},
            pass_fds=() if passed is None else (passed,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except OSError as error:
        raise Unsupported(f"{program}: cannot be run: {error.strerror}") from error


def _end(child: subprocess.Popen[bytes]) -> str:
    """Wait for the end of fusermount3 and say what became of it, with the words it wrote to stderr."""
    try:
        said = child.communicate(timeout=_HELPER_DEADLINE)[1]
    except subprocess.TimeoutExpired:
        child.kill()
        said = child.communicate()[1]
    code = child.returncode
    how = f"exit code {code}" if code >= 0 else f"ended by signal {-code}"
    return f"({how}) said: {said.decode(errors='replace').strip() or 'nothing'}"


# --- unmounting


class _Busy(Unavailable):
    """Something in the mount is open or is a working directory."""


def unmount(mount: Mount, *, patience: float = 2.0, deadline: float = 10.0) -> Unmounted:
    """Take the mount off: plainly, again while it is busy for `patience` seconds, then lazily; by force when that hangs.

    It hangs when the kernel waits for an answer of the daemon. After `deadline` seconds all open requests are failed
    (`abort`). Raises Precondition when another file system covers ours, TimedOut when not even force helps.
    """
    ended: list[Unmounted | OutputdError] = []

    def work() -> None:
        try:
            ended.append(_unmount_in_order(mount, patience))
        except OutputdError as error:
            ended.append(error)
        except OSError as error:
            trouble = Unavailable(f"{mount.path}: cannot find out what is mounted: {error}")
            trouble.__cause__ = error
            ended.append(trouble)

    # A thread of its own: umount2(2) may stay in the kernel, and then somebody must be left to end the wait.
    worker = threading.Thread(target=work, name="unmount", daemon=True)
    worker.start()
    worker.join(deadline)
    aborted = worker.is_alive()
    if aborted:
        abort(mount)
        worker.join(deadline)
    if not ended:
        raise TimedOut(f"{mount.path}: umount2(2) did not return, not even after the connection was aborted")
    outcome = ended[0]
    if not isinstance(outcome, Unmounted):
        raise outcome
    return Unmounted.ABORTED if aborted else outcome


def _unmount_in_order(mount: Mount, patience: float) -> Unmounted:
    give_up = time.monotonic() + patience
    while True:
        entry = topmost(mount.path)
        if entry is None:
            return Unmounted.GONE
        if (entry.fstype, entry.minor) != (FSTYPE, mount.connection):
            raise Precondition(
                f"{mount.path}: covered by {entry.fstype} from {entry.source}, which is to be unmounted first"
            )
        lazy = time.monotonic() >= give_up
        try:
            _take_off(mount.path, by_us=mount.by_us, lazy=lazy)
        except _Busy:
            if lazy:
                raise
            time.sleep(_RETRY_PAUSE)
        except Unavailable:
            # Somebody was faster: the next look tells GONE.
            if topmost(mount.path) == entry:
                raise
        else:
            return Unmounted.DETACHED if lazy else Unmounted.CLEAN


def _take_off(path: str, *, by_us: bool, lazy: bool) -> None:
    if by_us:
        _umount2(path, _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0))
        return
    child = _run_fusermount(["-u", *(["-z"] if lazy else []), "--", path])
    said = _end(child)
    if child.returncode:
        kind = _Busy if os.strerror(errno.EBUSY) in said else Unavailable
        raise kind(f"{path}: fusermount3 -u {said}")


def _umount2(path: str, flags: int) -> None:
    if _libc.umount2(os.fsencode(path), flags):
        code = ctypes.get_errno()
        kind = _Busy if code == errno.EBUSY else Unavailable
        raise kind(f"{path}: umount2(2) failed: {os.strerror(code)}")


def abort(mount: Mount) -> None:
    """Fail every request the kernel still waits for, and all later ones; the last resort against a hang."""
    abort_connection(mount.connection)
