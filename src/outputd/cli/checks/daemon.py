"""Does a daemon answer where the settings say, and is it the one we think. Never starts or stops one."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from typing import Final

from outputd import __version__
from outputd.cli.checks.finding import Finding, Verdict, failed, passed, warned
from outputd.cli.running_daemon import status_at
from outputd.config import Address, Places, UnixAddress
from outputd.errors import OutputdError, Unavailable
from outputd.front.fuse.mount import real_mount_point
from outputd.rpc.admin_client import GetStatusResponse

_OLD: Final = 24.0
"""Hours after which uploads that wait for a remote are worth a word."""


def daemon_at(address: Address, mount: str, environ: Mapping[str, str]) -> Iterator[Finding]:
    """One address of the settings, by asking the daemon there."""
    if isinstance(address, UnixAddress):
        free = _socket(address, Places.of(environ))
        if free is not None:
            yield free
            if free.verdict is Verdict.PASS:
                yield warned("daemon", "no daemon runs here", "outputd serve")
            return
    elif not address.loopback:
        reason = f"{address} is open to other machines, and nothing there asks who they are"
        yield warned("listen", reason, f"listen on a unix socket, or on 127.0.0.1:{address.port}")
    yield from _ask(address, mount, environ)


def _socket(address: UnixAddress, places: Places) -> Finding | None:
    """Whether a daemon could listen here; None when something listens already."""
    directory = os.path.dirname(address.path)
    elsewhere = "choose another socket with --listen"
    try:
        mode = os.stat(address.path).st_mode
    except FileNotFoundError:
        if os.path.isdir(directory):
            if os.access(directory, os.W_OK | os.X_OK):
                return passed("socket", f"{address} is free")
            return failed("socket", f"{directory} may not be written to", elsewhere)
        if directory == places.private_fallback():
            return passed("socket", f"{address} is free; `outputd serve` makes the directory")
        return failed("socket", f"{directory} does not exist", f"mkdir -m 0700 {directory}, or {elsewhere}")
    except OSError as wrong:
        return failed("socket", f"{address.path}: {wrong.strerror}", elsewhere)
    if not stat.S_ISSOCK(mode):
        reason = f"{address.path} is not a socket, so `outputd serve` will not replace it"
        return failed("socket", reason, f"move it away, or {elsewhere}")
    if _refused(address.path):
        return passed(
            "socket", f"{address} was left behind by a daemon that has ended; `outputd serve` replaces it"
        )
    return None


def _refused(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False  # what is wrong, the question over gRPC will say
        return False


def _ask(address: Address, mount: str, environ: Mapping[str, str]) -> Iterator[Finding]:
    try:
        status = status_at(address, environ)
    except Unavailable as wrong:
        yield warned("daemon", str(wrong), f"outputd serve --listen {address}")
    except OutputdError as wrong:
        yield failed("daemon", str(wrong), "end what listens there, or choose another address with --listen")
    else:
        yield passed("daemon", f"outputd {status.version}, pid {status.pid}, answers at {address}")
        yield from differences(status, mount)
        yield from offline_queues(status, time.time())


def differences(status: GetStatusResponse, mount: str) -> Iterator[Finding]:
    """What the running daemon does otherwise than this command and these settings would."""
    if status.version != __version__:
        reason = f"the daemon is version {status.version}, this command is {__version__}"
        yield warned("version", reason, "restart the daemon: outputs of finished builds are kept")
    if status.mount.path not in (mount, real_mount_point(mount)):
        reason = f"the daemon mounts {status.mount.path}, the settings say {mount}"
        yield warned("mount path", reason, "restart the daemon, or give both the same settings")


def offline_queues(status: GetStatusResponse, now: float) -> Iterator[Finding]:
    """Uploads that a remote still lacks after a day, or does not take; `now` in seconds since 1970."""
    for remote in (status.remote, *status.remotes):
        queue = remote.offline_queue
        where = f"[remotes.{remote.name}]" if remote.name else "[remote]"
        hours = (now - queue.oldest.seconds) / 3600
        if queue.HasField("oldest") and hours >= _OLD:
            reason = f"{queue.blobs + queue.results} uploads have waited for {remote.url} for up to {hours:.0f} hours"
            reason += f": {queue.last_error}" if queue.last_error else ""
            fix = f"see that {remote.url} is reachable; after offline_queue_age ({where}) they are given up"
            yield warned("offline queue", reason, fix)
        if queue.refused:
            reason = f"{len(queue.refused)} uploads were set aside, {remote.url} refuses them: {queue.refused[-1].error}"
            yield warned(
                "offline queue",
                reason,
                "outputd status --json lists them; build again, or upload them otherwise",
            )
