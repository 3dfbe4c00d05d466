"""A relay between a client and a server: counts bytes, and can be cut, mended elsewhere, or made to swallow everything.

So a test sees what goes over the wire, and plays the network's part without the server's help. Never looks into what it passes on.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

Address: TypeAlias = "str | tuple[str, int]"
"""A unix socket or a TCP port."""


class Relay:
    """Listens on a unix socket, once it is mended for the first time. Use as a context manager."""

    def __init__(self, path: Path, target: Address) -> None:
        self.url: Final = f"unix:{path}"
        self.target = target
        """May be changed while cut."""
        self.received = 0
        """Bytes that came from the server."""
        self.sent = 0
        """Bytes that went to it."""
        self.cut_off: Final = threading.Event()
        """Set once somebody, or too many bytes, cut it."""
        self._path: Final = str(path)
        self._limit: int | None = None
        self._frozen: Final = threading.Event()
        self._guard: Final = threading.Lock()
        self._listener: socket.socket | None = None
        self._open: Final[set[socket.socket]] = set()
        self._threads: Final[list[threading.Thread]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cut()
        for thread in self._threads:
            thread.join()

    def mend(self) -> None:
        """Let connections through."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self._path)
        listener.listen()
        with self._guard:
            self._limit = None
            self._listener = listener
            self.cut_off.clear()
            self._frozen.clear()
        self._start(self._accept, listener)

    def cut(self) -> None:
        """End all connections and refuse new ones."""
        with self._guard:
            self.cut_off.set()
            self._frozen.clear()
            listener, self._listener = self._listener, None
            if listener is None:
                return
            os.unlink(self._path)
            for end in (listener, *self._open):
                # Not closed here: another thread waits for it, and wakes up by this.
                _shut(end)

    def cut_after(self, received: int) -> None:
        """Cut when so many more bytes have come from the server."""
        with self._guard:
            self._limit = self.received + received

    def freeze(self) -> None:
        """From now on nothing arrives anywhere, and nobody is told."""
        self._frozen.set()

    def _start(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, name="relay")
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    client = listener.accept()[0]
                except OSError:
                    return  # cut
                server = socket.socket(socket.AF_UNIX if isinstance(self.target, str) else socket.AF_INET)
                try:
                    server.connect(self.target)
                except OSError:
                    client.close()  # nobody there: as the server's own machine would say
                    server.close()
                    continue
                with self._guard:
                    if self.cut_off.is_set():
                        client.close()
                        server.close()
                        return
                    self._open.update((client, server))
                self._start(self._serve, client, server)

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        up = threading.Thread(target=self._pump, args=(client, server, False), name="relay up")
        up.start()
        self._pump(server, client, True)
        up.join()
        with self._guard:
            self._open.difference_update((client, server))
            client.close()
            server.close()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                while self._frozen.is_set():
                    if self.cut_off.wait(0.05):
                        return
                if counted:
                    self.received += len(data)
                    if self._limit is not None and self.received >= self._limit:
                        self.cut()
                        return
                else:
                    self.sent += len(data)
                sink.sendall(data)
        except OSError:
            pass  # one side has gone; the other is told below
        for end in (source, sink):
            _shut(end)


def _shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it went by itself
