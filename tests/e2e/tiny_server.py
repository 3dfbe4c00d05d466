"""A file system of one empty directory, run as a process of its own: enough of a daemon to mount, serve, hang and unmount.

Usage: tiny_server.py MOUNT_POINT mount|fusermount [UID]. As another user when UID is given, after everything is imported.
Takes one command a line on stdin and answers each with a line of JSON on stdout: `mute` (read no more requests), `notify`,
`deadlock` (invalidate a directory in which a look-up waits), `unmount SECONDS_OF_PATIENCE`, `ended` (when the mount has been taken
off), `quit`. A look-up of `stuck` is never answered.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
import sys
from typing import Any

import uvloop

from outputd.errors import OutputdError, TimedOut
from outputd.front.fuse.channel import MAX_WRITE, Channel, Notifier
from outputd.front.fuse.mount import Mount, abort, mount, unmount
from outputd.wire import fuse_reply as reply
from outputd.wire import fuse_request as request
from outputd.wire.fuse_abi import KERNEL_MINOR_VERSION, ROOT_ID, Init, Opcode

NANOSECONDS = 1_000_000_000
BIRTH = 1_700_000_000 * NANOSECONDS + 5


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


class TinyServer:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.minor = 0
        self.stuck = asyncio.Event()

    def on_request(self, buffer: memoryview, length: int) -> None:
        opcode, unique, nodeid, _uid, _gid, _pid, end = request.decode_header(buffer, length)
        if opcode == Opcode.INIT:
            answer = self._init(unique, request.decode_init(buffer, end))
        elif opcode == Opcode.GETATTR and nodeid == ROOT_ID:
            answer = reply.attr_reply(unique, reply.attr_validity(0), self._root())
        elif opcode == Opcode.LOOKUP:
            if request.decode_name(buffer, end) == b"stuck":
                self.stuck.set()
                return
            answer = reply.error_reply(unique, errno.ENOENT)
        elif opcode in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.DESTROY, Opcode.INTERRUPT):
            return
        else:
            answer = reply.error_reply(unique, errno.ENOSYS)
        self._channel.reply(answer)

    def _init(self, unique: int, asked: tuple[int, int, int, Init]) -> bytes:
        _major, minor, max_readahead, flags = asked
        self.minor = min(minor, KERNEL_MINOR_VERSION)
        wanted = Init.ASYNC_READ | Init.BIG_WRITES | Init.MAX_PAGES | Init.INIT_EXT | Init.PASSTHROUGH
        return reply.init_reply(
            unique,
            minor=self.minor,
            max_readahead=max_readahead,
            flags=wanted & flags,
            max_background=64,
            congestion_threshold=48,
            max_write=MAX_WRITE,
            time_gran=1,
            max_pages=MAX_WRITE // 4096,
            max_stack_depth=1,
        )

    def _root(self) -> bytes:
        mode = stat.S_IFDIR | 0o755
        return reply.attr(ROOT_ID, 0, 0, BIRTH, BIRTH, BIRTH, mode, 2, os.geteuid(), os.getegid(), 0, 4096)


async def notify(notifier: Notifier) -> dict[str, str]:
    """Send each kind of notification and tell what became of it."""
    outcome = {}
    for name, message in {
        "inode": reply.notify_inval_inode(ROOT_ID),
        "entry": reply.notify_inval_entry(ROOT_ID, b"unknown"),
        "delete": reply.notify_delete(ROOT_ID, 77, b"unknown"),
        "epoch": reply.notify_inc_epoch(),
    }.items():
        try:
            await notifier.send([message], deadline=5)
            outcome[name] = "done"
        except OutputdError as error:
            outcome[name] = str(error)
    return outcome


async def deadlock(notifier: Notifier, mounted: Mount) -> dict[str, Any]:
    """Meet the lock that a look-up holds while it waits for us; tell what ends and what does not, before and after the abort."""
    try:
        await notifier.send([reply.notify_inval_entry(ROOT_ID, b"stuck")], deadline=0.2)
        sent = "done"
    except TimedOut as error:
        sent = str(error)
    closed = await notifier.close(deadline=0.2)
    await asyncio.to_thread(abort, mounted)
    return {"sent": sent, "closed": closed, "closed after abort": await notifier.close(deadline=5)}


async def main(path: str, how: str, user: str = "") -> None:
    if user:
        os.setgroups([])
        os.setgid(int(user))
        os.setuid(int(user))
    loop = asyncio.get_running_loop()
    mounted = mount(path, by_us=how == "mount")
    channel = Channel(mounted.fd)
    notifier = Notifier(mounted.fd, loop)
    server = TinyServer(channel)
    ended: asyncio.Future[str] = loop.create_future()
    channel.attach(loop, server.on_request, lambda cause: ended.set_result(str(cause)))
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    say(connection=mounted.connection, created=mounted.created, replaced=mounted.replaced)
    while line := (await commands.readline()).decode().split():
        match line:
            case ["mute"]:
                channel.detach()
                say(mute=True)
            case ["notify"]:
                say(minor=server.minor, **await notify(notifier))
            case ["deadlock"]:
                await asyncio.wait_for(server.stuck.wait(), 5)
                say(**await deadlock(notifier, mounted))
            case ["unmount", patience]:
                # In a thread: taking it off asks the daemon, which is us.
                outcome = await asyncio.to_thread(unmount, mounted, patience=float(patience), deadline=2.0)
                say(outcome=outcome)
            case ["ended"]:
                say(ended=await asyncio.wait_for(asyncio.shield(ended), 5))
            case _:
                break
    say(notifier=await notifier.close())
    channel.close()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
