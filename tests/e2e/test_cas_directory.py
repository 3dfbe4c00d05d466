"""`cas` in the mount: blobs, directories, Trees and Commands by their digests. Real daemon, real mount, a small REv2 server."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from outputd._proto import remote_execution_pb2 as reapi
from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.e2e.test_restart import restart
from tests.remote_thread import RemoteThread
from tests.rev2_tree import Entry, Program, Rev2Tree
from tests.service_client import BuildClient, digest_of

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

LARGE: Final = os.urandom(300_000)
INPUTS: Final[Mapping[str, Entry]] = {
    "bin": {"tool": Program(b'#!/bin/sh\necho "$1" "$WORD" > "$2"\n'), "link": "tool"},
    "large": LARGE,
}


class World:
    def __init__(self, daemon: Daemon, remote: RemoteThread, build: BuildClient) -> None:
        self.daemon = daemon
        self.remote = remote
        self.build = build

    def at(self, kind: str, digest: reapi.Digest, instance: str = "") -> Path:
        """Where a blob is."""
        return self.daemon.mount / "cas" / instance / f"blobs/sha256/{kind}/{digest.hash}-{digest.size_bytes}"

    def add(self, tree: Rev2Tree) -> None:
        for data in [*tree.files, *tree.directories, tree.message]:
            self.remote.add(data)


@contextlib.contextmanager
def world(**settings: str) -> Iterator[World]:
    with daemon_fixture.directories() as daemon, RemoteThread(daemon.place / "remote") as remote:
        daemon.options += ["--remote", remote.url]
        daemon.settings.update(settings)
        daemon.start()
        with daemon_fixture.connected(daemon) as channel:
            yield World(daemon, remote, BuildClient(channel, daemon.outputs))


def test_a_blob_is_a_file_that_cannot_be_changed() -> None:
    with world() as w:
        digest = w.remote.add(LARGE)
        for kind, mode in (("file", 0o444), ("executable", 0o555)):
            path = w.at(kind, digest)
            status = path.stat()
            assert (status.st_mode & 0o7777, status.st_size, status.st_mtime) == (mode, 300_000, 946684800)
            w.remote.forget_calls()
            assert path.read_bytes() == LARGE
            for change in (
                lambda path=path: path.write_bytes(b"other"),
                lambda path=path: os.truncate(path, 0),
                lambda path=path: path.chmod(0o600),
                lambda path=path: os.utime(path),
                lambda path=path: path.unlink(),
                lambda path=path: path.rename(path.with_name("x")),
                lambda path=path: path.with_name("new").write_bytes(b""),
                lambda path=path: path.with_name("new").mkdir(),
            ):
                with pytest.raises(OSError) as refused:
                    change()
                assert refused.value.errno == errno.EROFS
            assert path.read_bytes() == LARGE


def test_names_and_listings() -> None:
    with world() as w:
        digest = w.remote.add(b"a blob")
        top = w.daemon.mount
        assert sorted(os.listdir(top)) == ["CACHEDIR.TAG", "cas", "outputs", "scratch"]
        assert os.listdir(top / "cas") == []
        assert {"sha256", "blake3"} <= set(os.listdir(top / "cas/blobs"))
        kinds = {"file", "executable", "directory", "tree", "command"}
        assert set(os.listdir(top / "cas/blobs/sha256")) == kinds
        assert w.at("file", digest).read_bytes() == b"a blob"
        assert os.listdir(top / "cas/blobs/sha256/file") == []
        assert w.at("file", digest, "some/instance/name").read_bytes() == b"a blob"
        requests = [one for one in w.remote.fake.requests if isinstance(one, reapi.BatchReadBlobsRequest)]
        assert len(requests) == 1, "one local store for all"
        hash_ = digest.hash
        for name in (
            hash_,
            f"{hash_}-",
            f"{hash_}-06",
            f"{hash_}-+6",
            f"{hash_.upper()}-6",
            f"{hash_[1:]}-6",
            "a-1",
        ):
            assert not (top / "cas/blobs/sha256/file" / name).exists()
        for name in ("uploads", "compressed-blobs", "blobs/sha257", "blobs/sha256/blob"):
            assert not (top / "cas" / name).exists()
        w.daemon.expects("READ of /cas/blobs/sha256/file/.* failed")
        absent = w.at("file", digest_of(b"nobody has it"))
        assert absent.stat().st_size == 13, "a name is believed"
        with pytest.raises(OSError):
            absent.read_bytes()


@pytest.mark.parametrize("kind", ["directory", "tree"])
def test_a_directory_is_loaded_as_far_as_it_is_looked_into(kind: str) -> None:
    with world() as w:
        tree = Rev2Tree(INPUTS)
        w.add(tree)
        top = w.at(kind, tree.root_digest if kind == "directory" else tree.digest)
        assert top.is_dir()
        assert w.remote.fake.calls == [], "nothing is loaded yet"
        assert sorted(os.listdir(top)) == ["bin", "large"]
        assert os.readlink(top / "bin/link") == "tool"
        assert os.access(top / "bin/tool", os.X_OK)
        assert (top / "large").read_bytes() == LARGE
        with pytest.raises(OSError) as refused:
            (top / "bin/tool").write_bytes(b"")
        assert refused.value.errno == errno.EROFS
        with pytest.raises(OSError) as refused:
            (top / "new").mkdir()
        assert refused.value.errno == errno.EROFS


def test_nodes_go_when_the_kernel_forgets_them() -> None:
    """Told by their inode numbers: what is found anew has another one."""
    with world() as w:
        tree = Rev2Tree(INPUTS)
        w.add(tree)
        for path in (w.at("file", w.remote.add(LARGE)), w.at("directory", tree.root_digest) / "bin"):
            before = path.stat().st_ino
            assert path.stat().st_ino == before
            for _ in range(20):  # a directory's own entry goes once those in it have gone
                Path("/proc/sys/vm/drop_caches").write_text("2")
                if path.stat().st_ino != before:
                    break
            else:
                pytest.fail(f"{path} stays known")
        with w.at("file", w.remote.add(LARGE)).open("rb") as held:
            Path("/proc/sys/vm/drop_caches").write_text("2")
            assert held.read() == LARGE


def test_a_link_into_an_output_path_is_the_same_blob() -> None:
    with world() as w:
        w.build.start()
        top = w.daemon.outputs / w.build.base
        source = w.at("executable", w.remote.add(LARGE))
        os.link(source, top / "linked")
        assert [found.hash for found in w.build.digests("linked") if found] == [digest_of(LARGE).hash]
        assert w.remote.fake.calls.count("Read") == 0, "no byte was needed"
        status = (top / "linked").stat()
        assert (status.st_mode & 0o7777, status.st_nlink) == (0o555, 1)
        (top / "linked").chmod(0o755)
        (top / "linked").write_bytes(b"mine")
        assert source.read_bytes() == LARGE
        with pytest.raises(OSError) as refused:
            os.link(w.at("executable", digest_of(LARGE), "other"), top / "elsewhere")
        assert refused.value.errno == errno.EXDEV
        w.build.finish()


def test_a_command_is_a_script(tmp_path: Path) -> None:
    with world() as w:
        tree = Rev2Tree(INPUTS)
        w.add(tree)
        command = reapi.Command(
            arguments=["../bin/tool", "it's $HOME", "out/dir/result"],
            working_directory="work",
            output_paths=["out/dir/result"],
        )
        command.environment_variables.add(name="WORD", value='a "word"')
        command.environment_variables.add(name="odd.name", value="x")
        script = w.at("command", w.remote.add(command.SerializeToString()))
        assert script.stat().st_mode & 0o7777 == 0o555
        subprocess.run(
            ["cp", "-r", f"{w.at('directory', tree.root_digest)}/.", tmp_path], check=True, timeout=60
        )
        subprocess.run([script], cwd=tmp_path, check=True, timeout=60)
        assert (tmp_path / "work/out/dir/result").read_text() == 'it\'s $HOME a "word"\n'
        w.daemon.expects("LOOKUP of /cas/blobs/sha256/command for process .* failed")
        for data in (b"no message", b""):
            with pytest.raises(OSError) as refused:
                w.at("command", w.remote.add(data)).stat()
            assert refused.value.errno == errno.EIO


def test_who_works_in_it_notices_nothing_of_a_restart() -> None:
    with world() as w:
        tree = Rev2Tree(INPUTS)
        w.add(tree)
        small, large = w.at("file", w.remote.add(b"small")), w.at("executable", w.remote.add(LARGE))
        top = w.at("directory", tree.root_digest, "some/instance")
        paths = [small, large, top, top / "bin", top / "bin/tool", small.parent, top.parents[3]]
        before = [os.open(path, os.O_RDONLY) for path in paths]
        numbers = [os.fstat(fd).st_ino for fd in before]
        restart(w.daemon)
        try:
            assert [os.fstat(fd).st_ino for fd in before] == numbers
            assert [path.stat().st_ino for path in paths] == numbers
            assert os.pread(before[0], 10, 0) == b"small"
            assert os.pread(before[1], len(LARGE), 0) == LARGE
            assert sorted(os.listdir(before[2])) == ["bin", "large"]
            assert os.stat("tool", dir_fd=before[3]).st_ino == numbers[4]
            fresh = w.at("file", w.remote.add(b"fresh")).stat().st_ino
            assert fresh not in numbers
        finally:
            for fd in before:
                os.close(fd)
