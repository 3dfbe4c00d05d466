"""grpc.health.v1: whether the server answers calls, as one truth for all of its services; never measures anything.

Source: the gRPC health checking protocol. The name of no service stands for the whole server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection

from outputd._proto import health_pb2 as health
from outputd.errors import NotFound
from outputd.rpc.edge import Context

_Status = health.HealthCheckResponse


class Health:
    """The service. Not serving until told otherwise."""

    def __init__(self, services: Collection[str]) -> None:
        """`services`: the full names of those that this server offers."""
        self._services = frozenset(services)
        self._serving = False
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:
        """Tell the truth from now on, and those who watch at once."""
        self._serving = serving
        self._changed.set()
        self._changed = asyncio.Event()

    async def check(
        self, request: health.HealthCheckRequest, _context: Context
    ) -> health.HealthCheckResponse:
        if not self._knows(request.service):
            raise NotFound(
                f"service {request.service!r}: not offered; expected one of {sorted(self._services)}"
            )
        return self._state(request.service)

    async def watch(
        self, request: health.HealthCheckRequest, _context: Context
    ) -> AsyncIterator[health.HealthCheckResponse]:
        while True:
            changed = self._changed
            yield self._state(request.service)
            await changed.wait()

    def _knows(self, service: str) -> bool:
        return not service or service in self._services

    def _state(self, service: str) -> health.HealthCheckResponse:
        if not self._knows(service):
            return _Status(status=_Status.SERVICE_UNKNOWN)
        return _Status(status=_Status.SERVING if self._serving else _Status.NOT_SERVING)
