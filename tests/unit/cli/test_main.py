"""outputd.cli.main: help, exit codes, one line for an error, and nothing slow imported early."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from outputd import __version__
from outputd.cli.main import VERBS
from tests.unit.cli.conftest import Commands


def test_version(outputd: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        outputd("--version")
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"outputd {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], *([verb.NAME] for verb in VERBS), ["config", "show"], ["config", "check"]]
)
def test_help_says_what_it_does(
    arguments: list[str], outputd: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        outputd(*arguments, "--help")
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {' '.join(['outputd', *arguments])}")


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.NAME)
def test_help_of_every_verb_has_examples(verb: object) -> None:
    assert f"  outputd {verb.NAME}" in verb.EXAMPLES  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "arguments", [[], ["no-such-verb"], ["serve", "--no-such-flag"], ["config"], ["status", "--js"]]
)
def test_a_wrong_command_line(
    arguments: list[str], outputd: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        outputd(*arguments)
    assert caught.value.code == 2
    assert "usage: outputd" in capsys.readouterr().err


def test_a_wrong_setting_of_each_origin(outputd: Commands) -> None:
    outputd.environ["OUTPUTD_LOG_FORMAT"] = "xml"
    spoken = outputd("status", "--remote", "http://x")
    assert spoken.code == 3
    assert spoken.out == ""
    first, second = spoken.err.splitlines()
    assert first.startswith("outputd: OUTPUTD_LOG_FORMAT: [log] format: 'xml' is not one of text, json")
    assert second.startswith("outputd: --remote: [remote] url: 'http://x' is not a server")


def test_nothing_slow_is_imported_before_a_verb_runs() -> None:
    program = "import sys, outputd.cli.main as m; m.make_parser(); print([n for n in sys.argv[1:] if n in sys.modules])"
    slow = ["grpc", "google.protobuf", "uvloop", "outputd.daemon"]
    done = subprocess.run([sys.executable, "-c", program, *slow], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "outputd.cli.main", "config", "show"]
    environ = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environ, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
