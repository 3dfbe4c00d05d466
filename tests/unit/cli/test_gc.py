"""outputd.cli.gc: what is asked of the daemon, and how its report is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from outputd._proto.admin_pb2 import (
    CollectGarbageRequest,
    CollectGarbageResponse,
    GarbageReport,
    GetStatusResponse,
)
from outputd.cli.console import Console
from outputd.cli.main import run
from tests.unit.cli.conftest import Commands


@pytest.fixture
def asked(serve_admin: Callable[..., None]) -> list[CollectGarbageRequest]:
    """What a daemon was asked that reports the same each time."""
    requests: list[CollectGarbageRequest] = []

    def collect(request: CollectGarbageRequest) -> Iterator[CollectGarbageResponse]:
        requests.append(request)
        yield CollectGarbageResponse(step="marking")
        yield CollectGarbageResponse(step="removing", blobs=1200, bytes=3 << 20)
        report = GarbageReport(dropped_messages=7)
        report.blobs.add(
            kind=GarbageReport.Blobs.GARBAGE,
            blobs=1200,
            bytes=3 << 20,
            removed_blobs=1200,
            removed_bytes=3 << 20,
        )
        report.blobs.add(kind=GarbageReport.Blobs.KEPT, blobs=4, bytes=4096)
        report.output_bases.add(id="b1", reason="the workspace /ws is gone").last_used.FromSeconds(
            1_800_000_000
        )
        yield CollectGarbageResponse(report=report)

    serve_admin(lambda request, context: GetStatusResponse(), collect)
    return requests


def test_people(outputd: Commands, asked: list[CollectGarbageRequest]) -> None:
    spoken = outputd("gc")
    assert (spoken.code, spoken.err) == (0, "")
    assert spoken.out.splitlines() == [
        "BLOBS                            NUMBER  ROOM   GONE   ROOM",
        "only here, and nothing needs it  1 200   3 MiB  1 200  3 MiB",
        "only here, and needed or new     4       4 KiB  0      0 B",
        "output base b1 is gone: the workspace /ws is gone; last used 2027-01-15T08:00:00Z",
        "7 messages and records were dropped from the state database",
        "3 MiB were freed",
    ]
    assert asked == [CollectGarbageRequest()]


def test_a_dry_run_says_would(outputd: Commands, asked: list[CollectGarbageRequest]) -> None:
    out = outputd("gc", "--dry-run").out
    assert "WOULD GO" in out
    assert "output base b1 would go: the workspace /ws is gone" in out
    assert out.endswith("3 MiB would be freed\n")
    assert asked[0].dry_run


def test_limits_are_passed_on(outputd: Commands, asked: list[CollectGarbageRequest]) -> None:
    assert outputd("gc", "--older-than", "1.5d", "--max-size", "2 GiB").code == 0
    assert (asked[0].unused_for.seconds, asked[0].max_bytes) == (129600, 2 << 30)
    assert outputd("gc", "--older-than", "0s", "--max-size", "0").code == 0
    assert asked[1].HasField("unused_for") and asked[1].HasField("max_bytes")


def test_programs(outputd: Commands, asked: list[CollectGarbageRequest]) -> None:
    data = json.loads(outputd("gc", "--json", "--dry-run").out)
    assert data == {
        "dry_run": True,
        "blobs": {
            "garbage": {
                "blobs": 1200,
                "bytes": 3 << 20,
                "removed_blobs": 1200,
                "removed_bytes": 3 << 20,
            },
            "kept": {"blobs": 4, "bytes": 4096, "removed_blobs": 0, "removed_bytes": 0},
        },
        "output_bases": [
            {"id": "b1", "reason": "the workspace /ws is gone", "last_used": "2027-01-15T08:00:00Z"}
        ],
        "dropped_messages": 7,
    }


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_and_wiped(
    outputd: Commands, asked: list[CollectGarbageRequest], tmp_path: Path
) -> None:
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    console = Console(environ, StringIO(), StringIO())
    console = replace(console, err=Terminal())
    assert run(["gc"], console) == 0
    shown = console.err.getvalue()  # type: ignore[attr-defined]
    assert shown == "\r\x1b[Kmarking\r\x1b[Kremoving: 1 200 blobs, 3 MiB\r\x1b[K"


@pytest.mark.parametrize("option", ["--older-than=30", "--older-than=x", "--max-size=much", "--max-size=-1"])
def test_what_makes_no_sense_is_refused(
    outputd: Commands, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        outputd("gc", option)
    assert end.value.code == 2
    assert option.partition("=")[2] in capsys.readouterr().err


def test_nobody_is_there(outputd: Commands) -> None:
    spoken = outputd("gc")
    assert spoken.code == 4
    assert "start it with `outputd serve`" in spoken.err
