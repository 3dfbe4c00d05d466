"""outputd.cli.config: show and check."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from outputd.config.settings import table
from tests.unit.cli.conftest import Commands


def test_show(outputd: Commands) -> None:
    spoken = outputd("config", "show", "--origin", "--mount", "/m")
    assert spoken.code == 0
    assert 'path = "/m"  # --mount\n' in spoken.out
    assert tomllib.loads(spoken.out)["mount"]["path"] == "/m"


def test_show_json(outputd: Commands) -> None:
    data = json.loads(outputd("config", "show", "--json").out)
    assert {f"{section}.{name}" for section, keys in data.items() for name in keys} == set(table())
    with_origin = json.loads(outputd("config", "show", "--json", "--origin").out)
    assert with_origin["log"]["level"] == {"value": "info", "origin": {"kind": "default", "where": ""}}


def test_check_without_a_file(outputd: Commands, tmp_path: Path) -> None:
    spoken = outputd("config", "check")
    assert spoken.code == 0
    assert (
        f"no settings file ({tmp_path}/.config/outputd/config.toml does not exist): ok; 0 of " in spoken.out
    )


def test_check_looks_at_the_environment_unless_a_file_is_named(outputd: Commands, tmp_path: Path) -> None:
    outputd.environ["OUTPUTD_LOG_LEVEL"] = "loud"
    assert outputd("config", "check").code == 3
    good = tmp_path / "good.toml"
    good.write_text('[log]\nlevel = "debug"\n')
    spoken = outputd("config", "check", str(good))
    assert spoken.code == 0
    assert spoken.out.startswith(f"{good}: ok; 1 of ")


def test_check_names_the_line(outputd: Commands, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("[mount]\n\npatth = 1\n")
    spoken = outputd("config", "check", str(bad))
    assert spoken.code == 3
    assert spoken.err == f"outputd: {bad}:3: [mount] patth: no such key; did you mean path?\n"
