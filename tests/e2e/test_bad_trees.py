"""Trees that lie: staged by the digest of what cannot be a directory. Who looks gets EIO and the log says why; nobody else notices.

Their bytes match their digests, so no store can know; it is what they say that is wrong.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc
import pytest

from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from outputd._proto import remote_execution_pb2 as reapi
from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.rev2_tree import Rev2Tree
from tests.service_client import BuildClient, Cas, digest_of

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

X: Final = digest_of(b"x")
GOOD: Final = Rev2Tree({"file": b"x", "below": {"file": b"x"}})


def directory(*names: str, digest: reapi.Digest = X) -> reapi.Directory:
    """With files of these names."""
    return reapi.Directory(files=[reapi.FileNode(name=name, digest=digest) for name in names])


def tree(root: reapi.Directory, *children: reapi.Directory) -> bytes:
    return reapi.Tree(root=root, children=children).SerializeToString()


def parent(child: reapi.Digest, name: str = "child") -> reapi.Directory:
    return reapi.Directory(directories=[reapi.DirectoryNode(name=name, digest=child)])


UPPER: Final = reapi.Digest(hash=X.hash.upper(), size_bytes=1)
LIES: Final[dict[str, tuple[bytes, str]]] = {
    # What is staged as a Tree, and what the log is to say of it beside its digest.
    "text": (b"this is no message", "it is no REv2 Tree message"),
    "cut off": (GOOD.message[:-3], "broken at byte"),
    "no root": (reapi.Tree(children=[directory("a")]).SerializeToString(), "has no root Directory"),
    "two roots": (tree(directory("a")) + tree(directory("b")), "has two roots"),
    "a root that is none": (b"\x0a\x02\xff\xff", "Directory"),
    "dot": (tree(directory(".")), "cannot be the name of an entry"),
    "dot dot": (tree(directory("..")), "cannot be the name of an entry"),
    "slash": (tree(directory("../../etc/passwd")), "cannot be the name of an entry"),
    "empty name": (tree(directory("")), "cannot be the name of an entry"),
    "nul": (tree(directory("a\0b")), "cannot be the name of an entry"),
    "long name": (tree(directory("n" * 256)), "cannot be the name of an entry"),
    "name twice": (tree(directory("a", "a")), "the name b'a' stands in it twice"),
    "name of two kinds": (
        tree(reapi.Directory(files=directory("a").files, directories=parent(X, "a").directories)),
        "the name b'a' stands in it twice",
    ),
    "digest of a file": (tree(directory("a", digest=UPPER)), "lowercase hex"),
    "digest of a directory": (tree(parent(reapi.Digest(hash="abc", size_bytes=1))), "lowercase hex"),
    "no digest": (tree(directory("a", digest=reapi.Digest())), "lowercase hex"),
    "negative size": (
        tree(directory("a", digest=reapi.Digest(hash=X.hash, size_bytes=-1))),
        "a size of 0 or more",
    ),
    "link to nothing": (
        tree(reapi.Directory(symlinks=[reapi.SymlinkNode(name="l", target="")])),
        "has the target b''",
    ),
}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with daemon_fixture.running(settings={"outputs.max_tree_bytes": "1 MiB"}) as running:
        yield running


@pytest.fixture(scope="module")
def channel(daemon: Daemon) -> Iterator[grpc.Channel]:
    with daemon_fixture.connected(daemon) as connected:
        yield connected


@pytest.fixture
def cas(channel: grpc.Channel) -> Cas:
    cas = Cas(channel)
    cas.put_all([b"x", GOOD.message])
    return cas


@pytest.fixture
def build(daemon: Daemon, channel: grpc.Channel, request: pytest.FixtureRequest) -> Iterator[BuildClient]:
    client = BuildClient(channel, daemon.outputs, request.node.name)
    client.start()
    yield client
    client.clean()


@pytest.fixture
def top(daemon: Daemon, build: BuildClient) -> Path:
    return daemon.outputs / build.base


def of_tree(digest: reapi.Digest) -> rev2.TreeArtifactLocator:
    return rev2.TreeArtifactLocator(tree_digest=digest)


def of_root(digest: reapi.Digest) -> rev2.TreeArtifactLocator:
    return rev2.TreeArtifactLocator(root_directory_digest=digest)


def list_error(path: Path) -> int | None:
    with pytest.raises(OSError) as raised:
        os.listdir(path)
    return raised.value.errno


def check_good(top: Path) -> None:
    """The tree beside it."""
    assert (top / "good/below/file").read_bytes() == b"x"
    assert sorted(os.listdir(top / "good")) == ["below", "file"]


@pytest.mark.parametrize("lie", LIES)
def test_what_cannot_be_a_tree(daemon: Daemon, build: BuildClient, top: Path, cas: Cas, lie: str) -> None:
    message, reason = LIES[lie]
    digest = cas.put(message)
    build.stage({"out/lie": of_tree(digest), "good": of_tree(GOOD.digest)})
    where = re.escape(f"of /outputs/{build.base}/out/lie for process ")
    daemon.expects(rf"{where}\d+ failed with EIO.*: (Tree|Directory) \S+: .*{re.escape(reason)}")
    assert list_error(top / "out/lie") == errno.EIO
    with pytest.raises(OSError) as raised:
        (top / "out/lie/a").read_bytes()
    assert raised.value.errno == errno.EIO
    check_good(top)
    assert os.listdir(top / "out") == ["lie"]

    # Whoever runs the action instead must not trip over it.
    (top / "out/lie").rename(top / "out/moved")
    build.stage({"out/moved": of_tree(GOOD.digest)})
    assert (top / "out/moved/file").read_bytes() == b"x"


def test_children_that_are_not_there(daemon: Daemon, build: BuildClient, top: Path, cas: Cas) -> None:
    absent = digest_of(directory("a").SerializeToString())
    wrong_size = reapi.Digest(hash=absent.hash, size_bytes=absent.size_bytes + 1)
    cas.put(directory("a").SerializeToString())
    for name, child in (("absent", digest_of(b"never put")), ("size", wrong_size), ("no message", X)):
        digest = cas.put(tree(parent(child)))
        build.stage({name: of_tree(digest), "good": of_tree(GOOD.digest)})
        assert os.listdir(top / name) == ["child"]
        daemon.expects(
            rf"of /outputs/{build.base}/{name}/child .* failed with (ENODATA|EIO): .*{child.hash}/{child.size_bytes}"
        )
        # "no message" is a blob that is there.
        assert list_error(top / name / "child") == (errno.EIO if child is X else errno.ENODATA)
    check_good(top)


def test_a_root_that_is_another(daemon: Daemon, build: BuildClient, top: Path, cas: Cas) -> None:
    root = digest_of(b"never put")
    locator = rev2.TreeArtifactLocator(tree_digest=GOOD.digest, root_directory_digest=root)
    build.stage({"lie": locator, "good": of_tree(GOOD.digest)})
    daemon.expects(
        rf"of /outputs/{build.base}/lie .* failed with EIO.*: Tree {GOOD.digest.hash}/.*{root.hash}"
    )
    assert list_error(top / "lie") == errno.EIO
    check_good(top)


def test_what_is_no_directory(daemon: Daemon, build: BuildClient, top: Path, cas: Cas) -> None:
    build.stage({"lie": of_root(X), "good": of_tree(GOOD.digest)})
    daemon.expects(rf"of /outputs/{build.base}/lie .* failed with EIO.*: Directory {X.hash}/1: ")
    assert list_error(top / "lie") == errno.EIO
    check_good(top)


def test_a_tree_that_is_too_large(build: BuildClient, top: Path, cas: Cas) -> None:
    digest = reapi.Digest(hash="0" * 64, size_bytes=(1 << 20) + 1)
    large = cas.put(tree(directory(*(f"file{number}" for number in range(12_000)))))
    assert large.size_bytes < 1 << 20
    statuses = build.try_stage({"too large": of_tree(digest), "large": of_tree(large)})
    # The local store is the CAS: what it has not is told so first.
    assert [status.code for status in statuses] == [grpc.StatusCode.NOT_FOUND.value[0], 0]
    assert len(os.listdir(top / "large")) == 12_000
    too_large = cas.put(tree(directory(*(f"file{number:060}" for number in range(12_000)))))
    (status,) = build.try_stage({"too large": of_tree(too_large)})
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "outputs.max_tree_bytes" in status.message


def test_a_tree_of_more_files_than_there_are_atoms(build: BuildClient, top: Path, cas: Cas) -> None:
    """A few hundred Directory messages, each twice in the next one. What nobody looks at costs nothing."""
    messages = [directory("file").SerializeToString()]
    for _ in range(300):
        child = digest_of(messages[-1])
        messages.append(
            reapi.Directory(
                directories=[reapi.DirectoryNode(name=n, digest=child) for n in "ab"]
            ).SerializeToString()
        )
    cas.put_all(messages)
    began = time.monotonic()
    build.stage({"bomb": of_root(digest_of(messages[-1]))})
    assert sorted(os.listdir(top / "bomb/a/b/a")) == ["a", "b"]
    assert (top / "bomb" / "/".join("ab" * 150) / "file").read_bytes() == b"x"
    build.finish()
    build.start()
    assert sorted(os.listdir(top / "bomb/b/b")) == ["a", "b"]
    assert [found.stat.WhichOneof("type") for found in build.stat(["bomb/a/a/a", "bomb/a/a/c"])] == [
        "directory",
        None,
    ]
    build.clean()
    assert time.monotonic() - began < 60


def test_a_very_deep_tree(build: BuildClient, top: Path, cas: Cas) -> None:
    """Deeper than any path that a system call takes, and than any recursion."""
    messages = [directory("file").SerializeToString()]
    for _ in range(2500):
        messages.append(parent(digest_of(messages[-1]), "d").SerializeToString())
    message = reapi.Tree(
        root=reapi.Directory.FromString(messages[-1]), children=map(reapi.Directory.FromString, messages[:-1])
    ).SerializeToString()
    build.stage({"deep": of_tree(cas.put(message))})
    assert (top / "deep" / "/".join("d" * 1500)).is_dir()
    (found,) = build.stat(["deep/" + "d/" * 2500 + "file"])
    assert found.stat.WhichOneof("type") == "file"
    build.finish()
    build.start()
    assert (top / "deep" / "/".join("d" * 1500)).is_dir()


def test_what_lies_is_hidden_at_the_next_build(
    daemon: Daemon, build: BuildClient, top: Path, cas: Cas
) -> None:
    """A client that found it there would take it for an output that it need not make."""
    digest = cas.put(tree(directory("..")))
    build.stage({"lie": of_tree(digest), "good": of_tree(GOOD.digest)})
    build.finish()
    daemon.expects(
        "a directory cannot be shown any more: Directory .* cannot be the name of an entry",
        rf"output base {build.base}: 0 files and the contents of 1 directories were removed",
    )
    build.start()
    assert os.listdir(top / "lie") == []
    check_good(top)
