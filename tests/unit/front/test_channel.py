"""The channel and the notifier against a socket that plays the kernel."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable

import pytest

from outputd.errors import Precondition, TimedOut, Unavailable, Unsupported
from outputd.front.fuse import channel as channel_module
from outputd.front.fuse.channel import Channel, Notifier
from outputd.wire.fuse_abi import Opcode
from outputd.wire.fuse_reply import (
    data_header,
    empty_reply,
    error_reply,
    notify_inc_epoch,
    notify_inval_entry,
    notify_inval_inode,
)
from tests import fake_kernel
from tests.fake_kernel import FakeKernel

DEADLINE = 10


class Served:
    """What a channel delivered, and when enough of it has come."""

    def __init__(self, channel: Channel, enough: int = 1) -> None:
        self.messages: list[bytes] = []
        self.ends: list[OSError | None] = []
        self._enough = enough
        self._come = asyncio.Event()
        self._ended = asyncio.Event()
        channel.attach(asyncio.get_running_loop(), self._on_request, self._on_end)

    def _on_request(self, buffer: memoryview, length: int) -> None:
        self.messages.append(bytes(buffer[:length]))
        if len(self.messages) >= self._enough:
            self._come.set()

    def _on_end(self, cause: OSError | None) -> None:
        self.ends.append(cause)
        self._ended.set()

    async def come(self) -> None:
        await asyncio.wait_for(self._come.wait(), DEADLINE)

    async def ended(self) -> None:
        await asyncio.wait_for(self._ended.wait(), DEADLINE)


async def _some_turns() -> None:
    """Enough turns of the loop for a reader that is ready to have been called."""
    for _ in range(5):
        await asyncio.sleep(0)


def _fail(monkeypatch: pytest.MonkeyPatch, call: str, *codes: int) -> None:
    """Make the first calls of os.`call` fail as the device does, then let them through."""
    real: Callable[..., int] = getattr(os, call)
    left = list(codes)

    def failing(*arguments: object) -> int:
        if left:
            code = left.pop(0)
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    monkeypatch.setattr(os, call, failing)


def test_requests_arrive_whole_and_in_order() -> None:
    async def main() -> None:
        with FakeKernel() as kernel:
            channel = Channel(kernel.device())
            sent = [fake_kernel.request(Opcode.LOOKUP, b"x" * n + b"\0", unique=n) for n in range(1, 5)]
            served = Served(channel, enough=4)
            for message in sent:
                kernel.ask(message)
            await served.come()
            assert served.messages == sent
            channel.close()

    asyncio.run(main())


def test_the_loop_gets_its_turn_after_32_requests() -> None:
    async def main() -> None:
        with FakeKernel() as kernel:
            loop = asyncio.get_running_loop()
            channel = Channel(kernel.device())
            served: list[int] = []
            at_its_turn: list[int] = []
            all_served = asyncio.Event()

            def on_request(_buffer: memoryview, length: int) -> None:
                if not served:
                    loop.call_soon(lambda: at_its_turn.append(len(served)))
                served.append(length)
                if len(served) == 40:
                    all_served.set()

            for unique in range(40):
                kernel.ask(fake_kernel.request(Opcode.STATFS, unique=unique))
            channel.attach(loop, on_request, lambda _cause: None)
            await asyncio.wait_for(all_served.wait(), DEADLINE)
            assert at_its_turn == [32]
            channel.close()

    asyncio.run(main())


class Reads:
    """Counts os.readv() and makes chosen calls find nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *empty: int) -> None:
        self.count = 0
        self._empty = empty
        self._real = os.readv
        monkeypatch.setattr(os, "readv", self._readv)

    def _readv(self, fd: int, vector: list[memoryview]) -> int:
        self.count += 1
        if self.count in self._empty:
            raise BlockingIOError
        return self._real(fd, vector)


def test_the_next_request_is_looked_for_before_the_loop_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with FakeKernel() as kernel:
            loop = asyncio.get_running_loop()
            channel = Channel(kernel.device())
            served: list[int] = []
            at_its_turn: list[int] = []
            second = asyncio.Event()

            def on_request(_buffer: memoryview, length: int) -> None:
                served.append(length)
                loop.call_soon(lambda: at_its_turn.append(len(served)))
                if len(served) == 2:
                    second.set()

            monkeypatch.setattr(channel_module, "_SPIN", 0.05)
            Reads(monkeypatch, 2, 3)
            kernel.ask(fake_kernel.request(Opcode.STATFS))
            kernel.ask(fake_kernel.request(Opcode.DESTROY))
            channel.attach(loop, on_request, lambda _cause: None)
            await asyncio.wait_for(second.wait(), DEADLINE)
            assert at_its_turn[0] == 2
            channel.close()

    asyncio.run(main())


