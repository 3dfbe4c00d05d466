"""The main job against REv2 servers of other projects: a build's outputs as lazy files, on real input, from upload to Clean."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc
import pytest

from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from outputd.digest import DigestFunction
from outputd.rpc.admin_client import fetch_status
from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.interop.servers import buildbox_casd, buildgrid
from tests.interop.upstream import Upstream, upstream
from tests.rev2_tree import Program, Rev2Tree
from tests.service_client import BuildClient, Cas, digest_of

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

CHATTER: Final = 4096
"""Bytes that a connection may carry without a blob in them: settings, pings, capabilities."""
SERVERS: Final = {"buildgrid": buildgrid, "casd": buildbox_casd}

SCRIPT: Final = b'#!/bin/sh\necho "run: $1"\n'
TREE: Final = Rev2Tree(
    {
        "empty": {},
        "lib": {"a.txt": b"a" * 5000, "b.txt": b"b" * 400_000, "nothing": b"", "deeper": {"c.txt": b"c"}},
        "link": "lib/a.txt",
        "run.sh": Program(SCRIPT),
    }
)
TREE_FILES: Final = {
    "lib/a.txt": b"a" * 5000,
    "lib/b.txt": b"b" * 400_000,
    "lib/nothing": b"",
    "lib/deeper/c.txt": b"c",
}


@pytest.fixture(scope="module", params=list(SERVERS.values()), ids=list(SERVERS))
def remote(request: pytest.FixtureRequest) -> Iterator[Upstream]:
    with (
        tempfile.TemporaryDirectory(prefix="outputd-test-") as place,
        upstream(request.param, Path(place)) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def daemon(remote: Upstream) -> Iterator[Daemon]:
    with daemon_fixture.running("--remote", remote.relay.url) as running:
        yield running


@pytest.fixture(scope="module")
def channel(daemon: Daemon) -> Iterator[grpc.Channel]:
    with daemon_fixture.connected(daemon) as connected:
        yield connected


@pytest.fixture
def build(daemon: Daemon, channel: grpc.Channel, request: pytest.FixtureRequest) -> BuildClient:
    """A client of an output base of the test's own."""
    return BuildClient(channel, daemon.outputs, request.node.name)


def upload(cas: Cas, tree: Rev2Tree, *, directories: bool) -> None:
    """The files of a tree, and the Tree message or the Directory messages."""
    blobs = {*tree.files, *(tree.directories if directories else [tree.message])}
    cas.put_all([blob for blob in blobs if blob])


def walk(top: Path) -> dict[str, os.stat_result]:
    """Everything below, by its path."""
    found = {}
    for directory, names, files in os.walk(top):
        for name in names + files:
            path = Path(directory, name)
            found[str(path.relative_to(top))] = path.lstat()
    return found


def check_tree(top: Path) -> None:
    assert sorted(walk(top)) == sorted([*TREE_FILES, "empty", "lib", "lib/deeper", "link", "run.sh"])
    assert {path: (top / path).stat().st_size for path in TREE_FILES} == {
        p: len(d) for p, d in TREE_FILES.items()
    }
    assert (os.access(top / "run.sh", os.X_OK), (top / "lib/a.txt").stat().st_mode & 0o111) == (True, 0)
    assert os.readlink(top / "link") == "lib/a.txt"


def read_tree(top: Path) -> None:
    assert {path: (top / path).read_bytes() for path in TREE_FILES} == TREE_FILES
    assert (top / "link").read_bytes() == TREE_FILES["lib/a.txt"]
    assert run(top / "run.sh", "tree") == "run: tree\n"


def run(program: Path, argument: str) -> str:
    return subprocess.run([program, argument], check=True, capture_output=True, text=True, timeout=30).stdout


def test_files(remote: Upstream, daemon: Daemon, build: BuildClient) -> None:
    contents = {
        "bin/small": os.urandom(100),
        "bin/large": os.urandom(5 << 20),
        "bin/just over a batch": os.urandom((256 << 10) + 1),
        "bin/empty": b"",
        "bin/script": SCRIPT,
        "bin/ünï©ode/ name ": b"x",
    }
    digests = dict(zip(contents, remote.cas().put_all(list(contents.values())), strict=True))
    top = daemon.outputs / build.base
    build.start()
    before = remote.relay.received
    build.stage(digests)
    seen = walk(top)
    assert {path: seen[path].st_size for path in contents} == {
        path: len(data) for path, data in contents.items()
    }
    assert build.digests(*contents) == list(digests.values())
    assert remote.relay.received - before < CHATTER, "bytes moved that nobody read"

    for path, data in contents.items():
        assert (top / path).read_bytes() == data
    assert remote.relay.received - before > 5 << 20
    assert run(top / "bin/script", "file") == "run: file\n"
    assert digest_of((top / "bin/large").read_bytes()) == digests["bin/large"]
    before = remote.relay.received
    for path, data in contents.items():
        assert (top / path).read_bytes() == data
    assert remote.relay.received - before < CHATTER, "what is here was fetched again"
    build.finish()


