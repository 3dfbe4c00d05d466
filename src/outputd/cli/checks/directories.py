"""Are the directories of the settings usable, and is there room. Never creates one: `serve` does.

Nothing here looks into a mount of outputd: if its daemon hangs, so would we.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from outputd.cli.checks.finding import Finding, failed, passed, warned
from outputd.cli.console import show_bytes, show_count
from outputd.front.fuse.mount import FSTYPE, PROBE_DEADLINE, probe, real_mount_point, topmost

_LITTLE_ROOM: Final = 5 << 30
_NO_ROOM: Final = 200 << 20
_LITTLE_INODES: Final = 100_000


def mount_point(wanted: str) -> Finding:
    """The mount point, whoever has mounted there or not."""
    path = real_mount_point(wanted)
    entry = topmost(path)
    if entry is not None and entry.fstype == FSTYPE:
        return _our_mount(path)
    try:
        mode = os.stat(path).st_mode
        names = os.listdir(path) if stat.S_ISDIR(mode) else []
    except FileNotFoundError:
        return _to_be_made(path)
    except OSError as wrong:
        return failed(
            "mount",
            f"{path} cannot be looked into: {wrong.strerror}",
            "choose another directory with --mount",
        )
    if not stat.S_ISDIR(mode):
        return failed(
            "mount", f"{path} is not a directory", "move it away, or choose a directory with --mount"
        )
    if names:
        whose = f"holds {show_count(len(names))} names, {names[0]!r} for one, that a mount would hide"
        return failed("mount", f"{path} {whose}", "move them away, or choose an empty directory with --mount")
    return passed("mount", f"{path} is empty and free")


def _our_mount(path: str) -> Finding:
    code = probe(path, PROBE_DEADLINE)
    if code == errno.ENOTCONN:
        return warned(
            "mount",
            f"{path} is the mount of an outputd that has died",
            f"none needed: `outputd serve` replaces it; or take it off: fusermount3 -u {path}",
        )
    if code is None:
        return failed(
            "mount",
            f"{path} is the mount of an outputd that does not answer within {PROBE_DEADLINE:g} s",
            f"end that process, then take the mount off: umount -l {path}",
        )
    return passed("mount", f"{path} is mounted by an outputd")


def _to_be_made(path: str) -> Finding:
    parent = _nearest(path)
    if os.access(parent, os.W_OK | os.X_OK):
        return passed("mount", f"{path} does not exist yet; `outputd serve` makes it")
    return failed(
        "mount",
        f"{path} does not exist, and {parent} may not be written to",
        "choose another one with --mount",
    )


def store_directory(check: str, path: str, flag: str, uid: int) -> Iterator[Finding]:
    """The state or the cache directory: ours, writable, with room."""
    where = _nearest(path)
    found = os.stat(where)
    if not stat.S_ISDIR(found.st_mode):
        yield failed(
            check, f"{where} is not a directory", f"move it away, or choose another directory with {flag}"
        )
        return
    if not os.access(where, os.W_OK | os.X_OK):
        yield failed(
            check,
            f"{where} may not be written to",
            f"chown -R {uid} {where}, or choose another one with {flag}",
        )
        return
    if where == path and found.st_uid != uid:
        reason = f"{path} belongs to uid {found.st_uid}, and this is uid {uid}: `outputd serve` refuses it"
        yield failed(check, reason, f"chown -R {uid} {path}, or choose another one with {flag}")
    else:
        yield passed(check, path if where == path else f"{path} does not exist yet; `outputd serve` makes it")
    yield from _room(check, where, flag)


def _room(check: str, path: str, flag: str) -> Iterator[Finding]:
    room = os.statvfs(path)
    free, inodes = room.f_bavail * room.f_frsize, room.f_favail
    fix = f"see what could go: outputd gc --dry-run; or choose a directory on a larger disk with {flag}"
    reason = f"{show_bytes(free)} free at {path}"
    if free < _NO_ROOM:
        yield failed(f"{check} room", reason, fix)
    elif free < _LITTLE_ROOM:
        yield warned(f"{check} room", reason, fix)
    elif room.f_files and inodes < _LITTLE_INODES:
        yield warned(f"{check} room", f"{reason}, but room for only {show_count(inodes)} more files", fix)
    else:
        yield passed(f"{check} room", reason)


def _nearest(path: str) -> str:
    """The path itself, or the nearest directory above it that exists."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path
