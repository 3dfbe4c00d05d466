"""Settings as text again: TOML for people and files, plain data for JSON. Never shows a secret."""

from __future__ import annotations

import json
from collections.abc import Mapping

from outputd.config.kinds import Plain
from outputd.config.load import Loaded, Origin
from outputd.config.settings import Config, table


def toml_value(value: Plain) -> str:
    """As it would stand in a file. JSON's strings, numbers and lists are TOML's too, but for DEL."""
    if isinstance(value, dict):
        pairs = ", ".join(f"{json.dumps(name)} = {toml_value(text)}" for name, text in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def plain_value(config: Config, full: str) -> Plain:
    """The value of one key, secrets masked."""
    entry = table()[full]
    return entry.key.kind.plain(getattr(getattr(config, entry.section), entry.name))


def as_toml(loaded: Loaded, with_origins: bool) -> str:
    """All settings; a key that is not set stands there as a comment."""
    lines: list[str] = []
    section = ""
    for entry in table().values():
        if entry.section != section:
            section = entry.section
            lines += ["", f"[{section}]"] if lines else [f"[{section}]"]
        value = plain_value(loaded.config, entry.full)
        line = f"# {entry.name} is not set" if value is None else f"{entry.name} = {toml_value(value)}"
        lines.append(f"{line}  # {loaded.origins[entry.full]}" if with_origins else line)
    return "\n".join(lines) + "\n"


def as_data(loaded: Loaded, with_origins: bool) -> dict[str, dict[str, object]]:
    """All settings by section and key; with origins, each is an object of `value` and `origin`."""
    data: dict[str, dict[str, object]] = {}
    for entry in table().values():
        value = plain_value(loaded.config, entry.full)
        origin = _origin(loaded.origins, entry.full)
        data.setdefault(entry.section, {})[entry.name] = (
            {"value": value, "origin": origin} if with_origins else value
        )
    return data


def _origin(origins: Mapping[str, Origin], full: str) -> dict[str, str]:
    return {"kind": origins[full].kind, "where": origins[full].where}
