"""On whose behalf a call to the remote is made: what its own headers said. Never reads or makes a call.

Source: REv2, RequestMetadata: it travels in a binary header, and whoever stands between passes it on.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from typing import Final, NamedTuple

from outputd.store.remote.credential_facts import Headers

REQUEST_METADATA: Final = "build.bazel.remote.execution.v2.requestmetadata-bin"
AUTHORIZATION: Final = "authorization"


class Caller(NamedTuple):
    """A client of ours."""

    request_metadata: bytes | None
    """A serialized RequestMetadata."""
    headers: Headers
    """All that are text; which of them a remote is shown is for its credentials to choose."""

    def __repr__(self) -> str:
        return f"Caller(headers={[name for name, _ in self.headers]})"  # what they say may be secret


NOBODY: Final = Caller(None, ())

caller: ContextVar[Caller] = ContextVar("caller", default=NOBODY)
"""The client whose call is served. Tasks that are begun for it inherit it; work of our own has none."""


def caller_of(headers: Iterable[tuple[str, str | bytes]] | None) -> Caller:
    """Who sent these headers, as gRPC gives them."""
    metadata: bytes | None = None
    shown: list[tuple[str, str]] = []
    for name, value in headers or ():
        if isinstance(value, str):
            shown.append((name, value))
        elif name == REQUEST_METADATA:
            metadata = value
    return Caller(metadata, tuple(shown))
