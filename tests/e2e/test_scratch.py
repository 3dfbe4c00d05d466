"""`scratch` in the mount: an action is staged from `cas` by hand, without its bytes, and run; it is still there after a restart
and a SIGKILL. Real daemon, real mount, a small REv2 server.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from outputd._proto import remote_execution_pb2 as reapi
from tests import daemon_fixture
from tests.e2e.test_cas_directory import INPUTS, LARGE, World, world
from tests.rev2_tree import Rev2Tree
from tests.service_client import BuildClient, digest_of

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)


def scratch(w: World) -> Path:
    return w.daemon.mount / "scratch"


def staged(w: World) -> Path:
    """The input root of an action as a tree of links."""
    tree = Rev2Tree(INPUTS)
    w.add(tree)
    top = scratch(w) / "action"
    subprocess.run(["cp", "-al", w.at("directory", tree.root_digest), top], check=True, timeout=60)
    return top


def test_an_action_is_staged_without_its_bytes_and_run() -> None:
    with world() as w:
        top = staged(w)
        assert (top / "large").stat().st_size == len(LARGE)
        assert w.remote.fake.calls.count("Read") == 0
        assert os.readlink(top / "bin/link") == "tool"
        command = reapi.Command(arguments=["bin/tool", "hello", "out/result"], output_paths=["out/result"])
        command.environment_variables.add(name="WORD", value="world")
        script = w.at("command", w.remote.add(command.SerializeToString()))
        subprocess.run([script], cwd=top, check=True, timeout=60)
        assert (top / "out/result").read_text() == "hello world\n"
        assert (top / "large").read_bytes() == LARGE


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_it_is_kept(end: str) -> None:
    with world() as w:
        top = staged(w)
        (top / "note").write_text("mine")
        os.link(top / "note", top / "same")
        inode = (top / "note").stat().st_ino
        if end == "kill":
            w.daemon.kill()
            w.daemon.expects("took off 1 mounts of dead daemons")
            w.daemon.start()
        else:
            w.daemon.restart()
        assert (top / "note").read_text() == "mine"
        assert ((top / "note").stat().st_ino, (top / "same").stat().st_nlink) == (inode, 2)
        assert (top / "large").read_bytes() == LARGE
        assert os.access(top / "bin/tool", os.X_OK)


def test_it_is_no_output_base() -> None:
    with world() as w:
        staged(w)
        status = subprocess.run(
            [sys.executable, "-m", "outputd.cli.main", "status", "--json", "--listen", w.daemon.target],
            env=w.daemon.environment(),
            check=True,
            capture_output=True,
            timeout=60,
        )
        assert json.loads(status.stdout)["output_bases"] == []
        assert os.listdir(w.daemon.outputs) == []
        with daemon_fixture.connected(w.daemon) as channel:
            build = BuildClient(channel, w.daemon.outputs, "/scratch")
            for call in (build.start, build.clean):
                with pytest.raises(grpc.RpcError, match="expected one path component"):
                    call()
        top = scratch(w)
        for change in (top.rmdir, lambda: top.rename(w.daemon.mount / "x")):
            with pytest.raises(OSError) as refused:
                change()
            assert refused.value.errno in (errno.EROFS, errno.EXDEV)
        assert (top / "action/large").exists()


def test_a_link_needs_the_same_instance() -> None:
    with world(**{"remote.instance_name": "main"}) as w:
        w.remote.add(LARGE)
        os.link(w.at("file", digest_of(LARGE), "main"), scratch(w) / "large")
        assert (scratch(w) / "large").read_bytes() == LARGE
        with pytest.raises(OSError) as refused:
            os.link(w.at("file", digest_of(LARGE), "other"), scratch(w) / "other")
        assert refused.value.errno == errno.EXDEV
        with pytest.raises(OSError) as refused:
            os.link(scratch(w) / "large", w.daemon.outputs / "x")
        assert refused.value.errno == errno.EROFS
