"""The same process runs the program anew and goes on serving its mount: the way over. Knows nothing of what is in the mount.

The process id stays, and so does what a supervisor knows of it. Over execve(2) go the descriptors of the device and of the locks of
the state and the cache directory, and a piece of memory with the handover. If the new program fails, or is not ready in time, its
end closes the device: the mount is dead then, but nobody hangs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn

from outputd import signals
from outputd.builds.builds import Builds
from outputd.builds.lock import DirectoryLock
from outputd.builds.state import State
from outputd.config import Config
from outputd.errors import OutputdError, Precondition, Unavailable
from outputd.front.fuse.connection import abort_device
from outputd.front.fuse.front import FuseFront
from outputd.front.fuse.handover import VERSION, Handover, decode, encode
from outputd.front.fuse.kept import recall
from outputd.signals import Signals
from outputd.store.layout import FORMAT
from outputd.supervisor import Supervisor

_log = logging.getLogger(__name__)

CHECK: Final = "--check"
"""The flag of `outputd serve` with which it only tells `facts`."""
DEVICE: Final = "outputd-fuse"
"""The name under which a supervisor keeps our device."""
_REST: Final = 10.0
"""Seconds that changes under way get to end at a restart."""
_VARIABLE: Final = "_OUTPUTD_HANDOVER"
_CHECK_SECONDS: Final = 60.0
_READY_SECONDS: Final = 120
"""For the new program to serve again; then SIGALRM ends it. The time goes on over execve(2)."""
_FIXED: Final = ("mount", "state_dir", "cache_dir")


class Locks(NamedTuple):
    """Descriptors that hold the locks of the directories."""

    state: int
    cache: int = -1
    """-1: an earlier version had none."""


@dataclass(frozen=True, slots=True)
class Departure:
    """What goes over."""

    handover: Handover
    locks: Locks
    stopping: bool = False
    """A signal to stop came when it was too late for this program."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What came over."""

    handover: Handover
    locks: Locks
    stopping: bool
    """As of Departure."""