def test_looking_in_vain_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with FakeKernel() as kernel:
            channel = Channel(kernel.device())
            # Long enough for a second look even when this machine is busy.
            monkeypatch.setattr(channel_module, "_SPIN", 0.01)
            reads = Reads(monkeypatch)
            counts = []
            for _ in range(8):
                kernel.ask(fake_kernel.request(Opcode.STATFS))
                before = reads.count
                served = Served(channel)
                await served.come()
                counts.append(reads.count - before)
                channel.detach()
            # The message, then nothing: that is two. More is looking on.
            assert all(count > 2 for count in counts[:4])
            assert counts[4:] == [2] * 4
            channel.close()

    asyncio.run(main())


def test_replies_reach_the_kernel_in_one_message() -> None:
    async def main() -> None:
        with FakeKernel() as kernel:
            channel = Channel(kernel.device())
            assert channel.reply(error_reply(5, errno.EACCES))
            assert channel.reply_parts([data_header(6, 8), b"four", memoryview(b"more")])
            header, body = kernel.answer()
            assert (header.unique, header.error, body) == (5, -errno.EACCES, b"")
            header, body = kernel.answer()
            assert (header.unique, header.error, body) == (6, 0, b"fourmore")
            channel.close()

    asyncio.run(main())


def test_a_withdrawn_request_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with FakeKernel() as kernel:
            channel = Channel(kernel.device())
            _fail(monkeypatch, "readv", errno.ENOENT, errno.EAGAIN, errno.ENOENT)
            served = Served(channel)
            kernel.ask(fake_kernel.request(Opcode.STATFS))
            await served.come()
            assert served.ends == []
            channel.close()

    asyncio.run(main())


def test_unmounting_ends_the_channel_without_a_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with FakeKernel() as kernel:
            channel = Channel(kernel.device())
            _fail(monkeypatch, "readv", errno.ENODEV)
            served = Served(channel)
            kernel.ask(fake_kernel.request(Opcode.STATFS))
            await served.ended()
            # The device stays readable after its end: a second call would mean the loop spins.
            await _some_turns()
            assert (served.ends, served.messages) == ([None], [])
            channel.close()

    asyncio.run(main())


def test_an_abort_ends_the_channel_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with FakeKernel() as kernel:
            channel = Channel(kernel.device())
            _fail(monkeypatch, "readv", *[errno.ECONNABORTED] * 100)  # it says so for ever
            served = Served(channel)
            kernel.ask(fake_kernel.request(Opcode.STATFS))
            await served.ended()
            (cause,) = served.ends
            assert cause is not None
            assert cause.errno == errno.ECONNABORTED
            channel.close()

    asyncio.run(main())


def test_a_request_lost_to_an_unmount_is_no_abort(monkeypatch: pytest.MonkeyPatch) -> None:
    """fuse_dev_do_read() says ECONNABORTED, too, of a request that it took when the mount was just taken off."""

    async def main() -> None:
        with FakeKernel() as kernel:
            channel = Channel(kernel.device())
            _fail(monkeypatch, "readv", errno.ECONNABORTED, errno.ECONNABORTED, errno.ENODEV)
            served = Served(channel)
            kernel.ask(fake_kernel.request(Opcode.STATFS))
            await served.ended()
            assert served.ends == [None]
            channel.close()

    asyncio.run(main())


def test_a_kernel_that_hangs_up_ends_the_channel() -> None:
    async def main() -> None:
        with FakeKernel() as kernel:
            channel = Channel(kernel.device())
            served = Served(channel)
            kernel.hang_up()
            await served.ended()
            channel.close()

    asyncio.run(main())


def test_a_server_may_close_the_channel_while_it_is_called() -> None:
    async def main() -> None:
        with FakeKernel() as kernel:
            channel = Channel(kernel.device())
            served = 0
            closed = asyncio.Event()

            def on_request(_buffer: memoryview, _length: int) -> None:
                nonlocal served
                served += 1
                channel.close()
                closed.set()

            kernel.ask(fake_kernel.request(Opcode.STATFS))
            kernel.ask(fake_kernel.request(Opcode.DESTROY))
            channel.attach(asyncio.get_running_loop(), on_request, lambda _cause: None)
            await asyncio.wait_for(closed.wait(), DEADLINE)
            assert served == 1

    asyncio.run(main())


def test_detaching_leaves_requests_in_the_kernel() -> None:
    async def main() -> None:
        with FakeKernel() as kernel:
            channel = Channel(kernel.device())
            served = Served(channel)
            channel.detach()
            kernel.ask(fake_kernel.request(Opcode.STATFS))
            await _some_turns()
            assert served.messages == []
            channel.reply(empty_reply(1))
            assert kernel.answer()[0].unique == 1
            again = Served(channel)
            await again.come()
            channel.close()

    asyncio.run(main())


def test_a_reply_nobody_waits_for_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeKernel() as kernel:
        channel = Channel(kernel.device())
        _fail(monkeypatch, "write", errno.ENOENT)
        _fail(monkeypatch, "writev", errno.ENOENT)
        assert not channel.reply(empty_reply(1))
        assert not channel.reply_parts([data_header(1, 1), b"x"])
        channel.close()


