"""What listens is no REv2 server, or one that has lost its mind: every call ends in time. Below gRPC, so with bare sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing

import pytest

from outputd.errors import OutputdError
from outputd.store.remote import RemoteOptions, RemoteStore, parse_endpoint
from outputd.store.remote.connection import Connection
from outputd.store.remote.retry import Failure

OPTIONS = RemoteOptions(timeout=0.7, retry_seconds=0.3)
BOUND = 20.0

Behaviour = Callable[[socket.socket, threading.Event], None]


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """RFC 9113, section 4.1."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream_id) + payload


SETTINGS = frame(4, 0, 0)


def silent(connection: socket.socket, over: threading.Event) -> None:
    over.wait()


def settings_and_silence(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(SETTINGS)
    over.wait()


def pings(connection: socket.socket, over: threading.Event) -> None:
    """Alive, and nothing else."""
    connection.sendall(SETTINGS + frame(4, 1, 0))
    while not over.wait(0.02):
        connection.sendall(frame(6, 0, 0, bytes(8)))


def endless_headers(connection: socket.socket, over: threading.Event) -> None:
    """A reply whose headers never end (CONTINUATION frames)."""
    connection.sendall(SETTINGS + frame(4, 1, 0))
    over.wait(0.2)  # let it ask
    field = b"\x00\x06x-more\x7f\x81\x00" + b"y" * 256  # HPACK: a literal that is not indexed
    connection.sendall(frame(1, 0, 1, b"\x88"))
    while not over.wait(0.005):
        connection.sendall(frame(9, 0, 1, field))


def garbage(connection: socket.socket, over: threading.Event) -> None:
    while not over.wait(0.01):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" * 50)


def hangs_up(connection: socket.socket, over: threading.Event) -> None:
    pass


@contextlib.contextmanager
def listening(behaviour: Behaviour | None) -> Iterator[int]:
    """A port on which each connection meets the behaviour; with None nobody accepts any."""
    over = threading.Event()
    threads: list[threading.Thread] = []
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port: int = listener.getsockname()[1]

        def serve(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                assert behaviour is not None
                behaviour(connection, over)

        def accept() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

        if behaviour is None:
            # Once the queue is full the kernel drops what asks for a connection, as a firewall does.
            for _ in range(3):
                waiting = sockets.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.1", port))
        else:
            threads.append(threading.Thread(target=accept))
            threads[-1].start()
        try:
            yield port
        finally:
            over.set()
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


@pytest.mark.parametrize(
    "behaviour",
    [None, silent, settings_and_silence, pings, endless_headers, garbage, hangs_up],
    ids=lambda behaviour: "drops" if behaviour is None else behaviour.__name__,
)
def test_every_call_ends(behaviour: Behaviour | None) -> None:
    async def unary(connection: Connection) -> object:
        return await connection.call("/s/m", b"", "call")

    async def down(connection: Connection) -> object:
        async with aclosing(connection.receive("/s/m", b"", "name", "read")) as replies:
            return [reply async for reply in replies][-1]

    async def up(connection: Connection) -> object:
        async with aclosing(endless()) as requests:
            return await connection.send("/s/m", requests, "name", "write")

    async def test(port: int) -> None:
        connection = Connection(parse_endpoint(f"grpc://127.0.0.1:{port}"), OPTIONS)
        try:
            async with asyncio.timeout(BOUND), asyncio.TaskGroup() as tasks:
                calls = [tasks.create_task(kind(connection)) for kind in (unary, down, up)]
        finally:
            await connection.close()
        for call in calls:
            failure = call.result()
            assert isinstance(failure, Failure)
            assert isinstance(failure.error, OutputdError)

    with listening(behaviour) as port:
        asyncio.run(test(port))


async def endless() -> AsyncGenerator[bytes]:
    while True:
        yield bytes(100_000)


def test_a_name_that_nobody_knows() -> None:
    async def test() -> None:
        client = RemoteStore("grpc://nobody.invalid:1", options=OPTIONS)
        began = time.monotonic()
        with pytest.raises(OutputdError, match=r"grpc://nobody\.invalid:1"):
            await client.abilities()
        assert time.monotonic() - began < BOUND
        await client.close()

    asyncio.run(test())
