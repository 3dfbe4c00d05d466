"""Try, load, try again: runs synchronous operations that may lack a directory's children or a file's bytes. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from outputd.drive.content import Content
from outputd.drive.loader import Loader
from outputd.drive.open_file import NotLocal, TooLong
from outputd.tree.node import Child, Directory
from outputd.tree.status import NotLoaded

T = TypeVar("T")


class Driver:
    """Gives the fronts and the builds one way to wait."""

    def __init__(self, loader: Loader, content: Content) -> None:
        self._loader = loader
        self._content = content

    async def peek(self, directory: Directory) -> Mapping[bytes, Child]:
        """See Loader.peek."""
        return await self._loader.peek(directory)

    async def run(self, operation: Callable[[], T]) -> T:
        """The result of `operation`, called again after whatever it lacked was brought.

        Nothing else runs between the last load and the call that succeeds, so an operation is atomic. Raises what loading raises
        (NotFound, Corrupt, Unavailable, TimedOut, ...) and what `operation` itself raises.
        """
        while True:
            try:
                return operation()
            except NotLoaded as need:
                await self._loader.load(need.directory)
            except NotLocal as need:
                await self._content.localise(need.file, writable=need.writable, wanted=need.wanted)
            except TooLong as need:
                await self._content.cut(need.file, need.size)
