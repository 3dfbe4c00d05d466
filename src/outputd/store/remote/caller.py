"""On whose behalf a call to the remote is made: what its own headers said. Never reads or makes a call.

Source: REv2, RequestMetadata: it travels in a binary header, and whoever stands between passes it on.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from typing import Final, NamedTuple

REQUEST_METADATA: Final = "build.bazel.remote.execution.v2.requestmetadata-bin"
AUTHORIZATION: Final = "authorization"


class Caller(NamedTuple):
    """A client of ours."""

    request_metadata: bytes | None
    """A serialized RequestMetadata."""
    authorization: str | None

    def __repr__(self) -> str:
        return f"Caller(authorization={'shown' if self.authorization else None})"  # a secret


NOBODY: Final = Caller(None, None)

caller: ContextVar[Caller] = ContextVar("caller", default=NOBODY)
"""The client whose call is served. Tasks that are begun for it inherit it; work of our own has none."""


def caller_of(headers: Iterable[tuple[str, str | bytes]] | None) -> Caller:
    """Who sent these headers, as gRPC gives them."""
    metadata: bytes | None = None
    authorization: str | None = None
    for name, value in headers or ():
        if name == REQUEST_METADATA and isinstance(value, bytes):
            metadata = value
        elif name == AUTHORIZATION and isinstance(value, str):
            authorization = value
    return Caller(metadata, authorization)
