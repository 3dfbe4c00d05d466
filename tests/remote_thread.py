"""The failing remote CAS of the unit tests in a thread of its own, for a daemon in another process; adds no behaviour to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import DigestFunction
from tests.service_client import SHA256, digest_of
from tests.unit.store.fake_remote import FakeRemote, Fault

T = TypeVar("T")
SECONDS: Final = 60.0
"""For anything to happen."""


class RemoteThread:
    """Use as a context manager. `fake` may be looked at from any thread and is changed by the methods here."""

    def __init__(self, socket: Path) -> None:
        self.fake: Final = FakeRemote(str(socket))
        self.url: Final = self.fake.url
        self._loop: Final = asyncio.new_event_loop()
        self._thread: Final = threading.Thread(target=self._loop.run_forever, name="remote CAS")

    def __enter__(self) -> Self:
        self._thread.start()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self) -> None:
        self._run(self.fake.start())

    def stop(self) -> None:
        """Cuts calls off."""
        self._run(self.fake.stop())

    def add(self, data: bytes, function: DigestFunction = SHA256) -> reapi.Digest:
        self.fake.add(data, function)
        return digest_of(data, function)

    def add_in_chunks(self, data: bytes, size: int) -> reapi.Digest:
        """One that the server tells the chunks of, each of `size`."""
        self.fake.cut(self.fake.add(data), size)
        return digest_of(data)

    def fail(self, method: str, *faults: Fault) -> None:
        self.fake.fail(method, *faults)

    def heal(self) -> None:
        """No more faults."""
        self.fake.faults.clear()

    def open(self, gate: asyncio.Event) -> None:
        """Let the calls go on that wait for it by a fault."""
        self._loop.call_soon_threadsafe(gate.set)

    def forget_calls(self) -> None:
        """Count anew."""
        self.fake.calls.clear()
        self.fake.requests.clear()
        self.fake.ends.clear()

    def called(self, method: str) -> None:
        """Return when it was called."""
        self._run(self.fake.called(method))

    def ended(self, method: str) -> None:
        """Return when a call of it that hung was given up."""
        self._run(self.fake.ended(method))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, SECONDS), self._loop).result()
