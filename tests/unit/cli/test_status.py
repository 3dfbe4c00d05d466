"""outputd.cli.status: what people and what programs are shown, and what is said when no daemon answers."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from outputd._proto.admin_pb2 import GetStatusRequest, GetStatusResponse, Remote
from tests.unit.cli.conftest import Answer, Commands


def test_people(outputd: Commands, daemon: GetStatusResponse) -> None:
    daemon.mount.features.extend(["readdirplus", "passthrough"])
    daemon.store.blobs, daemon.store.blob_bytes, daemon.store.local_only_bytes = 12345, 3 << 29, 1 << 29
    daemon.store.partial_blobs, daemon.store.partial_bytes = 2, 7 << 20
    daemon.store.total_files, daemon.store.free_files = 5000, 4000
    daemon.store.keep_free_bytes = 40 << 30
    daemon.output_bases.add(id="b1", running_build_id="i-2", last_build_id="i-1", entries=2000, dirty=True)
    daemon.output_bases[0].last_build_time.FromSeconds(1_800_000_000)
    daemon.output_bases[0].obtainable.asked.FromSeconds(1_800_000_060)
    daemon.output_bases[0].obtainable.refresh.FromSeconds(1_800_005_400)
    daemon.output_bases.add(id="b2", save_error="no room")
    lost = daemon.output_bases[1].obtainable
    lost.missing, lost.dropped_files, lost.dropped_directories = 3, 5, 1
    lost.dropped_time.FromSeconds(1_800_000_000)
    daemon.remote.url, daemon.remote.state, daemon.remote.last_error = (
        "grpc://h:1",
        Remote.FAILING,
        "h:1 is away",
    )
    daemon.remote.healed_blobs, daemon.remote.healing = 7, 2
    spoken = outputd("status")
    assert (spoken.code, spoken.err) == (0, "")
    assert spoken.out.splitlines() == [
        "outputd 9.9, pid 321, up 1 h 2 min",
        "mount   /mnt/out",
        "kernel  FUSE 7.45; readdirplus, passthrough",
        "listen  unix:/s, 127.0.0.1:1",
        "store   /c: 12 345 blobs, 1.5 GiB (1 GiB evictable, 512 MiB only here), 7 MiB of 2 more that are here in part; "
        "30 GiB of 100 GiB free, 4 000 inodes, "
        "less than the 40 GiB to be kept free: outputd gc --dry-run",
        "remote  grpc://h:1, failing; last error: h:1 is away; 7 blobs that it had lost given back, 2 to go",
        "",
        "OUTPUT BASE  BUILD        LAST BUILD  ENDED                 ENTRIES  CHANGED  ASKED FOR             NEXT",
        "b1           running i-2  i-1         2027-01-15T08:00:00Z  2 000    yes      2027-01-15T08:01:00Z  "
        "2027-01-15T09:30:00Z",
        "b2           none         -           -                     0        no       -                     -",
        "warning: b2 could not be saved, a restart would bring back an older tree: no room",
        "warning: b2: nobody has 3 of its blobs any more; the next build will not see what needs them "
        "(`outputd verify b2` lists it)",
        "warning: b2: the CAS had lost 5 files and the contents of 1 directories, which were taken away at 2027-01-15T08:00:00Z",
    ]


def test_a_young_daemon(outputd: Commands, daemon: GetStatusResponse) -> None:
    out = outputd("status").out
    assert "store   /c: not counted yet; 30 GiB of 100 GiB free\n" in out
    assert "remote  none; the local store alone\n" in out
    assert "no output bases yet: `outputd bazelrc`" in out


def test_a_remote_that_was_given_up(outputd: Commands, daemon: GetStatusResponse) -> None:
    daemon.remote.url, daemon.remote.state, daemon.remote.last_error = "grpc://h:1", Remote.GIVEN_UP, "away"
    daemon.remote.unanswered_since.FromSeconds(1_800_000_000)
    out = outputd("status").out
    assert "remote  grpc://h:1, given up, no answer since 2027-01-15T08:00:00Z; last error: away\n" in out


def test_programs(outputd: Commands, daemon: GetStatusResponse) -> None:
    daemon.output_bases.add(id="b1", entries=1 << 40)
    daemon.remote.url = "grpc://h:1"
    data = json.loads(outputd("status", "--json").out)
    assert data["uptime_seconds"] == 3725
    assert data["store"]["blobs"] is None
    assert data["remote"] == {
        "name": None,
        "prefix": "",
        "instance_name": "",
        "url": "grpc://h:1",
        "state": "not asked yet",
        "last_error": None,
        "last_error_time": None,
        "unanswered_since": None,
        "healed_blobs": 0,
        "healed_bytes": 0,
        "healing": 0,
        "offline_queue": None,
        "credentials": [],
    }
    assert data["output_bases"] == [
        {
            "id": "b1",
            "running_build_id": None,
            "last_build_id": None,
            "last_build_time": None,
            "entries": 1 << 40,
            "dirty": False,
            "save_error": None,
            "obtainable": {
                "blobs": 0,
                "asked": None,
                "refresh": None,
                "missing": 0,
                "dropped_files": 0,
                "dropped_directories": 0,
                "dropped_time": None,
            },
            "upload": None,
        }
    ]


def test_json_has_every_field_of_the_message(outputd: Commands, daemon: GetStatusResponse) -> None:
    daemon.remote.url = "grpc://h:1"
    daemon.output_bases.add()
    data = json.loads(outputd("status", "--json").out)
    renamed = {"uptime": "uptime_seconds"}
    for name, shown in (
        ("", data),
        ("mount", data["mount"]),
        ("store", data["store"]),
        ("remote", data["remote"]),
    ):
        message = getattr(daemon, name) if name else daemon
        assert set(shown) == {renamed.get(field.name, field.name) for field in message.DESCRIPTOR.fields}
    assert set(data["output_bases"][0]) == set(daemon.output_bases[0].DESCRIPTOR.fields_by_name)


def test_what_waits_for_a_remote(outputd: Commands, daemon: GetStatusResponse) -> None:
    daemon.remote.url = "grpc://h:1"
    queue = daemon.remote.offline_queue
    queue.limit_bytes = 1 << 30
    assert outputd("status").out.splitlines()[6].strip() == (
        "offline queue: 0 blobs and 0 action results wait, 0 B of 1 GiB"
    )
    queue.blobs, queue.results, queue.bytes, queue.last_error = 12, 1, 1 << 20, "away"
    queue.brought, queue.brought_bytes = 3, 1 << 10
    queue.oldest.FromSeconds(1_800_000_000)
    refused = queue.refused.add(instance_name="main", action="abc/1", error="read only")
    refused.queued.FromSeconds(1_800_000_000)
    assert outputd("status").out.splitlines()[6].strip() == (
        "offline queue: 12 blobs and 1 action results wait, 1 MiB of 1 GiB, the oldest since 2027-01-15T08:00:00Z; "
        "last error: away; 3 brought, 1 KiB; 1 refused (--json lists them), the last: read only"
    )
    shown = json.loads(outputd("status", "--json").out)["remote"]["offline_queue"]
    assert set(shown) == {field.name for field in queue.DESCRIPTOR.fields}
    assert shown["refused"] == [
        {
            "instance_name": "main",
            "blob": None,
            "action": "abc/1",
            "queued": "2027-01-15T08:00:00Z",
            "error": "read only",
        }
    ]


def test_the_second_address_answers(outputd: Commands, daemon: GetStatusResponse, tmp_path: Path) -> None:
    spoken = outputd(
        "status", "--listen", f"unix:{tmp_path}/none", "--listen", f"unix:{tmp_path}/outputd.sock"
    )
    assert spoken.code == 0


def test_no_socket(outputd: Commands, tmp_path: Path) -> None:
    spoken = outputd("status")
    assert (spoken.code, spoken.out) == (4, "")
    assert spoken.err == (
        f"outputd: no daemon answers at unix:{tmp_path}/outputd.sock: there is no such socket\n"
        "outputd: start it with `outputd serve`, or name its address with --listen\n"
    )


def test_a_socket_that_a_dead_daemon_left(outputd: Commands, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{tmp_path}/outputd.sock")
    spoken = outputd("status")
    assert spoken.code == 4
    assert "no daemon answers at" in spoken.err
    assert "Connection refused" in spoken.err


def test_something_else_answers(outputd: Commands, tmp_path: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_insecure_port(f"unix:{tmp_path}/outputd.sock")
    server.start()
    spoken = outputd("status")
    server.stop(None).wait()
    assert spoken.code == 1
    assert "is no running outputd" in spoken.err
    assert "UNIMPLEMENTED" in spoken.err


def test_a_daemon_that_is_stuck(
    outputd: Commands, serve_admin: Callable[[Answer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outputd.cli.running_daemon.ANSWER_SECONDS", 0.2)
    released = threading.Event()

    def hang(request: GetStatusRequest, context: grpc.ServicerContext) -> GetStatusResponse:
        released.wait()
        return GetStatusResponse()

    serve_admin(hang)
    spoken = outputd("status")
    released.set()
    assert spoken.code == 4
    assert "does not answer within 0.2 s; what listens there is busy or stuck" in spoken.err


def test_several_remotes_and_whose_credentials_they_are_sent(
    outputd: Commands, daemon: GetStatusResponse
) -> None:
    daemon.remote.url = "grpc://h:1"
    team = daemon.remotes.add(name="team", prefix="big/team", instance_name="main", url="grpcs://t")
    team.state = Remote.REACHABLE
    told = team.credentials.add(
        headers=["authorization"], source="credential helper /usr/bin/helper", subject="ed@example.com"
    )
    told.expires.FromSeconds(1_800_000_000)
    team.credentials.add(headers=["x-token"], source="/run/token", error="it is empty")
    assert outputd("status").out.splitlines()[5:9] == [
        "remote       grpc://h:1, not asked yet",
        "remote team  big/team -> grpcs://t main, reachable",
        "             authorization from credential helper /usr/bin/helper, of ed@example.com, until 2027-01-15T08:00:00Z",
        "             x-token from /run/token; it is empty",
    ]
    (shown,) = json.loads(outputd("status", "--json").out)["remotes"]
    assert (shown["name"], shown["prefix"], shown["instance_name"]) == ("team", "big/team", "main")
    assert shown["credentials"][0] == {
        "headers": ["authorization"],
        "source": "credential helper /usr/bin/helper",
        "subject": "ed@example.com",
        "expires": "2027-01-15T08:00:00Z",
        "error": None,
    }
