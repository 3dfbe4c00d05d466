"""Settings from flags, environment, file and defaults, in this order; every problem of all of them at once. Never guesses: what it
cannot read is a problem, and then there is no Config at all.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from outputd.config.cross_checks import disagreements
from outputd.config.places import Places
from outputd.config.remote_settings import NamedRemote
from outputd.config.settings import REMOTES, Config, Entry, remote_table, sections, table
from outputd.config.toml_lines import Path, key_lines, line_of
from outputd.errors import Invalid

FILE_VARIABLE: Final = "OUTPUTD_CONFIG"
_REMOTE_NAME: Final = re.compile(r"[0-9A-Za-z_-]+")
USUAL_FILE: Final = "$XDG_CONFIG_HOME/outputd/config.toml"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from."""

    kind: str
    """`default`, `file`, `environment` or `flag`."""
    where: str
    """`FILE:LINE`, the variable's or the flag's name; empty for a default."""

    def __str__(self) -> str:
        return self.where or self.kind


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in the settings."""

    where: str
    subject: str
    """`[section] key`, or empty when it is not about a key."""
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.subject, self.text) if part)


class InvalidSettings(Invalid):
    """Settings that cannot be used; its text has a line for each problem."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and where each was found."""

    config: Config
    origins: Mapping[str, Origin]
    """By `section.name`."""
    file: str | None
    """The file that was read, if there was one."""


def load(flags: Mapping[str, object], environ: Mapping[str, str], file: str | None = None) -> Loaded:
    """Read all settings. `flags` holds raw values by `section.name`; None stands for a flag that was not given.

    `file` must exist when it is named, here or by $OUTPUTD_CONFIG; the usual file may be absent. Raises InvalidSettings.
    """
    return _Reading(Places.of(environ)).run(flags, environ, file)


def load_file(file: str, environ: Mapping[str, str]) -> Loaded:
    """Read a file over the defaults alone; `environ` serves only to find directories. Raises InvalidSettings."""
    return _Reading(Places.of(environ)).run({}, {}, file)


def usual_file(environ: Mapping[str, str]) -> str:
    """The file that is read when none is named."""
    return Places.of(environ).complete(USUAL_FILE)


