"""outputd.cli.serve: the settings reach the daemon, its errors become one line; the daemon itself is played."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import sys
import types
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from outputd.config import Config, Places, TcpAddress
from outputd.errors import Precondition
from tests.unit.cli.conftest import Commands

Serve = Callable[[Config], Coroutine[Any, Any, None]]


def play(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    module = types.ModuleType("outputd.daemon")
    module.serve = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "outputd.daemon", module)


def test_settings_reach_the_daemon(outputd: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Config] = []

    async def serve(config: Config) -> None:
        await asyncio.sleep(0)
        served.append(config)
        logging.getLogger("outputd.daemon").info("served")

    play(monkeypatch, serve)
    spoken = outputd(
        "serve", "--mount", "/m", "--listen", "127.0.0.1:1", "--listen", "127.0.0.1:2", "--allow-other"
    )
    assert (spoken.code, spoken.out) == (0, "")
    assert spoken.err.endswith("INFO outputd.daemon: served\n")
    (config,) = served
    assert config.mount.path == "/m"
    assert config.mount.allow_other
    assert config.listen.addresses == (TcpAddress("127.0.0.1", 1), TcpAddress("127.0.0.1", 2))


def test_without_uvloop(outputd: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    loops: list[str] = []

    async def serve(config: Config) -> None:
        loops.append(type(asyncio.get_running_loop()).__module__)

    play(monkeypatch, serve)
    assert outputd("serve").code == 0
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert outputd("serve").code == 0
    assert [module.partition(".")[0] for module in loops] == ["uvloop", "asyncio"]


def test_an_error_of_the_daemon(outputd: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(config: Config) -> None:
        raise Precondition("/m: an outputd is mounted here already")

    play(monkeypatch, serve)
    spoken = outputd("serve")
    assert spoken.code == 1
    assert spoken.err == "outputd: /m: an outputd is mounted here already\n"


def test_the_directory_in_tmp_is_made_private(
    outputd: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    async def serve(config: Config) -> None:
        pass

    play(monkeypatch, serve)
    fallback = f"{os.fspath(tmp_path)}/fallback"
    monkeypatch.setattr(Places, "private_fallback", lambda self: fallback)
    assert outputd("serve", "--listen", f"unix:{fallback}/outputd.sock").code == 0
    assert stat.S_IMODE(os.stat(fallback).st_mode) == 0o700
    os.chmod(fallback, 0o777)
    spoken = outputd("serve", "--listen", f"unix:{fallback}/outputd.sock")
    assert spoken.code == 1
    assert "is not a directory of yours alone" in spoken.err
