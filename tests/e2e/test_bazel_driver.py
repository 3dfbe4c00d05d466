"""Builds as Bazel plays them, through mount and socket of a real daemon: first, incremental, interrupted, parallel, cleaned."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests import daemon_fixture
from tests.bazel_driver import Action, BazelServer
from tests.daemon_fixture import Daemon
from tests.service_client import Cas, digest_of

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

BIN = "k8-fastbuild/bin"
SCRIPT = b"#!/bin/sh\necho built\n"


def _workspace(files: int = 20) -> list[Action]:
    """A small build with everything: cache hits, trees, symlinks, runfiles, sandboxed and local actions."""
    objects = {f"{BIN}/lib/_objs/{index}.o": f"object {index}".encode() * 50 for index in range(files)}
    runfiles = f"{BIN}/tool.runfiles/ws"
    return [
        *(
            Action(f"compile{index}", files={path: data})
            for index, (path, data) in enumerate(objects.items())
        ),
        Action("link", files={f"{BIN}/tool": SCRIPT}),
        Action(
            "tree",
            trees={f"{BIN}/generated": {f"d{index % 3}/f{index}": b"x" * index for index in range(30)}},
        ),
        Action(
            "genrule", files={f"{BIN}/gen/out.txt": b"from a sandbox", f"{BIN}/gen/log": b""}, where="sandbox"
        ),
        Action("unsandboxed", files={f"{BIN}/local/out.txt": b"from the mount itself"}, where="local"),
        *(
            Action(f"local{index}", files={f"{BIN}/local/{index}": b"%d" % index}, where=where)
            for index, where in enumerate(("sandbox", "local") * 6)
        ),
        Action("alias", files={}, links={f"{BIN}/tool_alias": "tool"}),
        Action(
            "runfiles",
            files={f"{BIN}/tool.runfiles/MANIFEST": b"ws/tool /tool\n"},
            links={
                # Out of the mount, through bazel-out, and in again.
                f"{runfiles}/tool": f"{{execroot}}/bazel-out/{BIN}/tool",
                f"{runfiles}/source": "/etc/hostname",
            },
        ),
    ]


def _upload(cas: Cas, actions: list[Action]) -> None:
    cas.put_all([data for action in actions for data in action.contents().values()])


@contextmanager
def _bazel(daemon: Daemon, name: str = "base") -> Iterator[tuple[BazelServer, Cas]]:
    with daemon_fixture.connected(daemon) as channel:
        cas = Cas(channel)
        yield BazelServer(channel, daemon.outputs, daemon.place / "bazel" / name, cas), cas


def _check_contents(bazel: BazelServer, actions: list[Action]) -> None:
    for action in actions:
        for path, data in action.contents().items():
            assert (bazel.bazel_out / path).read_bytes() == data
        for path in action.links:
            assert (bazel.bazel_out / path).is_symlink()
            assert (bazel.bazel_out / path).exists()


def _fetched(daemon: Daemon) -> set[str]:
    """Hashes of the blobs in the daemon's own store."""
    top = daemon.cache / "blobs" / "sha256"
    return {path.parent.name + path.name for path in top.glob("*/*")}


def test_a_first_build_and_one_that_has_nothing_to_do() -> None:
    with daemon_fixture.running() as daemon, _bazel(daemon) as (bazel, cas):
        actions = _workspace()
        _upload(cas, actions)
        first = bazel.build(actions)
        assert sorted(first.executed) == sorted(action.name for action in actions)
        assert first.fell_back == []
        assert first.unlocated == []
        _check_contents(bazel, actions)
        for action in actions:
            for path, data in action.contents().items():
                assert first.digests[path] == digest_of(data)
        # A runfiles link's digest is that of the file behind it, found through the alias.
        assert first.digests[f"{BIN}/tool.runfiles/ws/tool"] == digest_of(SCRIPT)
        second = bazel.build(actions)
        assert second.executed == []
        assert second.digests == first.digests
        assert second.calls["StageArtifacts"] == 0
        # `bazel run`: what was built is executed after the build has ended.
        ran = subprocess.run(
            [bazel.bazel_out / BIN / "tool_alias"], capture_output=True, check=True, timeout=60
        )
        assert ran.stdout == b"built\n"


def test_only_what_changed_is_built_again() -> None:
    with daemon_fixture.running() as daemon, _bazel(daemon) as (bazel, cas):
        actions = _workspace()
        _upload(cas, actions)
        bazel.build(actions)
        # Somebody changes outputs behind Bazel's back, and one action is another now.
        os.unlink(bazel.bazel_out / BIN / "lib/_objs/3.o")
        out = bazel.bazel_out / BIN / "gen/out.txt"
        os.chmod(out, 0o644)
        out.write_bytes(b"edited by hand")
        stray = bazel.bazel_out / BIN / "generated/d0"
        os.chmod(stray, 0o755)
        (stray / "stray").write_bytes(b"")
        changed = [
            Action("link", files={f"{BIN}/tool": SCRIPT + b"exit 0\n"}) if a.name == "link" else a
            for a in actions
        ]
        _upload(cas, changed)
        report = bazel.build(changed)
        # The runfiles link leads to the tool, whose digest is its own.
        assert sorted(set(report.executed) - {"runfiles"}) == ["compile3", "genrule", "link", "tree"]
        _check_contents(bazel, changed)
        assert bazel.build(changed).executed == []


