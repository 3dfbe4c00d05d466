"""What programs read of an output path, as data and as text: paths, and of large files which bytes. Pure; never opens a file.

The text is what is kept, shared and shown. A head of `key: value` lines ends with an empty line; then comes one path a line, in the
order of the first read. Of a large file that was read in part, a tab and `SIZE OFFSET+LENGTH,…` follow, in bytes. In paths, control
characters, `%`, a `#` at the beginning and bytes that are not UTF-8 are written `%XX`. Lines that begin with `#` are comments.
"""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple, TypeAlias

from outputd.errors import Invalid

MOST_FILES: Final = 100_000
"""Files of one profile: what a large build reads in an hour, and about 10 MB of text."""
MOST_BYTES: Final = 64 << 20
"""Of its text."""
LARGE: Final = 4 << 20
"""Bytes from which on a file may be fetched in parts (store/cached.py); of smaller ones it does not matter which were read."""
_STEP: Final = 64 << 10
"""Bytes that count as read together."""
_NEAR: Final = 256 << 10
"""Bytes between two runs that are read too, for a call less."""
_MOST_RUNS: Final = 64
_NEARLY: Final = 1 / 16
"""Part of a file that may be unread when it counts as read as a whole."""

Run: TypeAlias = tuple[int, int]
"""Offset of the first byte and of the one after the last."""

_FORMAT: Final = b"outputd-profile: 1"
_ODD: Final = re.compile(rb"[\x00-\x1f%\x7f]|\A[# ]| \Z")
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})?")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"


class Part(NamedTuple):
    """What was read of a file."""

    size: int
    """Of the file at that time, in bytes; 0 for a whole one."""
    runs: tuple[Run, ...]
    """Ascending, apart from each other, none empty. None at all: all of it was read."""

    def of(self, size: int) -> tuple[Run, ...]:
        """The same of a file that has another size now. None at all: all of it.

        What lies in the second half is counted from the end, where programs have their symbols and archives their directory.
        """
        if not self.runs or size == self.size:
            return self.runs
        moved: list[Run] = []
        for start, end in self.runs:
            at = max(_moved(start, self.size, size), moved[-1][1] if moved else 0)
            to = min(_moved(end, self.size, size), size)
            if at < to:
                moved.append((at, to))
        # Where it has shrunk so far that nothing is left of the runs, nobody can tell; the beginning is read by most.
        return tuple(moved) or ((0, min(_STEP, size)),)


WHOLE: Final = Part(0, ())


