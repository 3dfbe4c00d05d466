"""outputd.cli.bazelrc: the exact flags, with and without a daemon, with and without a remote."""

from __future__ import annotations

from pathlib import Path

from outputd._proto.admin_pb2 import GetStatusResponse
from tests.unit.cli.conftest import Commands


def flags(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("# ")]


def test_the_embedded_store(outputd: Commands, tmp_path: Path) -> None:
    spoken = outputd("bazelrc", "--mount", "/mnt/out")
    assert spoken.code == 0
    assert flags(spoken.out) == [
        f"build --experimental_remote_output_service=unix:{tmp_path}/outputd.sock",
        "build --experimental_remote_output_service_output_path_prefix=/mnt/out/outputs",
        f"build --remote_cache=unix:{tmp_path}/outputd.sock",
    ]
    assert f"Values from the settings: no daemon answers at unix:{tmp_path}/outputd.sock" in spoken.out


def test_a_remote(outputd: Commands) -> None:
    outputd.environ["OUTPUTD_REMOTE_INSTANCE_NAME"] = "team/main"
    spoken = outputd("bazelrc", "--remote", "grpcs://cache.example.com:443")
    assert flags(spoken.out)[2:] == ["build --remote_bytestream_uri_prefix=cache.example.com:443/team/main"]
    assert "\n# build --remote_cache=grpcs://cache.example.com:443\n" in spoken.out
    assert "\n# build --remote_instance_name=team/main\n" in spoken.out


def test_a_remote_that_others_cannot_name(outputd: Commands) -> None:
    spoken = outputd("bazelrc", "--remote", "unix:/run/casd.sock")
    assert len(flags(spoken.out)) == 2
    assert "bytestream" not in spoken.out


def test_the_running_daemon_knows_better(
    outputd: Commands, daemon: GetStatusResponse, tmp_path: Path
) -> None:
    daemon.remote.url = "grpc://h:1"
    spoken = outputd("bazelrc", "--mount", "/elsewhere")
    assert "Values from the running daemon, pid 321." in spoken.out
    assert flags(spoken.out) == [
        "build --experimental_remote_output_service=unix:/s",
        "build --experimental_remote_output_service_output_path_prefix=/mnt/out/outputs",
        "build --remote_bytestream_uri_prefix=h:1",
    ]


def test_tcp_is_plaintext_for_bazel_only_when_it_is_told(outputd: Commands) -> None:
    spoken = outputd("bazelrc", "--listen", "127.0.0.1:8980")
    assert flags(spoken.out)[0] == "build --experimental_remote_output_service=grpc://127.0.0.1:8980"


def test_a_unix_socket_goes_before_tcp(outputd: Commands) -> None:
    spoken = outputd("bazelrc", "--listen", "127.0.0.1:8980", "--listen", "unix:/x.sock")
    assert flags(spoken.out)[0] == "build --experimental_remote_output_service=unix:/x.sock"


def test_odd_paths_are_quoted(outputd: Commands) -> None:
    spoken = outputd("bazelrc", "--mount", '/my "out" \\ #1')
    expected = 'build --experimental_remote_output_service_output_path_prefix="/my \\"out\\" \\\\ #1/outputs"'
    assert flags(spoken.out)[1] == expected


def test_several_remotes_are_reached_through_outputd(outputd: Commands, daemon: GetStatusResponse) -> None:
    daemon.remote.url = "grpc://h:1"
    daemon.remotes.add(name="lab", prefix="lab/x", url="grpcs://lab")
    spoken = outputd("bazelrc")
    assert flags(spoken.out)[2:] == ["build --remote_cache=unix:/s"]
    assert "\n# build --remote_instance_name=lab/x\n" in spoken.out
