"""Which state directories have something in a store that nobody else has: private files, and blobs that only their trees need.
Never reads a file that local actions wrote.

One daemon at a time works with a store, but one after the other may, each with a state directory of its own. So a private file lies
in the directory of its owner, and nobody else sweeps it:

    owners/<owner>            the path of the owner's state directory
    private/<owner>/<key>     files that its local actions write
"""

from __future__ import annotations

import logging
import os
from typing import Final, NamedTuple

from outputd.disk.atomic import make_directories, replace_file
from outputd.disk.disk import Disk

_log = logging.getLogger(__name__)

DAMAGED: Final = ".damaged-"
"""In the names of databases that were set aside; whose owner may come back, repaired."""


class Owner(NamedTuple):
    """A state directory."""

    id: str
    """In hex; another one when its database was lost."""
    state: str
    """Its path."""


SOLE: Final = Owner("0", "")
"""Of a store that goes with no state directory."""


class Owners:
    """Those of one store, seen by one of them."""

    def __init__(self, owners: str, private: str, owner: Owner, disk: Disk) -> None:
        """Enter `owner`; what lay in `private` before there were owners is his. Raises OSError."""
        self._owners = owners
        self._private = private
        self._owner = owner
        self._disk = disk
        self.private: Final = f"{private}/{owner.id}"
        """Directory of the owner's private files."""
        make_directories(disk, owners)
        make_directories(disk, self.private)
        path = f"{owners}/{owner.id}"
        if _read(path) != owner.state:
            replace_file(disk, path, os.fsencode(owner.state))
        for name in disk.list(private):
            if os.path.isfile(f"{private}/{name}"):
                disk.rename(f"{private}/{name}", f"{self.private}/{name}")

    def others(self) -> list[str]:
        """The state directories of all other owners. What belonged to one that is gone is removed. Raises OSError."""
        found = []
        for name in self._disk.list(self._owners):
            state = _read(f"{self._owners}/{name}")
            if name == self._owner.id or state is None:
                continue
            if self._is_gone(state):
                self._remove(name, state)
            else:
                found.append(state)
        return sorted(found)

    def _is_gone(self, state: str) -> bool:
        """Whether nobody can come back as the owner whose state directory that was."""
        if not state:
            return False
        try:
            names = os.listdir(state)
        except FileNotFoundError:
            # Certain if its parent can be looked into, which a disk that is not mounted now cannot promise.
            return os.path.isdir(os.path.dirname(state))
        except OSError:
            return False
        # Where we are now, no other state can be, unless it was set aside.
        ours = os.path.realpath(state) == os.path.realpath(self._owner.state)
        return ours and not any(DAMAGED in name for name in names)

    def _remove(self, owner: str, state: str) -> None:
        directory = f"{self._private}/{owner}"
        try:
            left = self._disk.list(directory)
            for name in left:
                self._disk.unlink(f"{directory}/{name}")
            self._disk.remove_directory(directory)
        except FileNotFoundError:
            left = []
        self._disk.unlink(f"{self._owners}/{owner}")
        _log.info("%d private files of the state directory %s, which is gone, were deleted", len(left), state)


def _read(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return os.fsdecode(file.read())
    except FileNotFoundError:
        return None
