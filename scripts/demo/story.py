"""How the demo talks: titles, sentences, commands with what they print. Never decides what happens."""

from __future__ import annotations

import subprocess
import textwrap
import time
from collections.abc import Callable
from typing import Final

from outputd.cli.console import show_bytes

_WIDTH: Final = 100
_COMMAND_SECONDS: Final = 20.0


def title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def say(text: str) -> None:
    print(textwrap.fill(text, _WIDTH), flush=True)


def show(command: str) -> None:
    print(f"    $ {command}", flush=True)


def run(command: str, directory: str) -> str:
    """Run a shell command in a directory, show it and what it prints. Raises CalledProcessError when it fails."""
    show(command)
    # The command is ours, never a user's text; a shell, so that the reader can type the very same line.
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=_COMMAND_SECONDS,
        check=False,
    )
    for line in (done.stdout + done.stderr).splitlines():
        print(f"    {line}", flush=True)
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, command)
    return done.stdout


class Fetched:
    """Tells how much a step brought to the local store."""

    def __init__(self, stored: Callable[[], int]) -> None:
        self._stored: Final = stored
        self._before = stored()

    def tell(self) -> None:
        """Since the last time, or since the start."""
        now = self._stored()
        print(f"    -> fetched: {show_bytes(now - self._before)}", flush=True)
        self._before = now


class Stopwatch:
    """Measures from its making."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __str__(self) -> str:
        seconds = time.monotonic() - self._started
        return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
