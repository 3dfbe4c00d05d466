"""Which of several remotes an instance name belongs to, and what it is called there; one RemoteBlobs for all. Never makes a call.

The longest prefix counts, by whole words between slashes: `a/b` is a prefix of `a/b` and `a/b/c`, not of `a/bc`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from outputd.digest import Digest
from outputd.errors import Invalid, OutputdError
from outputd.store.base import Piece, RemoteAbilities, RemoteBlobs

_NOTHING: Final[Sequence[bytes]] = ()


def longest(prefixes: Iterable[str], name: str) -> str | None:
    """The one that counts for an instance name; None when none of them fits."""
    fitting = (prefix for prefix in prefixes if not prefix or f"{name}/".startswith(f"{prefix}/"))
    return max(fitting, key=len, default=None)


@dataclass(frozen=True, slots=True)
class Route:
    """The instance names of one remote."""

    prefix: str
    """What they begin with; empty: whatever no other route has."""
    remote: RemoteBlobs
    instance_name: str | None
    """What stands at the remote in place of the prefix. None: names are the remote's own, and what carries none means the one
    that `remote` was made for."""
    server: str = ""
    """What tells its server from others: the URL."""
    made_for: str = ""
    """The instance name that `remote` was made for."""

    def called(self, name: str) -> str:
        """What the remote calls an instance that this route serves; empty: the one that `remote` was made for."""
        if self.instance_name is None:
            return name
        rest = name.removeprefix(self.prefix).removeprefix("/")
        return "/".join(part for part in (self.instance_name, rest) if part)

    def of_instance(self, name: str) -> RemoteBlobs:
        """The remote, asked for such an instance."""
        called = self.called(name)
        return self.remote.of_instance(called) if called else self.remote


class Routes:
    """Remotes by instance name. As a RemoteBlobs it is the one of calls that carry no name."""

    def __init__(self, routes: Sequence[Route]) -> None:
        """No two with the same prefix."""
        self._routes = {route.prefix: route for route in routes}
        self._unnamed = self.of_instance("")

    def route(self, name: str) -> Route | None:
        """The one that serves an instance."""
        prefix = self.prefix(name)
        return None if prefix is None else self._routes[prefix]

    def of_instance(self, name: str) -> RemoteBlobs:
        route = self.route(name)
        return Unserved(self.refusal(name)) if route is None else route.of_instance(name)

    def prefix(self, name: str) -> str | None:
        """Which remote that is, by its prefix; None when no route serves it."""
        return longest(self._routes, name)

    def place(self, name: str) -> str:
        """Names the server and the instance there that an instance name stands for: two names of one place have the same blobs, and
        what is known of one place says nothing of another."""
        route = self.route(name)
        if route is None:
            return f"\n{name}"
        return f"{route.server}\n{route.called(name) or route.made_for}"

    def refusal(self, name: str) -> Invalid:
        """Of an instance name that no route serves."""
        called = f"instance name {name!r}" if name else "a call without instance name"
        known = ", ".join(map(repr, sorted(self._routes)))
        return Invalid(
            f"{called}: no remote is configured for it; the settings have remotes for names that begin with {known}"
        )

    async def abilities(self) -> RemoteAbilities:
        return await self._unnamed.abilities()

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        return await self._unnamed.find_missing(digests)

    async def read_batch(
        self, digests: Collection[Digest], *, part_of: Digest | None = None
    ) -> Mapping[Digest, bytes | OutputdError]:
        return await self._unnamed.read_batch(digests, part_of=part_of)

    def read_stream(self, digest: Digest, offset: int = 0, limit: int = 0) -> AsyncGenerator[Piece]:
        return self._unnamed.read_stream(digest, offset, limit)

    async def split(self, digest: Digest) -> Sequence[Digest] | None:
        return await self._unnamed.split(digest)

    async def write(self, digest: Digest, data: Callable[[], AsyncGenerator[bytes]]) -> None:
        await self._unnamed.write(digest, data)

    async def write_batch(self, blobs: Mapping[Digest, bytes]) -> Mapping[Digest, OutputdError]:
        return await self._unnamed.write_batch(blobs)

    async def close(self) -> None:
        for route in self._routes.values():
            await route.remote.close()


class Unserved:
    """The RemoteBlobs of an instance name that no route serves: each call raises Invalid, which names the prefixes there are."""

    def __init__(self, refusal: Invalid) -> None:
        self._text = str(refusal)

    def _refusal(self) -> Invalid:
        return Invalid(self._text)  # one for each who is refused: an exception that is raised remembers where

    def of_instance(self, name: str) -> RemoteBlobs:
        return self

    async def abilities(self) -> RemoteAbilities:
        raise self._refusal()

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        raise self._refusal()

    async def read_batch(
        self, digests: Collection[Digest], *, part_of: Digest | None = None
    ) -> Mapping[Digest, bytes | OutputdError]:
        return dict.fromkeys(digests, self._refusal())

    async def read_stream(self, digest: Digest, offset: int = 0, limit: int = 0) -> AsyncGenerator[Piece]:
        for piece in _NOTHING:
            yield piece
        raise self._refusal()

    async def split(self, digest: Digest) -> Sequence[Digest] | None:
        raise self._refusal()

    async def write(self, digest: Digest, data: Callable[[], AsyncGenerator[bytes]]) -> None:
        raise self._refusal()

    async def write_batch(self, blobs: Mapping[Digest, bytes]) -> Mapping[Digest, OutputdError]:
        return dict.fromkeys(blobs, self._refusal())

    async def close(self) -> None:
        pass
