"""A real REv2 server for a daemon's --remote: it can be stopped, emptied, started again, behind a relay that stays where it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, TypeAlias

import grpc

from outputd.digest import DigestFunction
from tests.interop.servers import Server
from tests.relay import Relay
from tests.service_client import SHA256, Cas

Starter: TypeAlias = Callable[..., AbstractContextManager[Server]]
"""`servers.buildgrid` or `servers.buildbox_casd`."""


class Upstream:
    """The server, its relay, and a client of its own."""

    def __init__(self, start: Starter, directory: Path, *options: str) -> None:
        self.relay: Final = Relay(directory / "relay", "")
        self._starter: Final = start
        self.directory: Final = directory / "server"
        """Where it keeps everything."""
        self._options: Final = options
        self._running: AbstractContextManager[Server] | None = None
        self._channel: grpc.Channel | None = None
        self.address = ""
        """Of the server itself, for gRPC; another one after each start."""

    def start(self) -> None:
        self._running = self._starter(self.directory, *self._options)
        url = self._running.__enter__().url
        self.address = address = url.removeprefix("grpc://")
        self._channel = grpc.insecure_channel(address)
        host, _, port = address.rpartition(":")
        self.relay.target = url.removeprefix("unix:") if url.startswith("unix:") else (host, int(port))
        self.relay.mend()

    def stop(self) -> None:
        self.relay.cut()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._running is not None:
            running, self._running = self._running, None
            running.__exit__(None, None, None)

    def lose_everything(self) -> None:
        """Stop it, and start it with nothing in it."""
        self.stop()
        shutil.rmtree(self.directory / "cas")
        self.start()

    @property
    def channel(self) -> grpc.Channel:
        """To call it, past the relay."""
        assert self._channel is not None
        return self._channel

    def cas(self, instance: str = "", function: DigestFunction = SHA256) -> Cas:
        """To put blobs into it and to ask for them, past the relay."""
        return Cas(self.channel, instance, function)


@contextmanager
def upstream(start: Starter, directory: Path, *options: str) -> Iterator[Upstream]:
    """Started; its directory must be short enough for sockets."""
    made = Upstream(start, directory, *options)
    with made.relay:
        made.start()
        try:
            yield made
        finally:
            made.stop()
