"""outputd.cli.profile: the command line, where a command with options of its own follows."""

from __future__ import annotations

import pytest

from outputd.cli.main import make_parser
from tests.unit.cli.conftest import Commands


@pytest.mark.parametrize(
    ("words", "name", "tree", "command"),
    [
        (["p"], "p", None, []),
        (["p", "base", "--json"], "p", "base", []),
        (["--json", "p", "base"], "p", "base", []),
        (["p", "--json", "--", "ls", "-l", "--", "x"], "p", None, ["ls", "-l", "--", "x"]),
        (["p", "base", "--listen", "unix:/s", "--", "x", "--json"], "p", "base", ["x", "--json"]),
    ],
)
def test_what_follows_two_dashes_is_the_command(
    words: list[str], name: str, tree: str | None, command: list[str]
) -> None:
    found = make_parser().parse_args(["profile", "record", *words])
    assert (found.name, found.tree, found.command) == (name, tree, command)


@pytest.mark.parametrize(
    "words", [["record"], ["record", "p", "--"], ["record", "p", "t", "u"], ["stop"], ["list", "--", "x"], []]
)
def test_wrong_command_lines(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        make_parser().parse_args(["profile", *words])
    assert end.value.code == 2


def test_without_a_daemon_no_command_is_run(outputd: Commands) -> None:
    said = outputd("profile", "record", "p", "--", "touch", f"{outputd.home}/run")
    assert said.code == 4 and "start it with" in said.err
    assert not (outputd.home / "run").exists()
