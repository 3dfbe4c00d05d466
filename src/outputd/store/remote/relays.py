"""The relays of several remotes, by instance name; makes no call itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from outputd.store.remote.relay import Relay
from outputd.store.routing import Routes


class Relays:
    """What a Relay is for one remote."""

    def __init__(self, routes: Routes, relays: Mapping[str, Relay]) -> None:
        """A relay for each route, by its prefix."""
        self._routes: Final = routes
        self._relays: Final = relays

    def of_instance(self, name: str) -> tuple[Relay, str]:
        """Who passes calls for an instance on, and what the server calls it. Raises Invalid for one that nobody serves."""
        route = self._routes.route(name)
        if route is None:
            raise self._routes.refusal(name)
        return self._relays[route.prefix].of_instance(route.called(name))

    def prefix_of(self, name: str) -> str:
        """The prefix by which a name is somebody's; empty: it is the one's who has all others, if there is one."""
        route = self._routes.route(name)
        return "" if route is None else route.prefix

    async def close(self) -> None:
        for relay in self._relays.values():
            await relay.close()
