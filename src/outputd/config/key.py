"""One row of the table of settings: what users are told of a key, and how its value is read. Never reads anything."""

from __future__ import annotations

from dataclasses import dataclass

from outputd.config.kinds import Kind


@dataclass(frozen=True, slots=True)
class Key:
    """What users are told of one key, and how its value is read."""

    kind: Kind
    default: object
    """As it would stand in a file; None is "not set"."""
    sentence: str
    flag: str | None = None
    """The command line's name for it."""
    metavar: str | None = None
    """How `--help` names the flag's value; None for a flag without one."""
