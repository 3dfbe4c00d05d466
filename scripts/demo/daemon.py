"""Starts and stops a real `outputd serve` on directories of its own. Never touches the user's settings, mount or store."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from outputd.errors import Unavailable
from outputd.rpc.admin_client import GetStatusResponse, fetch_status

START_SECONDS: Final = 15.0
STOP_SECONDS: Final = 15.0
_PAUSE: Final = 0.05


class Failed(Exception):
    """The demo cannot go on; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Place:
    """The directories of one daemon."""

    root: str

    @property
    def mount(self) -> str:
        return f"{self.root}/mount"

    @property
    def cache(self) -> str:
        return f"{self.root}/cache"

    @property
    def target(self) -> str:
        return f"unix:{self.root}/outputd.sock"

    @property
    def log(self) -> str:
        return f"{self.root}/log"

    def bytes_stored(self) -> int:
        """Bytes of all blobs in the local store, as the disk tells it."""
        blobs = os.walk(f"{self.cache}/blobs")
        return sum(os.stat(f"{directory}/{name}").st_size for directory, _, names in blobs for name in names)

    def last_words(self) -> str:
        """The end of the log."""
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return "".join(log.readlines()[-15:])


@dataclass(frozen=True, slots=True)
class Daemon:
    """One running daemon."""

    place: Place
    command: str
    """As a user would type it, a flag a line."""
    status: GetStatusResponse


@asynccontextmanager
async def running(place: Place, remote: str | None = None) -> AsyncIterator[Daemon]:
    """A daemon that answers; it is stopped in order at the end. Raises Failed when it does not start or stop as it should."""
    arguments = ["serve", "--mount", place.mount, "--listen", place.target]
    arguments += ["--state-dir", f"{place.root}/state", "--cache-dir", place.cache]
    arguments += ["--remote", remote] if remote is not None else []
    os.makedirs(place.root, exist_ok=True)
    # Without the user's settings; and in a session of its own, so that Ctrl-C reaches the demo alone, which stops it in order.
    environ = {name: text for name, text in os.environ.items() if not name.startswith("OUTPUTD_")}
    with open(place.log, "ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "outputd.cli.main", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environ | {"XDG_CONFIG_HOME": place.root},
            start_new_session=True,
        )
    try:
        yield Daemon(place, _typed(arguments), await _answer(place, process))
    except BaseException:
        await _end(process)
        raise
    if await _end(process) != 0:
        raise Failed(f"the daemon ended with code {process.returncode}; its log says:\n{place.last_words()}")


def _typed(arguments: list[str]) -> str:
    return shlex.join(["outputd", *arguments]).replace(" --", " \\\n          --")


async def _answer(place: Place, process: asyncio.subprocess.Process) -> GetStatusResponse:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.returncode is not None:
            raise Failed(f"outputd ended at once (code {process.returncode}):\n{place.last_words()}")
        if os.path.lexists(place.target.removeprefix("unix:")):
            try:
                return await asyncio.to_thread(fetch_status, place.target, 1.0)
            except Unavailable:
                pass  # not yet
        await asyncio.sleep(_PAUSE)
    raise Failed(f"outputd did not answer within {START_SECONDS:g} s; its log says:\n{place.last_words()}")


async def _end(process: asyncio.subprocess.Process) -> int | None:
    """Stop it in order, else at once, else by force; its exit code."""
    for stop in (process.terminate, process.terminate, process.kill):
        if process.returncode is not None:
            break
        stop()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            continue  # the next way is harder
    return process.returncode
