"""outputd.cli.serve: the settings reach the daemon, its errors become one line; the daemon itself is played."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
import sys
import types
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from outputd import restart
from outputd.config import Config, Places, TcpAddress, load
from outputd.errors import Precondition
from outputd.front.fuse.handover import VERSION, Agreed, Handover
from outputd.front.fuse.mount import Mount
from outputd.restart import Departure, Locks, check_successor, facts
from outputd.store.layout import FORMAT
from tests.unit.cli.conftest import Commands

Serve = Callable[..., Coroutine[Any, Any, Departure | None]]


def play(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    module = types.ModuleType("outputd.daemon")
    module.serve = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "outputd.daemon", module)


def test_settings_reach_the_daemon(outputd: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Config] = []

    async def serve(config: Config, *_: object) -> None:
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

    async def serve(config: Config, *_: object) -> None:
        loops.append(type(asyncio.get_running_loop()).__module__)

    play(monkeypatch, serve)
    assert outputd("serve").code == 0
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert outputd("serve").code == 0
    assert [module.partition(".")[0] for module in loops] == ["uvloop", "asyncio"]


def test_an_error_of_the_daemon(outputd: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(config: Config, *_: object) -> None:
        raise Precondition("/m: an outputd is mounted here already")

    play(monkeypatch, serve)
    spoken = outputd("serve")
    assert spoken.code == 1
    assert spoken.err == "outputd: /m: an outputd is mounted here already\n"


def test_the_directory_in_tmp_is_made_private(
    outputd: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    async def serve(config: Config, *_: object) -> None:
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


def test_check_starts_nothing(outputd: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(config: Config, *_: object) -> None:
        raise AssertionError("nothing is to be started")

    play(monkeypatch, serve)
    spoken = outputd("serve", "--check", "--mount", "/m", "--state-dir", "/s", "--cache-dir", "/c")
    assert (spoken.code, spoken.err) == (0, "")
    told = json.loads(spoken.out)
    assert told.pop("version")
    assert told == {"handover": VERSION, "store": FORMAT, "mount": "/m", "state_dir": "/s", "cache_dir": "/c"}


def test_what_goes_over_is_taken_to_the_next_program(
    outputd: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    departure = Departure(
        Handover(Mount("/m", 5, 1, by_us=True, created=False, replaced=0), Agreed(45, 0, False)), Locks(6, 7)
    )
    left: list[Departure] = []

    async def serve(config: Config, *_: object) -> Departure:
        return departure

    play(monkeypatch, serve)
    monkeypatch.setattr("outputd.restart.leave", left.append)
    assert outputd("serve").code == 0
    assert left == [departure]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"handover": VERSION - 1}, "takes a handover of version"),
        ({"store": FORMAT + 1}, "does not read the cache directory in its present format"),
        ({"cache_dir": "/other"}, "cache.dir is /other by now"),
    ],
)
def test_a_program_that_cannot_go_on_is_not_run(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, object], why: str
) -> None:
    config = load({}, {"HOME": "/home/ed"}).config
    monkeypatch.setattr(restart, "_ask_successor", lambda: facts(config, "9") | told)
    with pytest.raises(Precondition, match=why):
        asyncio.run(check_successor(config))
    monkeypatch.setattr(restart, "_ask_successor", lambda: facts(config, "9"))
    asyncio.run(check_successor(config))
