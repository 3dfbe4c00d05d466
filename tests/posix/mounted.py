"""A mount to try things on, served by a process of its own: the front, the drive and the tree, without a daemon around them.

Run as a program it serves: `python -m tests.posix.mounted PLACE [others] [passthrough] [xattrs]` mounts at PLACE/mnt, with those
features, says `ready`, and serves until its stdin ends. Meanwhile PLACE/control takes one command a connection, a line of JSON:
`{"stage": path, "data": hex, "here": bool}` puts a file by digest at a path below the output path, its bytes in the local store or
only in the remote.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import uvloop

from outputd.digest import Digest
from outputd.drive.accounting import Accounting
from outputd.drive.crawl import CrawlGuard, CrawlOptions, Mode
from outputd.drive.recording import Recordings
from outputd.front.fuse.answers import Timeouts
from outputd.front.fuse.front import FuseFront
from outputd.tree.node import EXECUTABLE_MODE, Directory, File
from tests.unit.drive.world import SHA256, World, world

_REPOSITORY = Path(__file__).parents[2]
_HOUR = 3600 * 10**9


class Mounted:
    """The other side of it: starts the process, stages through it, ends it. Never looks into the mount itself."""

    def __init__(
        self, place: Path, *, others: bool = False, passthrough: bool = True, xattrs: bool = False
    ) -> None:
        """`others`: other users may use it, if root mounts it."""
        self._mount = place / "mnt"
        self.root = self._mount / "outputs" / "base"
        """The output path."""
        self.control = place / "control"
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.posix.mounted",
                str(place),
                *(["others"] if others and os.geteuid() == 0 else []),
                *(["passthrough"] if passthrough else []),
                *(["xattrs"] if xattrs else []),
            ],
            cwd=_REPOSITORY,
            env=os.environ | {"PYTHONPATH": f"{_REPOSITORY / 'src'}:{_REPOSITORY}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", "the mount did not come up"

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            code = self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait(10)
        self._process.stdout.close()
        if code:
            subprocess.run(["umount", "-l", str(self._mount)], check=False, stderr=subprocess.DEVNULL)
        assert code == 0, f"the process that served {self._mount} ended with {code}"


def stage(control: Path, path: str, data: bytes, *, here: bool) -> None:
    """Have a file staged by digest."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(os.fspath(control))
        connection.sendall(json.dumps({"stage": path, "data": data.hex(), "here": here}).encode() + b"\n")
        answer = connection.recv(100)
    assert answer == b"done\n", answer


# --- in the serving process


class _Control:
    def __init__(self, place: World, store_dir: str, front: FuseFront) -> None:
        self._world = place
        self._blobs = f"{store_dir}/blobs/sha256"
        self._front = front

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = json.loads(await reader.readline())
        await self._stage(os.fsencode(command["stage"]), bytes.fromhex(command["data"]), command["here"])
        writer.write(b"done\n")
        await writer.drain()
        writer.close()

    async def _stage(self, path: bytes, data: bytes, here: bool) -> None:
        tree = self._world.tree
        digest = Digest.of(SHA256, data)
        self._world.remote.blobs[digest] = data
        if here:
            self._world.store.put(digest, data)
        else:
            with contextlib.suppress(
                FileNotFoundError
            ):  # another file of this digest was read or staged before
                os.unlink(f"{self._blobs}/{digest.hash_hex[:2]}/{digest.hash_hex[2:]}")
        directory = self._world.root
        *parents, name = path.split(b"/")
        for parent in parents:
            below = tree.lookup(directory, parent)
            assert isinstance(below, Directory), path
            directory = below
        file = File(EXECUTABLE_MODE, time.time_ns(), digest)
        tree.place(directory, name, file, file.mtime)
        stale, tree.stale = tree.stale, []
        await self._front.invalidate(stale)


async def _serve(place: str, *features: str) -> None:
    async with world(f"{place}/store", 20.0) as parts, asyncio.TaskGroup() as tasks:
        accounting = Accounting()
        front = FuseFront(
            parts.tree,
            parts.driver,
            parts.content,
            parts.reaper,
            tasks,
            timeouts=Timeouts(_HOUR, _HOUR, _HOUR),
            accounting=accounting,
            guard=CrawlGuard(CrawlOptions(Mode.OFF, 1, 1, 1.0, (), ()), accounting),
            recordings=Recordings(),
            store_dir=f"{place}/store",
            xattrs="xattrs" in features,
            passthrough="passthrough" in features,
            kept=f"{place}/kept",
        )
        await front.start(f"{place}/mnt", allow_other="others" in features)
        server = await asyncio.start_unix_server(
            _Control(parts, f"{place}/store", front).serve, f"{place}/control", limit=1 << 22
        )
        print("ready", flush=True)
        commands = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
        )
        await commands.read()
        server.close()
        await front.stop()


if __name__ == "__main__":
    uvloop.run(_serve(*sys.argv[1:]))
