"""Whether a workspace is gone for sure."""

from __future__ import annotations

from pathlib import Path

from outputd.builds.workspaces import Candidate, stale

DAY = 86400 * 10**9


def candidate(tmp_path: Path, last_used: int = 10 * DAY) -> Candidate:
    return Candidate("id", (f"{tmp_path}/output_base/execroot/ws/bazel-out",), last_used)


def made(tmp_path: Path) -> Path:
    """A workspace, and the output base that Bazel has made for it."""
    (tmp_path / "output_base").mkdir()
    (tmp_path / "ws").mkdir()
    (tmp_path / "output_base" / "DO_NOT_BUILD_HERE").write_text(f"{tmp_path}/ws")
    return tmp_path / "ws"


def test_it_is_there(tmp_path: Path) -> None:
    made(tmp_path)
    assert stale([candidate(tmp_path)], None) == []
    assert stale([candidate(tmp_path)], 10 * DAY) == []
    assert [found.reason for found in stale([candidate(tmp_path)], 11 * DAY)] == ["no build since then"]


def test_it_is_gone(tmp_path: Path) -> None:
    made(tmp_path).rmdir()
    [found] = stale([candidate(tmp_path)], None)
    assert (found.id, found.reason, found.last_used) == (
        "id",
        f"the workspace {tmp_path}/ws is gone",
        10 * DAY,
    )


def test_its_output_base_is_gone(tmp_path: Path) -> None:
    [found] = stale([candidate(tmp_path)], None)
    assert found.reason == f"Bazel's output base {tmp_path}/output_base is gone"


def test_a_disk_that_is_not_there_now_is_no_proof(tmp_path: Path) -> None:
    assert stale([candidate(tmp_path / "not" / "mounted")], None) == []
    (tmp_path / "output_base").mkdir()
    (tmp_path / "output_base" / "DO_NOT_BUILD_HERE").write_text(f"{tmp_path}/not/mounted/ws")
    assert stale([candidate(tmp_path)], None) == []


def test_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "output_base").mkdir()
    assert (
        stale([candidate(tmp_path), Candidate("id", (), 0), Candidate("id", ("/elsewhere",), 0)], None) == []
    )
