"""Commands as shell scripts: what a shell makes of them is what the Command says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction
from outputd.disk.disk import RealDisk
from outputd.drive.commands import Commands, script_of
from outputd.drive.open_file import NotLocal
from outputd.errors import Corrupt
from outputd.store.disk_store import DiskStore
from outputd.tree.node import DIRECTORY_MODE, Directory, Volume

TELL = "import json, os, sys; print(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]))"


def digest_of(message: bytes) -> Digest:
    return Digest.of(DigestFunction.SHA256, message)


def run(command: reapi.Command, place: Path) -> tuple[list[str], str, dict[str, str]]:
    message = command.SerializeToString()
    script = place / "script"
    script.write_bytes(script_of(digest_of(message), message))
    said = subprocess.run(["sh", script], cwd=place, check=True, capture_output=True, timeout=60).stdout
    arguments, directory, environment = json.loads(said)
    return arguments, directory, environment


@pytest.mark.parametrize("word", ["plain", "", "with space", "it's", '"$HOME" `ls` \\ \n*?#', "-n", "ü"])
def test_words_arrive_as_they_are(word: str, tmp_path: Path) -> None:
    command = reapi.Command(arguments=[sys.executable, "-c", TELL, word, "end"])
    for name in ("WORD", "odd.name"):
        command.environment_variables.add(name=name, value=word)
    arguments, directory, environment = run(command, tmp_path)
    assert arguments == [word, "end"]
    assert directory == str(tmp_path)
    assert (environment["WORD"], environment["odd.name"]) == (word, word)


def test_directories_of_outputs_are_made(tmp_path: Path) -> None:
    command = reapi.Command(
        arguments=[sys.executable, "-c", TELL],
        working_directory="a dir/b",
        output_paths=["x/y", "-z/file", "top"],
        output_directories=["old/directory"],
    )
    assert run(command, tmp_path)[1] == str(tmp_path / "a dir/b")
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_dir()}
    assert made == {"a dir", *(f"a dir/b{below}" for below in ("", "/x", "/-z", "/old"))}


@pytest.mark.parametrize("message", [b"", b"\xff", reapi.Command(working_directory="x").SerializeToString()])
def test_what_is_no_command(message: bytes) -> None:
    with pytest.raises(Corrupt, match=digest_of(message).hash_hex):
        script_of(digest_of(message), message)


def test_a_command_is_asked_for_once_and_the_script_is_kept(tmp_path: Path) -> None:
    store = DiskStore(str(tmp_path), RealDisk())
    commands = Commands(store)
    directory = Directory(DIRECTORY_MODE, 0, Volume(1, 0, writable=False))
    message = reapi.Command(arguments=["true"]).SerializeToString()
    with pytest.raises(NotLocal) as need:
        commands.script(directory, digest_of(message))
    assert need.value.file.content == digest_of(message)
    assert need.value.file.parent is directory
    store.put(digest_of(message), message)
    script = commands.script(directory, digest_of(message))
    assert script is not None and store.read(script) == script_of(digest_of(message), message)
    assert commands.script(directory, digest_of(message)) == script
    assert commands.script(directory, Digest.make(DigestFunction.SHA256, bytes(32), 1 << 40)) is None
    store.close()
