"""outputd.cli.selected: which output base and which of its paths a command line means."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from outputd._proto.admin_pb2 import GetStatusResponse
from outputd.cli.selected import add_selection, of_label, selection
from outputd.errors import Invalid


@pytest.fixture
def status(tmp_path: Path) -> GetStatusResponse:
    reply = GetStatusResponse()
    reply.mount.path = str(tmp_path / "mount")
    for name in ("b1", "b2"):
        (tmp_path / "mount/outputs" / name / "k8/bin/a").mkdir(parents=True)
        reply.output_bases.add(id=name)
    workspace = tmp_path / "workspace"
    (workspace / "src").mkdir(parents=True)
    (workspace / "bazel-out").symlink_to(tmp_path / "mount/outputs/b1")
    (workspace / "bazel-bin").symlink_to(tmp_path / "mount/outputs/b1/k8/bin")
    return reply


def chosen(status: GetStatusResponse, *arguments: str) -> dict[str, list[bytes]]:
    parser = argparse.ArgumentParser()
    add_selection(parser)
    return dict(selection(parser.parse_args(arguments), status))


def test_paths(status: GetStatusResponse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "workspace")
    assert chosen(status, "bazel-bin/a", "bazel-bin/**/*.so", "*/bin/x") == {
        "b1": [b"k8/bin/a", b"k8/bin/**/*.so", b"*/bin/x"]
    }
    assert chosen(status, f"{tmp_path}/mount/outputs/b2/k8/*") == {"b2": [b"k8/*"]}
    assert chosen(status, "--output-base", "b2", "k8") == {"b2": [b"k8"]}
    monkeypatch.chdir(tmp_path / "workspace/src")
    assert chosen(status, "k8") == {"b1": [b"k8"]}
    monkeypatch.chdir(tmp_path / "mount/outputs/b2/k8")
    assert chosen(status, "bin", "b*/a") == {"b2": [b"k8/bin", b"k8/b*/a"]}


def test_refused(status: GetStatusResponse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["x"], ["/etc/passwd"], ["--output-base", "b3", "x"], ["--label", "x"]):
        with pytest.raises(Invalid):
            chosen(status, *arguments)


def test_labels() -> None:
    assert "*/bin/a/b/c" in of_label("//a/b:c")
    assert "*/bin/a/b/b" in of_label("//a/b")
    assert list(of_label("//a/...")) == ["*/bin/a", "*/testlogs/a"]
    assert list(of_label("//...")) == ["*/bin", "*/testlogs"]
    assert "*/bin/x.*" in of_label("//:x")
    for wrong in ("//", "a:b", "//a:b:c"):
        with pytest.raises(Invalid):
            of_label(wrong)