def test_a_restart_of_the_daemon_loses_no_output() -> None:
    with daemon_fixture.running() as daemon, _bazel(daemon) as (bazel, cas):
        actions = _workspace()
        _upload(cas, actions)
        before = bazel.build(actions)
        daemon.restart()
        after = bazel.build(actions)
        assert after.executed == []
        assert after.digests == before.digests
        # A crash between two builds loses no more.
        daemon.kill()
        daemon.expects(r"took off 1 mounts of dead daemons")
        daemon.start()
        assert bazel.build(actions).executed == []
        _check_contents(bazel, actions)


def test_a_bazel_that_was_killed_and_one_that_remembers_nothing() -> None:
    with daemon_fixture.running() as daemon, _bazel(daemon) as (bazel, cas):
        actions = _workspace(5)
        _upload(cas, actions)
        bazel.build(actions[:3], killed=True)
        again = BazelServer(bazel._channel, daemon.outputs, daemon.place / "bazel" / "base", cas)
        assert again.base_id == bazel.base_id
        report = again.build(actions)
        assert len(report.executed) == len(actions)
        _check_contents(again, actions)


def test_a_hit_that_cannot_be_staged_whole_runs_over_what_was_staged() -> None:
    with daemon_fixture.running() as daemon, _bazel(daemon) as (bazel, cas):
        action = Action(
            "half",
            files={f"{BIN}/half/{index}": f"content {index}".encode() for index in range(6)},
            trees={f"{BIN}/half.tree": {"a/b": b"one", "c": b"two"}},
        )
        contents = action.contents()
        cas.put_all(list(contents.values())[::2])  # the CAS has lost the others
        report = bazel.build([action])
        assert report.fell_back == ["half"]
        assert report.executed == ["half"]
        assert report.digests == {path: digest_of(data) for path, data in contents.items()}
        _check_contents(bazel, [action])


def test_what_the_cas_loses_between_builds_is_made_again() -> None:
    with daemon_fixture.running() as daemon, _bazel(daemon) as (bazel, cas):
        actions = _workspace(6)
        _upload(cas, actions)
        bazel.build(actions)
        lost = b"object 2" * 50
        hash_hex = hashlib.sha256(lost).hexdigest()
        (daemon.cache / "blobs" / "sha256" / hash_hex[:2] / hash_hex[2:]).unlink()
        daemon.expects("1 files and the contents of 0 directories were removed")
        report = bazel.build(actions)
        assert report.executed == ["compile2"]
        assert report.fell_back == ["compile2"]
        _check_contents(bazel, actions)


def test_two_workspaces_at_once() -> None:
    with daemon_fixture.running() as daemon:

        def workspace(name: str) -> None:
            with _bazel(daemon, name) as (bazel, cas):
                actions = _workspace()
                _upload(cas, actions)
                for _ in range(2):
                    bazel.build(actions)
                    _check_contents(bazel, actions)
                bazel.clean()
                assert not os.path.lexists(bazel.bazel_out)
                assert len(bazel.build(actions).executed) == len(actions)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(workspace, ("one", "two")))
        assert len(os.listdir(daemon.outputs)) == 2


def test_clean() -> None:
    with daemon_fixture.running() as daemon, _bazel(daemon) as (bazel, cas):
        bazel.clean()  # before anything was built
        actions = _workspace()
        _upload(cas, actions)
        bazel.build(actions)
        bazel.clean()
        assert os.listdir(daemon.outputs) == []
        daemon.restart()
        assert os.listdir(daemon.outputs) == []
        report = bazel.build(actions)
        assert len(report.executed) == len(actions)
        _check_contents(bazel, actions)


def test_nothing_is_fetched_that_nobody_reads() -> None:
    with (
        daemon_fixture.running() as upstream,
        daemon_fixture.connected(upstream) as channel,
        daemon_fixture.running("--remote", upstream.target) as daemon,
        _bazel(daemon) as (bazel, _),
    ):
        actions = [action for action in _workspace() if action.where == "cache"]
        _upload(Cas(channel), actions)
        report = bazel.build(actions)
        assert report.fell_back == []
        contents = [data for action in actions for data in action.contents().values()]
        staged = {hashlib.sha256(data).hexdigest() for data in contents if data}
        tool = hashlib.sha256(SCRIPT).hexdigest()
        assert not _fetched(daemon) & staged
        assert (bazel.bazel_out / BIN / "tool").read_bytes() == SCRIPT
        assert _fetched(daemon) & staged == {tool}
        assert bazel.build(actions).executed == []
        assert _fetched(daemon) & staged == {tool}
        _check_contents(bazel, actions)
        assert staged <= _fetched(daemon)


def test_a_tree_artifact_of_many_files() -> None:
    with daemon_fixture.running() as daemon, _bazel(daemon) as (bazel, cas):
        files = {f"d{index % 20}/f{index}": f"{index}".encode() for index in range(1000)}
        actions = [Action("large", trees={f"{BIN}/large": files})]
        _upload(cas, actions)
        bazel.build(actions)
        assert bazel.build(actions).executed == []
        # Removed entry by entry from read-only directories, and staged again with other files.
        fewer = [Action("large", trees={f"{BIN}/large": dict(list(files.items())[::3])})]
        assert bazel.build(fewer).executed == ["large"]
        _check_contents(bazel, fewer)


def test_the_driver_notices_an_output_that_is_not_there() -> None:
    """The harness itself: a planted fault is one."""
    with daemon_fixture.running() as daemon, _bazel(daemon) as (bazel, cas):
        actions = _workspace(2)
        _upload(cas, actions)
        bazel._stage = lambda action: True  # type: ignore[method-assign]
        with pytest.raises(Exception, match="output was not created"):
            bazel.build(actions[:1])