class Spans:
    """Which bytes of one large file were read, coarsely: in few runs, so that a replay takes few calls."""

    __slots__ = ("_runs", "_size")

    def __init__(self, size: int, runs: tuple[Run, ...] = ()) -> None:
        self._size = size
        self._runs: list[Run] = list(runs)

    def add(self, offset: int, length: int) -> bool:
        """These were read too; whether that was news."""
        start = offset - offset % _STEP
        end = min(-(-(offset + length) // _STEP) * _STEP, self._size)
        if start >= end:
            return False
        runs = self._runs
        first = 0
        while first < len(runs) and runs[first][1] + _NEAR < start:
            first += 1
        last = first
        while last < len(runs) and runs[last][0] - _NEAR <= end:
            last += 1
        if first < last:
            start, end = min(start, runs[first][0]), max(end, runs[last - 1][1])
            if last == first + 1 and runs[first] == (start, end):
                return False
        runs[first:last] = [(start, end)]
        if len(runs) > _MOST_RUNS:
            nearest = min(range(1, len(runs)), key=lambda at: runs[at][0] - runs[at - 1][1])
            runs[nearest - 1 : nearest + 1] = [(runs[nearest - 1][0], runs[nearest][1])]
        return True

    @property
    def part(self) -> Part:
        read = sum(end - start for start, end in self._runs)
        return WHOLE if read >= self._size * (1 - _NEARLY) else Part(self._size, tuple(self._runs))


@dataclass(slots=True)
class Profile:
    """What was read of one output path, replayed in any."""

    output_base_id: str = ""
    """Whose it was; empty: not known."""
    recorded: int = 0
    """When that began, in seconds since 1970; 0: not known."""
    complete: bool = True
    """Not more was read than is kept."""
    files: dict[bytes, Part] = field(default_factory=dict)
    """By path below the output path, in order of the first read."""

    @property
    def in_part(self) -> int:
        """How many files were not read as a whole."""
        return sum(bool(part.runs) for part in self.files.values())


class Wish(NamedTuple):
    """A profile, and the output bases in which it is to be replayed."""

    name: str
    output_bases: str
    """A pattern of their ids, as in a shell."""

    @classmethod
    def of(cls, text: str) -> Wish:
        """From `NAME` or `NAME@PATTERN`. Raises Invalid."""
        name, _, output_bases = text.partition("@")
        check_name(name)
        return cls(name, output_bases or "*")

    def __str__(self) -> str:
        return self.name if self.output_bases == "*" else f"{self.name}@{self.output_bases}"


def check_name(name: str) -> None:
    """A profile's name is a file's too. Raises Invalid."""
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"profile name {name!r}: expected letters, digits, `_`, `-` and `.`, at most 100, and no `.` or `-` to begin with"
        )


def encode(profile: Profile) -> bytes:
    """All of it as text."""
    return b"".join([head_of(profile), *(line_of(path, part) for path, part in profile.files.items())])


def head_of(profile: Profile) -> bytes:
    """What the text begins with."""
    lines = [_FORMAT]
    if profile.output_base_id:
        lines.append(b"output-base: " + _quoted(profile.output_base_id.encode(errors="surrogateescape")))
    if profile.recorded:
        lines.append(f"recorded: {time.strftime(_TIME, time.gmtime(profile.recorded))}".encode())
    if not profile.complete:
        lines.append(b"complete: no")
    return b"\n".join([*lines, b"", b""])


def line_of(path: bytes, part: Part) -> bytes:
    """One file."""
    if not part.runs:
        return _quoted(path) + b"\n"
    runs = ",".join(f"{start}+{end - start}" for start, end in part.runs)
    return b"%s\t%d %s\n" % (_quoted(path), part.size, runs.encode())


def decode(text: bytes, source: str) -> Profile:
    """From text. `source` is named where that is wrong. Raises Invalid with the line's number."""
    if len(text) > MOST_BYTES:
        raise Invalid(f"{source}: has more than {MOST_BYTES >> 20} MiB, which no profile may have")
    profile = Profile()
    for number, line in _lines(text, source, profile):
        try:
            _add(profile, line)
        except ValueError as wrong:
            raise Invalid(f"{source}:{number}: {wrong}") from wrong
        if len(profile.files) > MOST_FILES:
            raise Invalid(f"{source}:{number}: more than {MOST_FILES} files, which no profile may have")
    return profile


def salvage(text: bytes, source: str) -> tuple[Profile, int]:
    """What can be read of a text that may end anywhere, and how many bytes that is. Raises Invalid for a head that is none."""
    end = text.rfind(b"\n")
    profile = Profile()
    good = text.find(b"\n\n") + 2
    for _, line in _lines(text[:end], source, profile):
        try:
            _add(profile, line)
        except ValueError:
            break  # written when the power was cut: what follows is no better
        good += len(line) + 1
    return profile, good


def _lines(text: bytes, source: str, profile: Profile) -> Iterator[tuple[int, bytes]]:
    """The lines of the body with their numbers, once the head is read into `profile`. Raises Invalid."""
    lines = iter(enumerate(text.split(b"\n"), 1))
    if next(lines)[1].rstrip(b"\r") != _FORMAT:
        raise Invalid(f"{source}: is no profile of outputd: its first line is not `{_FORMAT.decode()}`")
    for number, line in lines:
        key, _, value = line.rstrip(b"\r").partition(b": ")
        if not key:
            break
        try:
            if key == b"output-base":
                profile.output_base_id = _plain(value).decode(errors="surrogateescape")
            elif key == b"recorded":
                profile.recorded = calendar.timegm(time.strptime(value.decode(), _TIME))
            elif key == b"complete":
                profile.complete = value != b"no"
        except ValueError as wrong:
            raise Invalid(f"{source}:{number}: {wrong}") from wrong
    else:
        raise Invalid(f"{source}: ends within its head, which an empty line is to end")
    yield from lines


def _add(profile: Profile, line: bytes) -> None:
    """One line of the body. A path that was there already keeps its place. Raises ValueError."""
    quoted, _, read = line.rstrip(b"\r").partition(b"\t")
    if not quoted or quoted.startswith(b"#"):
        return
    path = _plain(quoted)
    if b"\0" in path or any(name in (b"", b".", b"..") for name in path.split(b"/")):
        raise ValueError(f"{quoted.decode(errors='replace')}: is no path below an output path")
    profile.files[path] = _part(read.decode()) if read else WHOLE


def _part(text: str) -> Part:
    size, _, runs = text.partition(" ")
    found: list[Run] = []
    for run in runs.split(","):
        offset, _, length = run.partition("+")
        found.append((int(offset), int(offset) + int(length)))
    if any(start >= end for start, end in found) or any(
        after[0] < before[1] for before, after in pairwise(found)
    ):
        raise ValueError(f"{runs}: expected OFFSET+LENGTH,… ascending")
    if found[0][0] < 0 or found[-1][1] > int(size) or len(found) > _MOST_RUNS:
        raise ValueError(f"{text}: expected at most {_MOST_RUNS} runs within the file's size")
    return Part(int(size), tuple(found))


def _moved(offset: int, before: int, now: int) -> int:
    return offset if offset <= before // 2 else max(offset + now - before, 0)


def _quoted(path: bytes) -> bytes:
    if not _ODD.search(path) and path.isascii():
        return path
    text = _ODD.sub(lambda odd: b"%%%02X" % odd[0][0], path).decode(errors="surrogateescape")
    return "".join(
        f"%{ord(letter) - 0xDC00:02X}" if "\udc80" <= letter <= "\udcff" else letter for letter in text
    ).encode()


def _plain(quoted: bytes) -> bytes:
    def byte(escape: re.Match[bytes]) -> bytes:
        if escape[1] is None:
            raise ValueError("`%` is followed by two hexadecimal digits; itself it is written %25")
        return bytes([int(escape[1], 16)])

    return _ESCAPE.sub(byte, quoted) if b"%" in quoted else quoted
