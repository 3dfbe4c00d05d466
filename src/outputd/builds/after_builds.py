"""Replays profiles after each build, in the background, as the settings name them. Fails nobody: what does not come is logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from fnmatch import fnmatchcase

from outputd.builds.prefetch import Prefetch, Prefetched
from outputd.builds.profiles import Profiles
from outputd.drive.profile import Wish
from outputd.errors import NotFound, OutputdError
from outputd.tree.node import Directory

_log = logging.getLogger(__name__)


class AfterBuilds:
    """For one event loop."""

    def __init__(
        self,
        wishes: Sequence[Wish],
        profiles: Profiles,
        prefetch: Prefetch,
        root: Callable[[str], Directory],
    ) -> None:
        """`root` gives the top of an output path or raises NotFound."""
        self._wishes = wishes
        self._profiles = profiles
        self._prefetch = prefetch
        self._root = root
        self._ended: dict[str, None] = {}
        self._some = asyncio.Event()

    def ended(self, output_base_id: str) -> None:
        """A build has ended."""
        if any(fnmatchcase(output_base_id, wish.output_bases) for wish in self._wishes):
            self._ended[output_base_id] = None
            self._some.set()

    async def run(self) -> None:
        """Work until cancelled, on one output base after the other."""
        while True:
            await self._some.wait()
            self._some.clear()
            while self._ended:
                output_base_id = next(iter(self._ended))
                del self._ended[output_base_id]
                for wish in self._wishes:
                    if fnmatchcase(output_base_id, wish.output_bases):
                        await self._replay(wish.name, output_base_id)

    async def _replay(self, name: str, output_base_id: str) -> None:
        done = Prefetched()
        try:
            profile = await self._profiles.get(name)
            root = self._root(output_base_id)
            async with aclosing(self._prefetch.replay(root, profile)) as steps:
                async for step in steps:
                    done = step
                    if output_base_id in self._ended:
                        return  # another build has ended meanwhile: what it left is what counts
        except NotFound as error:
            _log.info("after the build of output base %s: %s", output_base_id, error)
        except OutputdError as error:
            _log.warning("profile %s cannot be replayed in output base %s: %s", name, output_base_id, error)
        else:
            _log.info(
                "profile %s replayed in output base %s: %d blobs brought, %d bytes; %d files are not there",
                name,
                output_base_id,
                done.fetched.files,
                done.fetched.bytes,
                done.absent,
            )
            if done.failed:
                _log.warning(
                    "%d blobs of profile %s could not be brought: %s", done.failed, name, done.first_failure
                )
