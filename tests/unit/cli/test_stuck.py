"""outputd.cli.stuck: what people and what programs are shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outputd._proto.admin_pb2 import ListOperationsResponse
from tests.unit.cli.conftest import Commands, Operations


def fill(found: ListOperationsResponse) -> None:
    request = found.kernel_requests.add(
        opcode="READ", path="/m/a b", pid=17, process="cat", waits_for="blob x/1"
    )
    request.age.FromMilliseconds(61_500)
    found.kernel_requests.add(opcode="FSYNC", path="/m/c").age.FromMilliseconds(5_000)
    found.calls.add(method="S.M", peer="unix:").age.FromMilliseconds(7_000)
    fetch = found.fetches.add(
        digest="sha256:x/2048", received_bytes=1024, size_bytes=2048, waiters=3, remote="r"
    )
    fetch.age.FromMilliseconds(9_000)


def test_people(outputd: Commands, operations: Operations) -> None:
    fill(operations.reply)
    spoken = outputd("stuck", "--older-than", "2.5")
    assert (spoken.code, spoken.err) == (0, "")
    assert spoken.out.splitlines() == [
        "file system",
        "AGE        REQUEST  PATH    PROCESS  WAITS FOR",
        "1 min 1 s  READ     /m/a b  17 cat   blob x/1",
        "5 s        FSYNC    /m/c    -        the disk",
        "calls",
        "AGE  METHOD  CLIENT",
        "7 s  S.M     unix:",
        "fetches",
        "AGE  BLOB           RECEIVED        WAITERS  FROM",
        "9 s  sha256:x/2048  1 KiB of 2 KiB  3        r",
    ]
    assert operations.asked == [2.5]


def test_nothing(outputd: Commands, operations: Operations) -> None:
    spoken = outputd("stuck")
    assert (spoken.code, spoken.out) == (0, "nothing has been under way for 5 s or longer\n")


def test_programs(outputd: Commands, operations: Operations) -> None:
    fill(operations.reply)
    data = json.loads(outputd("stuck", "--json").out)
    for name, shown in data.items():
        fields = set(getattr(operations.reply, name)[0].DESCRIPTOR.fields_by_name)
        assert set(shown[0]) == {"age_seconds" if field == "age" else field for field in fields}
    assert set(data) == set(ListOperationsResponse.DESCRIPTOR.fields_by_name)
    assert data["kernel_requests"][0]["age_seconds"] == 61.5
    assert data["kernel_requests"][1] == {
        "opcode": "FSYNC",
        "path": "/m/c",
        "pid": None,
        "process": None,
        "age_seconds": 5,
        "waits_for": None,
    }


@pytest.mark.parametrize("text", ["-1", "soon", "nan", "inf"])
def test_no_number(outputd: Commands, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        outputd("stuck", "--older-than", text)
    assert raised.value.code == 2
    assert f"{text!r} is no number of seconds" in capsys.readouterr().err


def test_no_daemon(outputd: Commands, tmp_path: Path) -> None:
    spoken = outputd("stuck", "--json")
    assert (spoken.code, spoken.out) == (4, "")
    assert f"no daemon answers at unix:{tmp_path}/outputd.sock" in spoken.err
