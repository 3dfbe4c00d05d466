"""Is this machine able to run outputd: FUSE, the right to mount, limits. Never mounts anything.

/dev/fuse is judged by opening it: in a container it may be there, with the right mode, and still be refused (EPERM from the
device cgroup, as Kubernetes does with a hostPath).
"""

from __future__ import annotations

import errno
import importlib.util
import os
import resource
import shutil
import stat
import sys
from collections.abc import Mapping
from typing import Final

from outputd.cli.checks.finding import Finding, failed, passed, warned
from outputd.front.fuse.mount import may_mount

_WANTED_DESCRIPTORS: Final = 4096


def python() -> Finding:
    """The interpreter and its event loop."""
    version = ".".join(map(str, sys.version_info[:3]))
    if importlib.util.find_spec("uvloop") is None:
        reason = f"Python {version} without uvloop; the daemon runs on asyncio's own loop and answers later"
        return warned("python", reason, f"{sys.executable} -m pip install uvloop")
    return passed("python", f"Python {version} with uvloop")


def fuse_device(device: str) -> Finding:
    """/dev/fuse, by opening it."""
    if sys.platform != "linux":
        return failed(
            "fuse", f"this is {sys.platform}; the file system needs Linux", "run outputd on a Linux machine"
        )
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as wrong:
        reason = f"{device} cannot be opened: {wrong.strerror}"
        if wrong.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            return failed(
                "fuse", reason, "modprobe fuse    (as root; in a container: start it with --device /dev/fuse)"
            )
        if wrong.errno == errno.EACCES:
            return failed("fuse", reason, f"chmod 0666 {device}    (as root; this is the usual mode)")
        if wrong.errno == errno.EPERM:
            fix = "let the container use the device: docker run --device /dev/fuse, in Kubernetes a FUSE device plugin"
            return failed("fuse", f"{reason}: the container's device rules forbid it", fix)
        return failed("fuse", reason, "look into the kernel log: dmesg | grep -i fuse")
    return passed("fuse", f"{device} opens")


def right_to_mount(environ: Mapping[str, str]) -> Finding:
    """mount(2) with CAP_SYS_ADMIN, else the setuid program fusermount3."""
    if may_mount():
        return passed("mounting", "this process may call mount(2)")
    program = shutil.which("fusermount3", path=environ.get("PATH"))
    if program is None:
        return failed(
            "mounting",
            "neither the right to mount (CAP_SYS_ADMIN) nor fusermount3",
            "apt-get install fuse3    (as root; Fedora: dnf install fuse3)",
        )
    found = os.stat(program)
    if found.st_uid != 0 or not found.st_mode & stat.S_ISUID:
        fix = f"chown root {program} && chmod u+s {program}    (as root)"
        return failed("mounting", f"{program} is not setuid root, so it may not mount either", fix)
    return passed("mounting", f"{program} mounts for you")


def right_to_allow_other(fuse_conf: str) -> Finding:
    """For `[mount] allow_other`: without privilege, fusermount3 wants the administrator's word for it (mount.fuse3(8))."""
    if may_mount() or _names_user_allow_other(fuse_conf):
        return passed("allow_other", "other users may be let in")
    fix = f"echo user_allow_other >> {fuse_conf}    (as root), or switch it off with --no-allow-other"
    return failed(
        "allow_other", f"[mount] allow_other is on, but {fuse_conf} does not let users ask for it", fix
    )


def descriptors() -> Finding:
    """The limit of open files: each file that is open in the mount takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _WANTED_DESCRIPTORS:
        fix = f"raise the hard limit: ulimit -Hn {_WANTED_DESCRIPTORS}, or LimitNOFILE= in a systemd unit"
        return warned(
            "descriptors", f"at most {hard} files may be open at once; a parallel build may need more", fix
        )
    most = "without limit" if hard == resource.RLIM_INFINITY else f"up to {hard}"
    return passed("descriptors", f"{soft} files may be open at once, {most} on demand")


def _names_user_allow_other(path: str) -> bool:
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            return any(line.strip() == "user_allow_other" for line in lines)
    except OSError:
        return False
