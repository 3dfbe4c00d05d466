"""Several remotes, each with credentials from another place, under a real daemon at debug level: who is sent what, and that no
secret is in anything the daemon or a command writes, least of all when calls fail."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from outputd._proto import remote_execution_pb2 as reapi
from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.remote_thread import RemoteThread
from tests.service_client import BuildClient

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

CANARY = "c4n4ry"
FIXED, FROM_FILE, CLIENT = (f"Bearer {CANARY}-{where}-77aa" for where in ("fixed", "file", "client"))
HELPER = f"Bearer {CANARY}-helper-"
KEY = f"{CANARY}-key-77aa"
PASSWORD = f"{CANARY}-password-77aa"
NETRC = "Basic " + base64.b64encode(f"ed:{PASSWORD}".encode()).decode()
SECRETS = (CANARY.encode(), NETRC.removeprefix("Basic ").encode())
"""What must not be seen: each secret has one of these in it."""
_FIND = "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs"

_SETTINGS = """
[remote]
url = "{fixed.url}"
retry_seconds = 0.2
timeout = 5
headers = {{ authorization = "{FIXED}", x-other = "@{place}/token" }}
[remotes.helped]
url = "{helped.url}"
retry_seconds = 0.2
timeout = 5
instance_name = "main"
credential_helper = "{place}/helper"
[remotes.open]
prefix = "org/open"
url = "{open.url}"
retry_seconds = 0.2
timeout = 5
client_headers = ["authorization", "x-buildbuddy-api-key"]
[remotes.plain]
url = "grpc://127.0.0.1:{plain.fake.port}"
retry_seconds = 0.2
timeout = 5
netrc = "{place}/password"
"""
_HELPER = f"""\
#!/bin/sh
cd {{place}}
echo x >> runs
[ -e broken ] && {{{{ echo "cannot log in with password {CANARY}-said-9" >&2; exit 1; }}}}
[ -e garbage ] && {{{{ echo "{CANARY}-garbage-9"; exit 0; }}}}
echo '{{{{"headers": {{{{"authorization": ["{HELPER}'$(wc -l < runs)'"]}}}}}}}}'
"""


class World:
    def __init__(self, daemon: Daemon, channel: grpc.Channel, remotes: dict[str, RemoteThread]) -> None:
        self.daemon = daemon
        self.channel = channel
        self.remotes = remotes
        self.printed = ""
        """By all commands."""

    def build(self, base: str, instance: str) -> BuildClient:
        build = BuildClient(self.channel, self.daemon.outputs, base, instance=instance)
        build.start()
        return build

    def outputd(self, *arguments: str, address: bool = True) -> str:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "outputd.cli.main", *arguments),
                *(("--listen", self.daemon.target) if address else ()),
            ],
            env=self.daemon.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.printed += done.stdout + done.stderr
        return done.stdout

    def find(self, instance: str, authorization: str | None, *more: tuple[str, str]) -> None:
        """A client's own call, to be passed on."""
        request = reapi.FindMissingBlobsRequest(instance_name=instance)
        request.blob_digests.add(hash="0" * 64, size_bytes=7)
        metadata = more if authorization is None else (("authorization", authorization), *more)
        self.channel.unary_unary(_FIND, None, None)(
            request.SerializeToString(), metadata=metadata, timeout=60
        )

    def written(self) -> Iterator[tuple[Path, bytes]]:
        """Every file that the daemon can have written."""
        for directory, _, names in os.walk(self.daemon.place):
            for name in names:
                path = Path(directory, name)
                if path.is_file() and name not in ("token", "helper", "password", "config.toml"):
                    yield path, path.read_bytes()


@contextlib.contextmanager
def world() -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(daemon_fixture.directories("--log-level", "debug"))
        remotes = {name: RemoteThread(daemon.place / name) for name in ("fixed", "helped", "open", "plain")}
        remotes["plain"].fake.port = 0
        for remote in remotes.values():
            stack.enter_context(remote)
        place = daemon.place
        (place / "outputd").mkdir()
        (place / "outputd" / "config.toml").write_text(_SETTINGS.format(place=place, FIXED=FIXED, **remotes))
        (place / "token").write_text(FROM_FILE + "\n")
        (place / "password").write_text(f"machine 127.0.0.1\nlogin ed\npassword {PASSWORD}\n")
        (place / "helper").write_text(_HELPER.format(place=place))
        (place / "helper").chmod(0o700)
        daemon.start()
        channel = stack.enter_context(daemon_fixture.connected(daemon))
        yield World(daemon, channel, remotes)


def told(world: World) -> dict[str, Any]:
    status = json.loads(world.outputd("status", "--json"))
    return {str(remote["name"]): remote for remote in (status["remote"], *status["remotes"])}