class Restarting:
    """Whether a restart was asked for, and how the last one went that came to nothing."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.due: Final = asyncio.Event()
        """The new program is able to start."""
        self.error = ""

    async def ask(self) -> None:
        """Have a restart begin. Raises Precondition when the new program cannot start; then nothing has happened."""
        await check_successor(self._config)
        self.error = ""
        self.due.set()

    def came_to_nothing(self, error: OutputdError) -> None:
        """This process goes on."""
        self.due.clear()
        self.error = str(error)
        _log.error("no restart: %s", error)


def facts(config: Config, version: str) -> dict[str, object]:
    """What a program tells of itself before it is let in."""
    return {
        "version": version,
        "handover": VERSION,
        "store": FORMAT,
        "mount": config.mount.path,
        "state_dir": config.state.dir,
        "cache_dir": config.cache.dir,
    }


async def check_successor(config: Config) -> None:
    """Have the program that would be run tell its facts. Raises Precondition when it cannot start, or would serve another place."""
    told = await asyncio.to_thread(_ask_successor)
    if told.get("handover") != VERSION:
        raise Precondition(
            f"outputd {told.get('version')} takes a handover of version {told.get('handover')}, this one gives {VERSION}: stop "
            "this one and start that one"
        )
    if told.get("store") != FORMAT:
        raise Precondition(
            f"outputd {told.get('version')} does not read the cache directory in its present format, {FORMAT}"
        )
    ours = facts(config, "")
    for name in _FIXED:
        if told.get(name) != ours[name]:
            raise Precondition(
                f"the setting {name.replace('_', '.') if '_' in name else 'mount.path'} is {told.get(name)} by now, and cannot be "
                f"changed from {ours[name]} without a stop and a start"
            )


def _ask_successor() -> Mapping[str, object]:
    # Not as a child of the event loop, which would fork: now and then gRPC's threads crash a fork before it runs anything.
    # subprocess uses vfork(2) here.
    try:
        done = subprocess.run(
            [*_command(), CHECK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CHECK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Precondition(f"the new program says nothing within {_CHECK_SECONDS:g} s") from None
    except OSError as error:
        raise Precondition(f"the new program cannot be run: {error}") from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()[-2000:]
        raise Precondition(f"the new program does not start (exit code {done.returncode}): {words}")
    try:
        told: Mapping[str, object] = json.loads(done.stdout)
    except ValueError:
        raise Precondition(
            f"the new program is no outputd that can take over: it says {done.stdout[:200]!r}"
        ) from None
    return told


def arrival(environ: MutableMapping[str, str]) -> Arrival | None:
    """What the program that this process ran before has left. Raises Corrupt, Unavailable."""
    value = environ.pop(_VARIABLE, "")
    if not value:
        return None
    device, state, memory, stopping, *cache = map(int, value.split(","))
    locks = Locks(state, *cache)
    for fd in (device, *locks):
        if fd >= 0:
            os.set_inheritable(fd, False)
    try:
        with open(memory, "rb") as file:
            data = file.read()
    except OSError as error:
        raise Unavailable(f"the handover of the last program cannot be read: {error}") from error
    return Arrival(decode(data, device), locks, bool(stopping))


async def until_asked(signals: Signals, restarting: Restarting, front: FuseFront) -> None:
    """Until there is a reason to stop or to restart. Raises Unavailable when the mount is gone."""
    while not (signals.stop.is_set() or front.ended.is_set() or restarting.due.is_set()):
        async with asyncio.TaskGroup() as waits:
            events = (signals.stop, signals.reload, front.ended, restarting.due)
            waiters = [waits.create_task(event.wait()) for event in events]
            await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
            for waiter in waiters:
                waiter.cancel()
        if signals.reload.is_set():
            signals.reload.clear()
            try:
                await restarting.ask()
            except OutputdError as error:
                restarting.came_to_nothing(error)
    if front.ended.is_set() and not signals.stop.is_set():
        raise Unavailable(
            "the mount was taken away from outside: nothing is left to serve; start outputd again"
        )


async def depart(
    builds: Builds, front: FuseFront, state: State, cache: DirectoryLock, restarting: Restarting
) -> Departure | None:
    """Come to rest, save, and pack up; None when that cannot be, and everything goes on as before."""
    try:
        await builds.checkpoints.all()  # most of it while the kernel is still served
        await front.quiesce(_REST)
        try:
            await builds.check_kept()
        except OutputdError:
            front.resume()
            raise
    except OutputdError as error:
        restarting.came_to_nothing(error)
        return None
    return Departure(await front.hand_over(), Locks(state.keep_lock(), cache.keep()))


def left_behind(kept: str, supervisor: Supervisor) -> Handover | None:
    """What a process that was killed has left to us, if a supervisor has kept its device."""
    device = supervisor.take(DEVICE)
    supervisor.discard_rest()
    if device is None:
        return None
    handover = recall(kept, device)
    if handover is None:
        supervisor.give_up(DEVICE)
        # Not by closing it: the supervisor may have it open yet, and who looks into the mount would wait.
        try:
            abort_device(device)
        except OutputdError as error:
            _log.warning("the mount that is given up cannot be aborted: %s", error)
        os.close(device)
    else:
        _log.warning("going on with the mount at %s, whose last process was killed", handover.mount.path)
    return handover


def arrived() -> None:
    """Serving goes on: nothing ends this process any more for being late."""
    signal.alarm(0)


def leave(departure: Departure) -> NoReturn:
    """Run the program anew. To be called when nothing else is left to do in this one. Raises OSError when it cannot be run."""
    memory = os.memfd_create("outputd-handover")
    with open(memory, "wb", closefd=False) as file:
        file.write(encode(departure.handover))
    os.lseek(memory, 0, os.SEEK_SET)
    device, locks = departure.handover.mount.fd, departure.locks
    for fd in (device, *locks, memory):
        os.set_inheritable(fd, True)
    said = (device, locks.state, memory, int(departure.stopping), locks.cache)
    environ = {**os.environ, _VARIABLE: ",".join(map(str, said))}
    program, *arguments = _command()
    signals.hold()
    signal.alarm(_READY_SECONDS)
    os.execve(program, [program, *arguments], environ)


def _command() -> list[str]:
    """As this process was started."""
    return [sys.executable, *sys.orig_argv[1:]]