def test_a_reply_the_kernel_finds_malformed_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeKernel() as kernel:
        channel = Channel(kernel.device())
        _fail(monkeypatch, "write", errno.EINVAL)
        with pytest.raises(OSError, match="Invalid argument"):
            channel.reply(b"nonsense")
        channel.close()


def test_a_late_reply_never_reaches_another_file() -> None:
    with FakeKernel() as kernel, FakeKernel() as other:
        channel = Channel(kernel.device())
        number = channel.fd
        channel.close()
        channel.close()
        taken = os.dup2(other.device(), number)
        assert not channel.reply(empty_reply(1))
        assert not channel.reply_parts([empty_reply(2)])
        os.write(taken, empty_reply(3))
        assert other.answer()[0].unique == 3
        os.close(taken)


# --- notifications


def test_notifications_are_written_in_order_and_awaited() -> None:
    async def main() -> None:
        with FakeKernel() as kernel:
            device = kernel.device()
            notifier = Notifier(device, asyncio.get_running_loop())
            names = [b"a", b"b", b"c"]
            await notifier.send([notify_inval_entry(1, name) for name in names])
            # Awaited means written: these do not block.
            assert [kernel.answer()[1][-2:-1] for _ in names] == names
            assert await notifier.close()
            os.close(device)

    asyncio.run(main())


def test_what_the_kernel_does_not_know_needs_no_invalidation(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with FakeKernel() as kernel:
            device = kernel.device()
            notifier = Notifier(device, asyncio.get_running_loop())
            _fail(monkeypatch, "write", errno.ENOENT)
            await notifier.send([notify_inval_entry(1, b"unknown"), notify_inc_epoch()])
            assert kernel.answer()[1] == b""
            assert await notifier.close()
            os.close(device)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (errno.EINVAL, Unsupported, "INVAL_ENTRY: Invalid"),
        (errno.ENOTDIR, Precondition, "INVAL_ENTRY: Not a"),
    ],
)
def test_a_refused_notification_is_told_and_the_others_are_still_written(
    monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception], text: str
) -> None:
    async def main() -> None:
        with FakeKernel() as kernel:
            device = kernel.device()
            notifier = Notifier(device, asyncio.get_running_loop())
            _fail(monkeypatch, "write", code, errno.EPERM)
            with pytest.raises(kind, match=text) as raised:
                await notifier.send(
                    [notify_inval_entry(1, b"first"), notify_inval_inode(1), notify_inval_entry(1, b"last")]
                )
            assert isinstance(raised.value.__cause__, OSError)
            assert kernel.answer()[1].endswith(b"last\0")
            assert await notifier.close()
            os.close(device)

    asyncio.run(main())


def test_a_closed_notifier_refuses() -> None:
    async def main() -> None:
        with FakeKernel() as kernel:
            device = kernel.device()
            notifier = Notifier(device, asyncio.get_running_loop())
            assert await notifier.close()
            with pytest.raises(Unavailable):
                await notifier.send([notify_inc_epoch()])
            os.close(device)

    asyncio.run(main())


def test_a_kernel_that_holds_a_lock_stops_neither_the_sender_nor_the_end() -> None:
    async def main() -> None:
        kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with kernel, device:
            # A full socket makes write() wait as the directory's lock does.
            _fill(device)
            notifier = Notifier(device.fileno(), asyncio.get_running_loop())
            with pytest.raises(TimedOut, match="lock"):
                await notifier.send([notify_inc_epoch()], deadline=0.01)

            async def send_what_is_dropped() -> None:
                with pytest.raises(Unavailable, match="closed"):
                    await notifier.send([notify_inc_epoch()])

            async with asyncio.TaskGroup() as group:
                group.create_task(send_what_is_dropped())
                await _some_turns()
                assert not await notifier.close(deadline=0.01)
                # The abort: the kernel fails what it held, the thread goes on, drops the rest and ends.
                kernel.close()
                assert await notifier.close(deadline=DEADLINE)

    asyncio.run(main())


def test_a_notifier_that_hangs_outlives_its_loop_silently() -> None:
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def main() -> Notifier:
        notifier = Notifier(device.fileno(), asyncio.get_running_loop())
        with pytest.raises(TimedOut):
            await notifier.send([notify_inc_epoch()], deadline=0.01)
        assert not await notifier.close(deadline=0.01)
        return notifier

    with kernel, device:
        _fill(device)
        notifier = asyncio.run(main())
        kernel.close()
        # Its end would raise in the thread, which pytest turns into a failure of this test.
        notifier._thread.join(DEADLINE)
        assert not notifier._thread.is_alive()


def _fill(device: socket.socket) -> None:
    device.setblocking(False)
    try:
        while True:
            device.send(b"x" * 1024)
    except BlockingIOError:
        pass
    device.setblocking(True)