def test_who_is_sent_what_and_what_nobody_is_shown() -> None:
    with world() as w:
        fixed, helped, opened, plain = (w.remotes[name].fake for name in ("fixed", "helped", "open", "plain"))

        # Each remote has its own credentials, and is asked for its own name of the instance.
        for name, instance, asked in (
            ("fixed", "any/thing", "any/thing"),
            ("helped", "helped/sub", "main/sub"),
            ("open", "org/open", ""),
            ("plain", "plain", ""),
        ):
            build = w.build(name, instance)
            build.stage({"file": w.remotes[name].add(name.encode() * 1000)})
            assert (w.daemon.outputs / name / "file").read_bytes() == name.encode() * 1000
            last = w.remotes[name].fake.requests[-1]
            assert getattr(last, "instance_name", None) == asked
            build.finish()
        assert (fixed.metadata["authorization"], fixed.metadata["x-other"]) == (FIXED, FROM_FILE)
        assert helped.metadata["authorization"] == f"{HELPER}1"
        assert "authorization" not in opened.metadata
        assert plain.metadata["authorization"] == NETRC

        # What a client shows is passed on, and serves for reads that nobody else has anything for.
        w.find("org/open", CLIENT)
        assert opened.metadata["authorization"] == CLIENT
        w.find("org/open", CLIENT, ("x-buildbuddy-api-key", KEY), ("x-unnamed", KEY))
        assert opened.metadata["x-buildbuddy-api-key"] == KEY
        assert "x-unnamed" not in opened.metadata
        w.find("plain", None, ("x-buildbuddy-api-key", KEY))
        assert "x-buildbuddy-api-key" not in plain.metadata
        w.find("helped", CLIENT)
        assert helped.metadata["authorization"] == f"{HELPER}1"
        opened.accepts = {CLIENT}
        build = w.build("open", "org/open")
        build.stage({"more": w.remotes["open"].add(b"more" * 1000)})
        assert (w.daemon.outputs / "open" / "more").read_bytes() == b"more" * 1000
        assert opened.metadata["x-buildbuddy-api-key"] == KEY
        known = told(w)
        assert [one["source"] for one in known["None"]["credentials"]] == [
            "settings",
            f"{w.daemon.place}/token",
        ]
        assert known["helped"]["credentials"][0]["source"] == f"credential helper {w.daemon.place}/helper"
        assert [(one["source"], one["headers"]) for one in known["open"]["credentials"]] == [
            ("a client's call", ["authorization"]),
            ("a client's call", ["x-buildbuddy-api-key"]),
        ]
        assert [one["source"] for one in known["plain"]["credentials"]] == [f"{w.daemon.place}/password"]

        # Everything fails, at servers that quote what they were sent.
        w.daemon.expects("EKEYREJECTED|cannot be read|credential helper|the token|UNAUTHENTICATED")
        for remote in (fixed, helped, opened, plain):
            remote.accepts = set()
        for name, instance in (("fixed", ""), ("helped", "helped"), ("open", "org/open"), ("plain", "plain")):
            build = w.build(f"{name}2", instance)
            build.stage({"bad": w.remotes[name].add(name.encode() * 500)})
            with pytest.raises(OSError):
                (w.daemon.outputs / f"{name}2" / "bad").read_bytes()
            with pytest.raises(grpc.RpcError) as refused:
                w.find(instance, None if name == "plain" else CLIENT, ("x-buildbuddy-api-key", KEY))
            w.printed += str(refused.value)
        # A .netrc that is damaged is not quoted either.
        w.daemon.expects("password: line 2 has what no .netrc has there")
        (w.daemon.place / "password").write_text(f"default login ed\n{PASSWORD}\n")
        time.sleep(2.1)
        with pytest.raises(grpc.RpcError) as refused:
            w.find("plain", None)
        w.printed += str(refused.value)
        for fault in ("broken", "garbage"):
            (w.daemon.place / fault).touch()
            time.sleep(5.1)  # a helper is not forced more often
            with pytest.raises(grpc.RpcError) as refused:
                w.find("helped", None)
            w.printed += str(refused.value)
            w.outputd("doctor")
            (w.daemon.place / fault).unlink()
        assert [one["headers"] for one in told(w)["open"]["credentials"]] == []
        assert "line 2" in told(w)["plain"]["credentials"][0]["error"]

        # An instance that nobody serves there is none here; the settings are shown without what must not be shown.
        for arguments in (["status"], ["stuck"], ["doctor", "--json"], ["bazelrc"]):
            w.outputd(*arguments)
        w.outputd("config", "show", "--origin", address=False)
        w.outputd("config", "check", address=False)
        assert "********" in w.printed
        w.daemon.stop()
        assert not any(secret.decode() in w.printed for secret in SECRETS)
        assert "debug" in w.daemon.words().lower()
        for path, content in w.written():
            assert not any(secret in content for secret in SECRETS), f"{path} holds a secret"


def test_an_instance_name_that_nobody_serves() -> None:
    with daemon_fixture.directories() as daemon, RemoteThread(daemon.place / "remote") as remote:
        (daemon.place / "outputd").mkdir()
        settings = f'[remotes.team]\nurl = "{remote.url}"\n'
        (daemon.place / "outputd" / "config.toml").write_text(settings)
        daemon.start()
        with daemon_fixture.connected(daemon) as channel:
            w = World(daemon, channel, {})
            with pytest.raises(grpc.RpcError) as refused:
                w.find("other", None)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            said = refused.value.details() or ""
            assert "instance name 'other': no remote is configured for it" in said
            assert "begin with 'team'" in said
            w.find("team/x", None)
            assert told_prefix(w) == "team"


def told_prefix(w: World) -> str:
    (remote,) = json.loads(w.outputd("status", "--json"))["remotes"]
    return str(remote["prefix"])


def test_no_core_dump_holds_a_secret() -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))  # the daemon inherits it
    try:
        with daemon_fixture.running() as daemon:
            assert resource.prlimit(daemon.pid, resource.RLIMIT_CORE) == (0, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