@dataclass(slots=True)
class _Reading:
    places: Places
    problems: list[Problem] = field(default_factory=list)
    values: dict[str, object] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    remotes: list[str] = field(default_factory=list)
    """The names in `[remotes.NAME]`."""

    def run(self, flags: Mapping[str, object], environ: Mapping[str, str], named: str | None) -> Loaded:
        self._take_defaults(table())
        file = self._read_file(named or environ.get(FILE_VARIABLE) or None)
        self._read_environment(environ)
        for full, raw in flags.items():
            entry = table()[full]
            if raw is not None:
                value = entry.key.kind.of_text(raw) if isinstance(raw, str) else raw
                self._take(entry, value, Origin("flag", entry.key.flag or full), self.places)
        if self.problems:
            raise InvalidSettings(self.problems)
        config = self._assembled()
        for full, text in disagreements(config):
            entry = {**table(), **remote_table(self.remotes)}[full]
            self.problems.append(Problem(str(self.origins[full]), _subject(entry), text))
        if self.problems:
            raise InvalidSettings(self.problems)
        return Loaded(config, self.origins, file)

    def _take_defaults(self, entries: Mapping[str, Entry]) -> None:
        for entry in entries.values():
            self.values[entry.full] = entry.key.kind.parse(entry.key.default, self.places)
            self.origins[entry.full] = Origin("default", "")

    def _take(self, entry: Entry, raw: object, origin: Origin, places: Places) -> None:
        try:
            self.values[entry.full] = entry.key.kind.parse(raw, places)
            self.origins[entry.full] = origin
        except Invalid as wrong:
            self.problems.append(Problem(origin.where, _subject(entry), str(wrong)))

    def _assembled(self) -> Config:
        # The one place where values that the kinds made meet the types of the table: tests/unit/config proves that they agree.
        made: dict[str, Any] = {
            section: cls(**self._own(table(), section)) for section, cls in sections().items()
        }
        made[REMOTES] = {
            name: NamedRemote(**self._own(remote_table([name]), f"{REMOTES}.{name}")) for name in self.remotes
        }
        return Config(**made)

    def _own(self, entries: Mapping[str, Entry], section: str) -> dict[str, Any]:
        return {e.name: self.values[e.full] for e in entries.values() if e.section == section}

    def _read_file(self, named: str | None) -> str | None:
        try:
            file = self.places.complete(named or USUAL_FILE)
        except Invalid as wrong:
            self.problems.append(Problem("settings file", "", str(wrong)))
            return None
        try:
            with open(file, "rb") as stream:
                text = stream.read().decode()
            document = tomllib.loads(text)
        except FileNotFoundError:
            if named:
                self.problems.append(Problem(file, "", "no such file"))
            return None
        except OSError as wrong:
            self.problems.append(Problem(file, "", f"cannot be read: {wrong.strerror}"))
            return None
        except UnicodeDecodeError as wrong:
            line = wrong.object[: wrong.start].count(b"\n") + 1
            self.problems.append(Problem(f"{file}:{line}", "", "not UTF-8 text; save the file as UTF-8"))
            return None
        except tomllib.TOMLDecodeError as wrong:
            self.problems.append(_syntax_problem(file, text, str(wrong)))
            return None
        self._take_document(file, document, key_lines(text))
        return file

    def _take_document(self, file: str, document: dict[str, Any], lines: dict[Path, int]) -> None:
        places = self.places.starting_from(os.path.dirname(file))
        numbered: list[tuple[int, Problem]] = []
        for section, content in document.items():
            line = line_of(lines, (section,)) or 1
            if section == REMOTES and isinstance(content, dict):
                for name, inner in content.items():
                    numbered += self._take_remote(file, name, inner, lines, places)
            elif section in sections():
                numbered += self._take_section(file, (section,), content, lines, places, table())
            else:
                known = [*sections(), REMOTES]
                text = f"no such section{_meant(section, known)}; there are {', '.join(known[:-1])} and [{REMOTES}.NAME]"
                numbered.append((line, Problem(f"{file}:{line}", f"[{section}]", text)))
        self.problems += [problem for _, problem in sorted(numbered, key=lambda pair: pair[0])]

    def _take_remote(
        self, file: str, name: str, content: object, lines: dict[Path, int], places: Places
    ) -> list[tuple[int, Problem]]:
        path = (REMOTES, name)
        if not _REMOTE_NAME.fullmatch(name):
            line = line_of(lines, path) or 1
            text = "a name of letters, digits, '-' and '_' is needed; what clients call it is its `prefix`"
            return [(line, Problem(f"{file}:{line}", f"[{REMOTES}.{name!r}]", text))]
        self.remotes.append(name)
        entries = remote_table([name])
        self._take_defaults(entries)
        return self._take_section(file, path, content, lines, places, entries)

    def _take_section(
        self,
        file: str,
        path: Path,
        content: object,
        lines: dict[Path, int],
        places: Places,
        entries: Mapping[str, Entry],
    ) -> list[tuple[int, Problem]]:
        """The problems of one table, each with its line."""
        section = ".".join(path)
        if not isinstance(content, dict):
            line = line_of(lines, path) or 1
            text = f"a section is a table; write [{section}] on a line of its own and its keys below"
            return [(line, Problem(f"{file}:{line}", f"[{section}]", text))]
        before = len(self.problems)
        numbered: list[tuple[int, Problem]] = []
        for name, raw in content.items():
            line = line_of(lines, (*path, name)) or 1
            entry = entries.get(f"{section}.{name}")
            if entry is None:
                text = f"no such key{_meant_key(section, name, entries)}"
                numbered.append((line, Problem(f"{file}:{line}", f"[{section}] {name}", text)))
                continue
            self._take(entry, raw, Origin("file", f"{file}:{line}"), places)
            numbered += [(line, problem) for problem in self.problems[before:]]
            del self.problems[before:]
        return numbered

    def _read_environment(self, environ: Mapping[str, str]) -> None:
        known = {entry.variable: entry for entry in table().values()}
        ours = tuple(f"OUTPUTD_{section.upper()}_" for section in (*sections(), REMOTES))
        for variable, text in sorted(environ.items()):
            if entry := known.get(variable):
                self._take(entry, entry.key.kind.of_text(text), Origin("environment", variable), self.places)
            elif variable.startswith(ours):
                self.problems.append(Problem(variable, "", f"no such setting{_meant(variable, known)}"))


def _subject(entry: Entry) -> str:
    return f"[{entry.section}] {entry.name}"


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def _meant_key(section: str, name: str, entries: Mapping[str, Entry]) -> str:
    own = [e.name for e in entries.values() if e.section == section]
    if close := difflib.get_close_matches(name, own, 1):
        return f"; did you mean {close[0]}?"
    if elsewhere := [e.section for e in table().values() if e.name == name]:
        return f"; did you mean [{elsewhere[0]}] {name}?"
    return f"; [{section}] has {', '.join(own)}"


def _syntax_problem(file: str, text: str, said: str) -> Problem:
    found = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", said)
    if not found:
        return Problem(file, "", f"not TOML: {said}")
    line = int(found[1]) if found[1] else max(1, len(text.splitlines()))
    return Problem(f"{file}:{line}", "", f"not TOML: {said[: found.start()]}")
