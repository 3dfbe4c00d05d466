"""What is under way in the daemon, as outputd.v1.Admin tells it: requests of the kernel, calls, fetches. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from outputd._proto import admin_pb2
from outputd._proto.duration_pb2 import Duration
from outputd.rpc.calls import Calls
from outputd.store.flight import Flight


@dataclass(frozen=True, slots=True)
class KernelRequest:
    """One request that waits, as the front knows it."""

    opcode: str
    path: str
    pid: int
    process: str
    began: float
    """By time.monotonic()."""
    waits_for: str


class Operations:
    """Asks each place what it has under way."""

    def __init__(
        self,
        kernel_requests: Callable[[], Iterable[KernelRequest]],
        calls: Calls,
        fetches: Callable[[], Iterable[tuple[Flight, str]]],
        remote: Callable[[str], str],
    ) -> None:
        """`fetches`: each with the instance name it is asked of; `remote`: the URL of the server that has such a name."""
        self._kernel_requests = kernel_requests
        self._calls = calls
        self._fetches = fetches
        self._remote = remote

    def older_than(self, seconds: float) -> admin_pb2.ListOperationsResponse:
        """Each kind with the oldest first."""
        now = time.monotonic()
        before = now - seconds
        reply = admin_pb2.ListOperationsResponse()
        for request in sorted(self._kernel_requests(), key=lambda request: request.began):
            if request.began <= before:
                reply.kernel_requests.add(
                    opcode=request.opcode,
                    path=request.path,
                    pid=request.pid,
                    process=request.process,
                    age=_duration(now - request.began),
                    waits_for=request.waits_for,
                )
        for call in sorted(self._calls, key=lambda call: call.began):
            if call.began <= before:
                reply.calls.add(method=call.method, peer=call.peer, age=_duration(now - call.began))
        for flight, instance in sorted(self._fetches(), key=lambda fetch: fetch[0].began):
            if flight.began <= before:
                reply.fetches.add(
                    digest=f"{flight.digest.function.lower}:{flight.digest}",
                    received_bytes=flight.received,
                    size_bytes=flight.digest.size,
                    waiters=flight.waiters,
                    remote=self._remote(instance),
                    instance_name=instance,
                    age=_duration(now - flight.began),
                )
        return reply


def _duration(seconds: float) -> Duration:
    made = Duration()
    made.FromMilliseconds(int(seconds * 1000))
    return made