@pytest.mark.parametrize("given", ["tree", "tree and root", "root"])
def test_tree_artifacts(remote: Upstream, daemon: Daemon, build: BuildClient, given: str) -> None:
    upload(remote.cas(), TREE, directories=given == "root")
    locator = rev2.TreeArtifactLocator()
    if "tree" in given:
        locator.tree_digest.CopyFrom(TREE.digest)
    if "root" in given:
        locator.root_directory_digest.CopyFrom(TREE.root_digest)
    top = daemon.outputs / build.base
    build.start()
    before = remote.relay.received
    build.stage({"out/tree": locator})
    assert (top / "out/tree").is_dir()
    assert remote.relay.received - before < CHATTER, "a tree moved that nobody looked into"
    check_tree(top / "out/tree")
    paths = [f"out/tree/{path}" for path in TREE_FILES]
    assert build.digests(*paths) == [digest_of(data) for data in TREE_FILES.values()]
    assert remote.relay.received - before < CHATTER + len(TREE.message) + sum(map(len, TREE.directories))
    read_tree(top / "out/tree")
    build.finish()

    build.start()
    check_tree(top / "out/tree")
    read_tree(top / "out/tree")
    build.finish()


def test_local_files_beside_remote_ones(remote: Upstream, daemon: Daemon, build: BuildClient) -> None:
    data = os.urandom(300_000)
    (digest,) = remote.cas().put_all([data])
    top = daemon.outputs / build.base
    build.start()
    build.stage({"gen/staged": digest, "gen/changed": digest, "gen/copied": digest, "gen/replaced": digest})
    (top / "gen/local").write_bytes(b"made by a local action")
    with open(top / "gen/changed", "r+b") as file:
        file.seek(1000)
        file.write(b"CHANGED")
    shutil.copy(top / "gen/staged", top / "gen/copied")
    os.rename(top / "gen/local", top / "gen/replaced")
    (top / "gen/link").symlink_to("staged")
    changed = data[:1000] + b"CHANGED" + data[1007:]
    assert (top / "gen/changed").read_bytes() == changed
    assert build.digests(
        "gen/staged", "gen/changed", "gen/copied", "gen/replaced", "gen/local", "gen/link"
    ) == [
        digest,
        digest_of(changed),
        digest,
        digest_of(b"made by a local action"),
        None,
        None,
    ]
    build.finish()
    build.start()
    assert (top / "gen/changed").read_bytes() == changed
    assert (top / "gen/link").read_bytes() == data
    build.finish()


def test_the_next_build_finds_its_outputs(remote: Upstream, daemon: Daemon, build: BuildClient) -> None:
    unread = os.urandom(2 << 20)
    cas = remote.cas()
    artifacts = {f"d{number}/file": cas.put(f"content {number}".encode()) for number in range(50)}
    artifacts["unread"] = cas.put(unread)
    upload(cas, TREE, directories=False)
    top = daemon.outputs / build.base
    build.start()
    build.stage({**artifacts, "tree": rev2.TreeArtifactLocator(tree_digest=TREE.digest)})
    (top / "local").write_bytes(b"local")
    times = {path: found.st_mtime_ns for path, found in walk(top).items()}
    build.finish()

    build.start()
    before = remote.relay.received
    assert {path: found.st_mtime_ns for path, found in walk(top).items()} == times
    assert build.digests(*artifacts) == list(artifacts.values())
    assert build.digests("local") == [digest_of(b"local")]
    assert remote.relay.received - before < CHATTER
    assert (top / "unread").read_bytes() == unread
    build.finish()


def read_in_the_end(path: Path) -> bytes:
    """A server that was given up is asked again after a pause; reads fail until it has answered."""
    end = time.monotonic() + 60
    while True:
        try:
            return path.read_bytes()
        except OSError as error:
            assert error.errno == errno.EREMOTEIO
            assert time.monotonic() < end
        time.sleep(0.1)


