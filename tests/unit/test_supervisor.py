"""sd_notify(3) and sd_listen_fds(3), with a socket that plays systemd."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from outputd import supervisor as module
from outputd.supervisor import Supervisor


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.bind(str(tmp_path / "notify"))
        ours.settimeout(20)
        yield ours


def environment(inbox: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": inbox.getsockname(), **more}


def test_it_is_told(inbox: socket.socket) -> None:
    supervisor = Supervisor(environment(inbox))
    supervisor.ready("serving /m")
    assert inbox.recv(4096) == b"READY=1\nSTATUS=serving /m"
    supervisor.reloading()
    first, second, _ = inbox.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    assert second.startswith("MONOTONIC_USEC=")
    supervisor.stopping()
    assert inbox.recv(4096).startswith(b"STOPPING=1\n")


def test_it_keeps_a_descriptor(inbox: socket.socket, tmp_path: Path) -> None:
    supervisor = Supervisor(environment(inbox))
    (tmp_path / "file").write_bytes(b"kept")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    supervisor.keep("device", fd)
    os.close(fd)
    assert inbox.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=device"
    message, fds, _, _ = socket.recv_fds(inbox, 4096, 2)
    assert message == b"FDSTORE=1\nFDNAME=device"
    assert os.read(fds[0], 10) == b"kept"
    os.close(fds[0])


def test_an_abstract_address() -> None:
    name = f"\0outputd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind(name)
        inbox.settimeout(20)
        Supervisor({"NOTIFY_SOCKET": "@" + name[1:]}).ready("x")
        assert inbox.recv(100).startswith(b"READY=1")


def test_without_one_nothing_happens() -> None:
    supervisor = Supervisor({})
    supervisor.ready("x")
    supervisor.keep("device", 0)
    asyncio.run(supervisor.ping())
    assert supervisor.take("device") is None


def test_one_that_is_not_there_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": str(tmp_path / "absent")})
    for _ in range(3):
        supervisor.ready("x")
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("pid", "pinged"), [(None, True), (str(os.getpid()), True), ("1", False)])
def test_the_watchdog_hears_of_the_loop(inbox: socket.socket, pid: str | None, pinged: bool) -> None:
    environ = environment(inbox, WATCHDOG_USEC="2000")
    if pid is not None:
        environ["WATCHDOG_PID"] = pid

    async def main() -> None:
        ping = asyncio.create_task(Supervisor(environ).ping())
        if pinged:
            inbox.setblocking(False)
            for _ in range(2):
                assert await asyncio.get_running_loop().sock_recv(inbox, 100) == b"WATCHDOG=1"
            ping.cancel()
        else:
            await ping

    async def limited() -> None:
        async with asyncio.timeout(20):
            await main()

    asyncio.run(limited())


def test_what_was_kept_comes_back(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    first = 700  # above all that this process has open
    fds = list(range(first, first + 4))
    null = os.open(os.devnull, os.O_RDONLY)
    for fd in fds:
        os.dup2(null, fd)
    os.close(null)
    monkeypatch.setattr(module, "_FIRST_FD", first)
    environ = {
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": "4",
        "LISTEN_FDNAMES": "device:other:device",
        "HOME": "/",
    }
    supervisor = Supervisor(environ)
    assert environ == {"HOME": "/"}
    assert supervisor.take("device") == first + 2  # the later one
    assert supervisor.take("device") is None
    assert not os.get_inheritable(first + 2)
    os.close(first + 2)
    supervisor.discard_rest()
    assert "called other" in caplog.text
    for fd in fds:
        with pytest.raises(OSError):
            os.fstat(fd)


@pytest.mark.parametrize("pid", ["", "1", "nonsense"])
def test_what_was_kept_for_another_process_is_left_alone(pid: str) -> None:
    environ = {"LISTEN_PID": pid, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "device"}
    supervisor = Supervisor(environ)
    assert supervisor.take("device") is None
    assert environ == {}
