"""The journals of all output paths: one directory of files, each the continuation of a checkpoint or of another journal.

A file is named by its sequence number, which grows. The saved row of an output base names the journal that goes on from it; every
other one says which it follows. A base without a row begins with a journal that says so. What does not belong to such a chain is
left over from before a checkpoint or a clean, and is removed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from outputd.builds.journal import FACTS, Journal, facts_of, read_journal
from outputd.disk.atomic import make_directories
from outputd.disk.boot import boot_id
from outputd.disk.disk import Disk
from outputd.errors import Corrupt, Unavailable

_log = logging.getLogger(__name__)

NO_JOURNAL: Final = 0
BROKEN: Final = -1
"""What a journal follows that goes on from one in which something is missing: only a saved row may lead to it."""


@dataclass(slots=True)
class Chain:
    """The journals of one output base that go on from its row, or from nothing."""

    base_id: str
    facts: dict[str, Any]
    """Those that the first file begins with. With `fresh` it begins from nothing, whatever the row says."""
    paths: list[str] = field(default_factory=list)
    last: int = NO_JOURNAL
    """Sequence number of the last file."""
    number: int = 0
    """The highest number of a volume that any of them tells of."""

    def add(self, path: str, sequence: int, facts: dict[str, Any]) -> None:
        """One more file, which begins with `facts`."""
        self.paths.append(path)
        self.last = sequence
        self.number = max(self.number, facts["number"])


class Journals:
    """The directory."""

    def __init__(self, directory: str, disk: Disk) -> None:
        """Make it if need be. Raises Unavailable."""
        self._directory = directory
        self._disk = disk
        self._boot = boot_id()
        try:
            make_directories(disk, directory)
            self._found = sorted(int(name) for name in disk.list(directory) if name.isdecimal())
        except OSError as error:
            raise Unavailable(f"journals {directory}: {error.strerror}") from error
        self._next = max(time.time_ns(), *self._found, 0) + 1

    def open(self, facts: Callable[[], dict[str, Any]], *, after: int, fresh: bool = False) -> Journal:
        """A journal that follows the one numbered `after`, or nothing (`fresh`). The file is made with the first record; it
        begins with the `facts` of that moment."""
        sequence = self._next
        self._next += 1
        return Journal(
            self._path(sequence),
            sequence,
            self._disk,
            self._boot,
            lambda: {**facts(), "after": after, "fresh": fresh},
        )

    def chains(self, rows: dict[str, int]) -> dict[str, Chain]:
        """What there is to be played back, by output base. `rows` has the journal that each saved row names.

        Raises Unavailable. What cannot be read is logged and left where it is.
        """
        chains: dict[str, Chain] = {}
        for sequence in self._found:
            path = self._path(sequence)
            try:
                facts = self._first_facts(path)
            except Corrupt as error:
                _log.error("%s: it is left out", error)
                continue
            if facts is None:
                continue
            base_id = facts["base"]
            chain = chains.get(base_id)
            first = rows.get(base_id)
            if facts["fresh"]:
                # Begun after a row, or after other journals, it means that what they say was cleaned meanwhile.
                if first is not None and sequence < first:
                    continue
                chain = chains[base_id] = Chain(base_id, facts)
            elif chain is None and first is not None and first in (sequence, facts["after"]):
                chain = chains[base_id] = Chain(base_id, facts)
            elif chain is None or facts["after"] != chain.last:
                continue
            chain.add(path, sequence, facts)
        return chains

    def records(self, path: str) -> Iterable[bytes]:
        """Of one file of a chain."""
        return read_journal(path, self._boot)

    def sweep(self, chains: Iterable[Chain]) -> None:
        """Remove every file that was there at the start and is in no chain, but for those that cannot be read."""
        kept = {path for chain in chains for path in chain.paths}
        paths = [self._path(sequence) for sequence in self._found]
        self.remove(path for path in paths if path not in kept and self._readable(path))

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files, those that are no more included, in the order given."""
        for path in paths:
            try:
                self._disk.unlink(path)
            except FileNotFoundError:
                pass  # never made, for nothing was written to it
            except OSError as error:
                _log.warning("%s: cannot be removed, the next start tries again: %s", path, error.strerror)

    def _path(self, sequence: int) -> str:
        return f"{self._directory}/{sequence}"

    def _first_facts(self, path: str) -> dict[str, Any] | None:
        """None of a journal of an earlier boot, or one that was killed when it was about to begin."""
        first = next(iter(read_journal(path, self._boot)), None)
        if first is None:
            return None
        if first[0] != FACTS:
            raise Corrupt(f"journal {path}: does not begin with facts")
        return facts_of(first)

    def _readable(self, path: str) -> bool:
        try:
            self._first_facts(path)
        except Corrupt:
            return False
        return True
