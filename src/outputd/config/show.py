"""Settings as text again: TOML for people and files, plain data for JSON. Never shows a secret."""

from __future__ import annotations

import json
from collections.abc import Mapping

from outputd.config.kinds import Plain
from outputd.config.load import Loaded, Origin
from outputd.config.settings import Config, Entry, remote_table, table, value_of


def toml_value(value: Plain) -> str:
    """As it would stand in a file. JSON's strings, numbers and lists are TOML's too, but for DEL."""
    if isinstance(value, dict):
        pairs = ", ".join(f"{json.dumps(name)} = {toml_value(text)}" for name, text in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def plain_value(config: Config, full: str) -> Plain:
    """The value of one key, secrets masked."""
    entry = entries(config)[full]
    return entry.key.kind.plain(value_of(config, entry))


def entries(config: Config) -> Mapping[str, Entry]:
    """Every key there is, by `section.name`, those of `[remotes.NAME]` last."""
    return {**table(), **remote_table(config.remotes)}


def as_toml(loaded: Loaded, with_origins: bool) -> str:
    """All settings; a key that is not set stands there as a comment."""
    lines: list[str] = []
    section = ""
    for entry in entries(loaded.config).values():
        if entry.section != section:
            section = entry.section
            lines += ["", f"[{section}]"] if lines else [f"[{section}]"]
        value = plain_value(loaded.config, entry.full)
        line = f"# {entry.name} is not set" if value is None else f"{entry.name} = {toml_value(value)}"
        lines.append(f"{line}  # {loaded.origins[entry.full]}" if with_origins else line)
    return "\n".join(lines) + "\n"


def as_data(loaded: Loaded, with_origins: bool) -> dict[str, dict[str, object]]:
    """All settings by section and key, `remotes.NAME` being a section; with origins, each is an object of `value` and `origin`."""
    data: dict[str, dict[str, object]] = {}
    for entry in entries(loaded.config).values():
        value = plain_value(loaded.config, entry.full)
        origin = _origin(loaded.origins, entry.full)
        data.setdefault(entry.section, {})[entry.name] = (
            {"value": value, "origin": origin} if with_origins else value
        )
    return data


def _origin(origins: Mapping[str, Origin], full: str) -> dict[str, str]:
    return {"kind": origins[full].kind, "where": origins[full].where}
