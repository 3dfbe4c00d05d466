"""Loads the directories that one request needs, and each that cannot be loaded only once; decides nothing else.

A request names thousands of paths below one directory. When its message cannot be had, the first of them waits for the deadline and
the others fail at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from outputd.drive.loader import Loader
from outputd.errors import OutputdError
from outputd.tree.node import Directory
from outputd.tree.status import NotLoaded

T = TypeVar("T")


class Loading:
    """For one request."""

    __slots__ = ("_failures", "_loader")

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._failures: dict[Directory, OutputdError] = {}

    async def run(self, operation: Callable[[], T]) -> T | OutputdError:
        """The result of `operation`, called again after each directory that it lacked, or why one cannot be loaded.

        As with drive's Driver nothing else runs between the last load and the call that succeeds.
        """
        while True:
            try:
                return operation()
            except NotLoaded as need:
                directory = need.directory
            failure = self._failures.get(directory)
            if failure is not None:
                return failure
            try:
                await self._loader.load(directory)
            except OutputdError as error:
                self._failures[directory] = error
                return error