def test_a_restart(remote: Upstream) -> None:
    """Twice: with the server there, and with the server away."""
    unread, read = os.urandom(300_000), os.urandom(300_000)
    cas = remote.cas()
    upload(cas, TREE, directories=False)
    with (
        daemon_fixture.running("--remote", remote.relay.url) as daemon,
        daemon_fixture.connected(daemon) as channel,
    ):
        daemon.settings["remote.retry_seconds"] = "0.5"
        build = BuildClient(channel, daemon.outputs)
        top = daemon.outputs / build.base
        build.start()
        build.stage(
            {
                "unread": cas.put(unread),
                "read": cas.put(read),
                "seen tree": rev2.TreeArtifactLocator(tree_digest=TREE.digest),
                "unseen tree": rev2.TreeArtifactLocator(
                    tree_digest=TREE.digest, root_directory_digest=TREE.root_digest
                ),
                "out/other": cas.put(b"other"),
            }
        )
        assert (top / "read").read_bytes() == read
        read_tree(top / "seen tree")
        (top / "out/local").write_bytes(b"local")
        os.chmod(top / "out/local", 0o640)
        (top / "out/link").symlink_to("local")
        os.link(top / "out/local", top / "out/hard link")
        os.utime(top / "out/other", ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789))
        before = walk(top)
        build.finish()

        for away in (False, True):
            daemon.stop()
            if away:
                remote.relay.cut()
            daemon.start()
            (status,) = fetch_status(daemon.target, 5).output_bases
            assert (status.id, status.entries) == (build.base, 0), "the start read more than the root"
            after = walk(top)
            assert sorted(after) == sorted(before)
            for path, old in before.items():
                new = after[path]
                assert (new.st_mode, new.st_size, new.st_mtime_ns) == (
                    old.st_mode,
                    old.st_size,
                    old.st_mtime_ns,
                ), path
                # 1 is a directory that nobody has looked into yet.
                assert new.st_nlink == old.st_nlink or (new.st_nlink == 1 and stat.S_ISDIR(new.st_mode)), path
            assert (top / "read").read_bytes() == read
            assert (top / "out/link").read_bytes() == (top / "out/hard link").read_bytes() == b"local"
            read_tree(top / "seen tree")
            check_tree(top / "unseen tree")
            read_tree(top / "unseen tree")  # the same blobs as in the seen one

        daemon.expects(rf"READ of /outputs/base/unread .* failed with EREMOTEIO.*: .*{remote.relay.url}")
        daemon.expects("was given up, it has not answered since")
        end = time.monotonic() + 60
        while "was given up" not in daemon.words():
            began = time.monotonic()
            assert began < end
            with pytest.raises(OSError) as raised:
                (top / "unread").read_bytes()
            assert raised.value.errno == errno.EREMOTEIO
            assert time.monotonic() - began < 15
        remote.relay.mend()
        assert read_in_the_end(top / "unread") == unread
        build.start()
        assert build.digests("read", "unread", "out/local") == [
            digest_of(read),
            digest_of(unread),
            digest_of(b"local"),
        ]


def test_what_the_server_has_lost_is_hidden(remote: Upstream) -> None:
    gone = Rev2Tree({"a": b"a of a lost tree", "below": {"b": b"b of a lost tree"}})
    half = Rev2Tree({"read": b"read of a tree", "unread": b"unread of a tree"})
    cas = remote.cas()
    for tree in (gone, half):
        upload(cas, tree, directories=False)
    with (
        daemon_fixture.running("--remote", remote.relay.url) as daemon,
        daemon_fixture.connected(daemon) as channel,
    ):
        build = BuildClient(channel, daemon.outputs)
        top = daemon.outputs / build.base
        build.start()
        build.stage(
            {
                "read": cas.put(b"was read"),
                "d/unread": cas.put(b"was never read"),
                "d/empty": cas.put(b""),
                "gone": rev2.TreeArtifactLocator(tree_digest=gone.digest),
                "half": rev2.TreeArtifactLocator(tree_digest=half.digest),
            }
        )
        assert (top / "read").read_bytes() == b"was read"
        assert (top / "half/read").read_bytes() == b"read of a tree"
        (top / "d/local").write_bytes(b"local")
        assert (top / "d/unread").exists()
        build.finish()

        remote.lose_everything()
        assert remote.cas().missing([digest_of(b"was read")])
        daemon.expects(
            "a directory cannot be shown any more: .*",
            "2 files and the contents of 1 directories were removed",
        )
        build.start()
        assert sorted(walk(top)) == ["d", "d/empty", "d/local", "gone", "half", "half/read", "read"]
        assert (top / "read").read_bytes() == b"was read"
        assert (top / "d/local").read_bytes() == b"local"
        assert not (top / "d/unread").exists()
        assert not any(found.HasField("stat") for found in build.stat(["d/unread", "half/unread", "gone/a"]))

        # The client makes them again.
        build.stage({"d/unread": remote.cas().put(b"was never read")})
        assert (top / "d/unread").read_bytes() == b"was never read"
        build.finish()


