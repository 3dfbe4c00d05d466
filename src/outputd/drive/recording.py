"""Which files programs read through the mount, gathered for profiles while somebody records; else it costs one look at `on`.

The kernel asks for the bytes that it lacks, and for nothing that it has. So while an output path is recorded, its files are not
passed through, and the first open of each has the kernel drop what it has of it: from then on every byte that a program reads
comes by here once. What it reads ahead comes too: at the beginning of a file, some 128 KiB.
"""

from __future__ import annotations

import enum
from typing import Final

from outputd.drive.accounting import Place
from outputd.drive.profile import LARGE, MOST_FILES, WHOLE, Part, Profile, Spans
from outputd.tree.node import File


class Watch(enum.Enum):
    """How a file is to be opened for reading."""

    NOT = enum.auto()
    """Nobody records."""
    AFRESH = enum.auto()
    """The kernel is to drop what it has of it."""
    ON = enum.auto()
    """It was opened before."""


class Recording:
    """One profile in the making."""

    __slots__ = ("_spans", "changed", "full", "opened", "profile")

    def __init__(self, profile: Profile) -> None:
        """Go on with one that may be empty."""
        self.profile: Final = profile
        self.opened: Final[set[bytes]] = set()
        """Paths of which the kernel has nothing that was not seen."""
        self.changed: Final[dict[bytes, None]] = {}
        """Paths of which more was read since somebody emptied this."""
        self._spans: Final[dict[bytes, Spans]] = {
            path: Spans(*part) for path, part in profile.files.items() if part.runs
        }
        self.full = not profile.complete
        """It takes no more files."""

    def read(self, path: bytes, size: int, offset: int, length: int) -> None:
        """Bytes of a file of some `size` were read."""
        files = self.profile.files
        known = files.get(path)
        if known is None:
            if len(files) >= MOST_FILES:
                self.full, self.profile.complete = True, False
            if self.full:
                return
        if size < LARGE:
            if known != WHOLE:
                self._note(path, WHOLE)
            return
        if known == WHOLE:
            return
        spans = self._spans.get(path)
        if spans is None or (known is not None and known.size != size):
            spans = self._spans[path] = Spans(size)
        if spans.add(offset, length):
            self._note(path, spans.part)

    def _note(self, path: bytes, part: Part) -> None:
        self.profile.files[path] = part
        self.changed[path] = None
        if part == WHOLE:
            self._spans.pop(path, None)


class Recordings:
    """Those under way. For one event loop."""

    __slots__ = ("_by_base", "on")

    def __init__(self) -> None:
        self.on = False
        """Somebody records; the rest is to be called only then."""
        self._by_base: dict[str, tuple[Recording, ...]] = {}

    def begin(self, recording: Recording) -> None:
        base = recording.profile.output_base_id
        self._by_base[base] = (*self._by_base.get(base, ()), recording)
        self.on = True

    def end(self, recording: Recording) -> None:
        base = recording.profile.output_base_id
        left = tuple(other for other in self._by_base.pop(base, ()) if other is not recording)
        if left:
            self._by_base[base] = left
        self.on = bool(self._by_base)

    def opening(self, file: File) -> Watch:
        """Somebody opens a file to read it."""
        place = Place.of(file)
        recordings = self._by_base.get(place.output_base_id, ())
        found = Watch.NOT
        for recording in recordings:
            if recording.full:
                continue
            if found is Watch.NOT:
                found = Watch.ON
            if place.path not in recording.opened:
                if len(recording.opened) < MOST_FILES:
                    recording.opened.add(place.path)
                found = Watch.AFRESH
        return found

    def read(self, file: File, offset: int, length: int) -> None:
        """Somebody has read bytes of it."""
        if length:
            place = Place.of(file)
            size = file.content.size
            for recording in self._by_base.get(place.output_base_id, ()):
                recording.read(place.path, size, offset, length)

    def read_unseen(self, file: File) -> None:
        """Somebody may read any of it by a way on which nobody is asked."""
        self.read(file, 0, file.content.size)