def test_clean_is_immediate(remote: Upstream, daemon: Daemon, build: BuildClient) -> None:
    digest = remote.cas().put(b"x")
    top = daemon.outputs / build.base
    build.start()
    began = time.monotonic()
    build.stage({f"d{number // 100}/f{number}": digest for number in range(100_000)})
    to_stage = time.monotonic() - began
    (top / "d0/local").write_bytes(b"local")
    # The kernel knows a part of it, too.
    assert sum(len(os.listdir(top / f"d{number}")) for number in range(100)) == 10_001
    began = time.monotonic()
    build.clean()
    took = time.monotonic() - began
    assert build.base not in os.listdir(daemon.outputs)
    assert not top.exists()
    assert took < to_stage / 2
    build.start()
    assert os.listdir(top) == []
    build.finish()


# --- what a build says it uses


def test_each_build_reads_from_its_own_instance() -> None:
    one, two = b"only in one", b"only in two/b"
    with (
        tempfile.TemporaryDirectory(prefix="outputd-test-") as place,
        upstream(buildgrid, Path(place), "one", "two/b") as remote,
        daemon_fixture.running("--remote", remote.relay.url) as daemon,
        daemon_fixture.connected(daemon) as channel,
    ):
        artifacts = {"one": remote.cas("one").put(one), "two": remote.cas("two/b").put(two)}
        large = os.urandom(2 << 20)
        artifacts["large"], artifacts["unread"] = remote.cas("two/b").put_all([large, b"not read"])
        upload(remote.cas("two/b"), TREE, directories=False)
        first = BuildClient(channel, daemon.outputs, "first", instance="one")
        second = BuildClient(channel, daemon.outputs, "second", instance="two/b")
        for build in (first, second):
            build.start()
            build.stage({**artifacts, "tree": rev2.TreeArtifactLocator(tree_digest=TREE.digest)})
        assert (daemon.outputs / "first/one").read_bytes() == one
        assert (daemon.outputs / "second/two").read_bytes() == two
        remote.relay.received = 0
        assert (daemon.outputs / "second/large").read_bytes() == large
        read_tree(daemon.outputs / "second/tree")
        # What its own instance has lost is looked for in the other one, and that is told.
        (lost,) = remote.cas("two/b").put_all([b"lost by one"])
        first.stage({"lost": lost})
        daemon.expects(f"{lost.hash}.*it was found in another one")
        assert (daemon.outputs / "first/lost").read_bytes() == b"lost by one"

        # What a start asks, it asks of the instance, too.
        for build in (first, second):
            build.finish()
        daemon.expects("output base first: 1 files and the contents of 0 directories were removed")
        for build in (first, second):
            build.start()
        assert not (daemon.outputs / "first/unread").exists()
        assert (daemon.outputs / "second/unread").read_bytes() == b"not read"


@pytest.mark.parametrize("name", ["SHA512", "SHA1"])
def test_another_digest_function(name: str) -> None:
    function = DigestFunction[name]
    tree = Rev2Tree({"a": b"a" * 300_000, "b": {"c": b"c"}}, function)
    with (
        tempfile.TemporaryDirectory(prefix="outputd-test-") as place,
        upstream(buildbox_casd, Path(place), f"--digest-function={name}") as remote,
        daemon_fixture.running("--remote", remote.relay.url) as daemon,
        daemon_fixture.connected(daemon) as channel,
    ):
        cas = remote.cas(function=function)
        upload(cas, tree, directories=False)
        build = BuildClient(channel, daemon.outputs, function=function)
        build.start()
        large = os.urandom(3 << 20)
        build.stage(
            {
                "small": cas.put(b"small"),
                "large": cas.put(large),
                "tree": rev2.TreeArtifactLocator(tree_digest=tree.digest),
            }
        )
        top = daemon.outputs / build.base
        assert (top / "small").read_bytes() == b"small"
        assert (top / "large").read_bytes() == large
        assert (top / "tree/a").read_bytes() == b"a" * 300_000
        (top / "local").write_bytes(b"local")
        assert build.digests("large", "tree/b/c", "local") == [
            digest_of(data, function) for data in (large, b"c", b"local")
        ]
        build.finish()


def test_a_server_without_the_digest_function_of_a_build(daemon: Daemon, channel: grpc.Channel) -> None:
    blake3 = DigestFunction.BLAKE3
    build = BuildClient(channel, daemon.outputs, "blake3", function=blake3)
    build.start()
    build.stage({"file": digest_of(b"x", blake3)})
    daemon.expects("READ of /outputs/blake3/file .* does not offer digest function BLAKE3, only .*SHA256")
    with pytest.raises(OSError) as raised:
        (daemon.outputs / "blake3/file").read_bytes()
    assert raised.value.errno == errno.EOPNOTSUPP
    # What is made here needs no server.
    (daemon.outputs / "blake3/local").write_bytes(b"local")
    assert build.digests("local") == [digest_of(b"local", blake3)]
    build.finish()
    with pytest.raises(grpc.RpcError) as refused:
        build.start()
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "BLAKE3" in str(refused.value.details())
