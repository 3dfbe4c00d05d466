"""`outputd restart`: the program is run anew, and nobody who uses the mount notices more than a pause."""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.remote_thread import RemoteThread
from tests.service_client import BuildClient, Cas
from tests.unit.store.fake_remote import Fault

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)


def outputd(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Another command, with the settings of `daemon`."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "outputd.cli.main", *arguments),
            *("--mount", str(daemon.mount), "--listen", daemon.target),
            *("--state-dir", str(daemon.state), "--cache-dir", str(daemon.cache)),
        ],
        env=daemon.environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def restart(daemon: Daemon) -> None:
    pid = daemon.pid
    done = outputd(daemon, "restart", "--json")
    assert done.returncode == 0, f"{done.stderr}\n{daemon.words()}"
    assert json.loads(done.stdout)["pid"] == pid


@contextlib.contextmanager
def building(*options: str) -> Iterator[tuple[Daemon, BuildClient, Cas, Path]]:
    """A daemon with a running build."""
    with daemon_fixture.running(*options) as daemon, daemon_fixture.connected(daemon) as channel:
        build = BuildClient(channel, daemon.outputs)
        build.start()
        yield daemon, build, Cas(channel), daemon.outputs / build.base


@pytest.mark.parametrize("passthrough", ["true", "false"])
def test_what_is_open_goes_on_twice(passthrough: str) -> None:
    with (
        daemon_fixture.running(settings={"mount.passthrough": passthrough}) as daemon,
        daemon_fixture.connected(daemon) as channel,
        contextlib.ExitStack() as opened,
    ):
        build, cas, top = BuildClient(channel, daemon.outputs), Cas(channel), daemon.outputs / "base"
        build.start()
        big = os.urandom(1 << 20)
        build.stage({"small": cas.put(b"0123456789"), "big": cas.put(big), "also big": cas.put(big[1:])})

        small = opened.enter_context(open(top / "small", "rb", buffering=0))
        large = opened.enter_context(open(top / "big", "rb", buffering=0))
        mapped = mmap.mmap(large.fileno(), 0, prot=mmap.PROT_READ)
        written = opened.enter_context(open(top / "written", "w+b", buffering=0))
        written.write(b"zero ")
        written.truncate(1 << 20)
        shared = mmap.mmap(written.fileno(), 1 << 20)
        unlinked = opened.enter_context(open(top / "unlinked", "w+b", buffering=0))
        unlinked.write(b"without a name")
        os.unlink(top / "unlinked")
        staged_unlinked = opened.enter_context(open(top / "also big", "rb", buffering=0))
        os.unlink(top / "also big")
        nameless = os.open(top, os.O_TMPFILE | os.O_RDWR)
        opened.callback(os.close, nameless)
        os.write(nameless, b"never had a name")
        os.link(top / "written", top / "second name")
        inodes = [os.fstat(file.fileno()).st_ino for file in (small, large, written, unlinked)]

        for number in range(1, 3):
            restart(daemon)
            assert [os.fstat(file.fileno()).st_ino for file in (small, large, written, unlinked)] == inodes
            assert os.stat(top / "small").st_ino == inodes[0]
            assert small.read(1) == str(number - 1).encode()
            assert os.pread(large.fileno(), 100, 5000 * number) == big[5000 * number :][:100]
            assert mapped[-number * 70000 :][:5] == big[-number * 70000 :][:5]
            written.write(b"%d " % number)
            shared[1000 * number] = number
            shared.flush()
            assert os.fstat(unlinked.fileno()).st_nlink == 0
            unlinked.write(b", %d" % number)
            assert os.pread(staged_unlinked.fileno(), 10, 0) == big[1:11]
            os.write(nameless, b", %d" % number)
            assert (top / "second name").stat().st_nlink == 2

        assert unlinked.seek(0) == 0
        assert unlinked.read() == b"without a name, 1, 2"
        descriptors = os.open("/proc/self/fd", os.O_RDONLY)
        opened.callback(os.close, descriptors)
        os.link(str(nameless), top / "named", src_dir_fd=descriptors, follow_symlinks=True)
        assert (top / "named").read_bytes() == b"never had a name, 1, 2"
        shared.close()
        written.close()
        content = (top / "written").read_bytes()
        assert (content[:9], content[1000], content[2000]) == (b"zero 1 2 ", 1, 2)
        mapped.close()
        opened.close()

        # All of it is as if nothing had happened: it becomes blobs, and the private files go.
        assert build.digests("written", "named") == cas.put_all([content, b"never had a name, 1, 2"])
        build.finish()
        deadline = time.monotonic() + 30
        while private := daemon.private_files():
            assert time.monotonic() < deadline, private
            time.sleep(0.05)


def test_programs_and_shells_go_on() -> None:
    with building() as (daemon, build, cas, top):
        program = Path(shutil.which("bash") or "/bin/bash").read_bytes()
        build.stage({"bin/bash": cas.put(program), "deep/er/file": cas.put(b"content")})
        os.mkdir(top / "removed")
        with contextlib.ExitStack() as running:

            def start(*command: str, cwd: Path) -> subprocess.Popen[str]:
                return running.enter_context(
                    subprocess.Popen(
                        command,
                        cwd=cwd,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        text=True,
                    )
                )

            from_the_tree = start(str(top / "bin" / "bash"), cwd=Path("/"))
            inside = start("bash", cwd=top / "deep" / "er")
            in_removed = start("bash", cwd=top / "removed")
            for shell in (from_the_tree, inside, in_removed):
                assert shell.stdin is not None and shell.stdout is not None
                shell.stdin.write("echo up\n")
                shell.stdin.flush()
                assert shell.stdout.readline() == "up\n"
            os.rmdir(top / "removed")
            for _ in range(2):
                restart(daemon)
            said, _ = from_the_tree.communicate(f"help | wc -c; {top}/bin/bash -c 'echo again'\n", timeout=60)
            assert int(said.split()[0]) > 1000 and said.endswith("again\n")
            said, _ = inside.communicate(
                "/bin/pwd; cat file; echo; echo x > new; ls; cd ..; /bin/pwd\n", timeout=60
            )
            assert said == f"{top}/deep/er\ncontent\nfile\nnew\n{top}/deep\n"
            said, _ = in_removed.communicate("stat -c %h .; ls; touch x || echo no\n", timeout=60)
            assert said.startswith("0\n") and said.endswith("no\n")


def test_locks_go_on() -> None:
    with (
        building() as (daemon, _, _, top),
        open(top / "file", "wb") as file,
        open(top / "file", "wb") as other,
    ):
        fcntl.flock(file, fcntl.LOCK_EX)
        with open(top / "posix", "wb") as posix:
            fcntl.lockf(posix, fcntl.LOCK_EX)
            for _ in range(2):
                restart(daemon)
                with pytest.raises(BlockingIOError):
                    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                elsewhere = (
                    "import fcntl,sys; fcntl.lockf(open(sys.argv[1],'r+b'), fcntl.LOCK_EX|fcntl.LOCK_NB)"
                )
                tried = subprocess.run(
                    [sys.executable, "-c", elsewhere, top / "posix"], capture_output=True, check=False
                )
                assert b"BlockingIOError" in tried.stderr
        fcntl.flock(file, fcntl.LOCK_UN)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_listing_goes_on() -> None:
    """Each name once, with a directory too large for one reply, of which some names go meanwhile; also from the kernel's cache."""
    names = {f"name-{number:05}" for number in range(3000)}
    with building() as (daemon, build, cas, top):
        digest = cas.put(b"x")
        build.stage({f"d/{name}": digest for name in names})
        for round_number in range(2):
            with os.scandir(top / "d") as entries:
                seen = [next(entries).name for _ in range(500)]
                restart(daemon)
                seen += [next(entries).name for _ in range(1000)]
                gone = sorted(names - set(seen))[:10]
                for name in gone:
                    os.unlink(top / "d" / name)
                restart(daemon)
                seen += [entry.name for entry in entries]
            assert len(seen) == len(set(seen))
            assert names - set(gone) <= set(seen) <= names, round_number
            names -= set(gone)
        assert set(os.listdir(top / "d")) == names


def test_what_the_kernel_remembers_stays_true() -> None:
    with building() as (daemon, build, cas, top):
        one, two = cas.put_all([b"one", b"two"])
        build.stage({f"d{number}/f{i}": one for number in range(20) for i in range(100)})
        for path in top.rglob("*"):
            path.stat()
        for number in range(20):
            assert not (top / f"d{number}" / "absent").exists()
        restart(daemon)
        build.stage({f"d{number}/absent": two for number in range(0, 20, 2)} | {"d3/f3": two, "d4": two})
        for number in range(0, 20, 2):
            if number != 4:
                assert (top / f"d{number}" / "absent").read_bytes() == b"two"
        assert not (top / "d1" / "absent").exists()
        assert (top / "d3" / "f3").read_bytes() == b"two"
        assert (top / "d4").read_bytes() == b"two"
        assert (top / "d5" / "f99").read_bytes() == b"one"
        restart(daemon)
        build.clean()
        assert os.listdir(daemon.outputs) == []


def test_who_waits_for_bytes_gets_them_from_the_next() -> None:
    with (
        daemon_fixture.directories() as daemon,
        RemoteThread(daemon.place / "remote") as remote,
        ThreadPoolExecutor(3) as readers,
    ):
        daemon.options = ["--remote", remote.url]
        daemon.start()
        with daemon_fixture.connected(daemon) as channel:
            build, top = BuildClient(channel, daemon.outputs), daemon.outputs / "base"
            build.start()
            build.stage({"late": remote.add(b"late content"), "killed": remote.add(b"never read")})
            late_writer = remote.add(b"to be changed")
            build.stage({"changed": late_writer})
            remote.fail("BatchReadBlobs", *[Fault(hang=True)] * 100)
            remote.fail("Read", *[Fault(hang=True)] * 100)

            def change() -> None:
                with open(top / "changed", "r+b") as file:
                    file.write(b"TO")

            reader = readers.submit((top / "late").read_bytes)
            writer = readers.submit(change)
            killed = subprocess.Popen(["cat", top / "killed"], stdout=subprocess.PIPE)
            remote.called("BatchReadBlobs")
            time.sleep(0.5)
            restart(daemon)
            assert not reader.done() and not writer.done()
            assert killed.poll() is None
            killed.kill()  # a request that went over can be interrupted
            assert killed.wait(5) == -signal.SIGKILL
            assert killed.stdout is not None
            killed.stdout.close()
            restart(daemon)
            assert not reader.done()
            remote.heal()
            restart(daemon)
            assert reader.result(20) == b"late content"
            writer.result(20)
            assert (top / "changed").read_bytes() == b"TO be changed"


@pytest.mark.skipif(
    not shutil.which("gcc") or not shutil.which("fio"), reason="gcc and fio are not installed"
)
def test_under_load() -> None:
    """A compiler, fio's own verification, and a loop of small files: not one error, whatever is under way at four restarts."""
    with building() as (daemon, _, _, top):
        stop = threading.Event()

        def compile_again_and_again() -> int:
            count = 0
            source = top / "c"
            source.mkdir()
            (source / "a.h").write_text("int f(int);\n")
            (source / "f.c").write_text('#include "a.h"\nint f(int x) { return x * 2; }\n')
            (source / "main.c").write_text('#include "a.h"\nint main(void) { return f(21) != 42; }\n')
            while not stop.is_set():
                script = "gcc -O1 -c f.c main.c && gcc -o prog f.o main.o && ./prog && rm f.o prog"
                subprocess.run(["sh", "-ec", script], cwd=source, check=True, timeout=60)
                count += 1
            return count

        def small_files() -> int:
            count = 0
            while not stop.is_set():
                place = top / f"small{count}"
                place.mkdir()
                for number in range(30):
                    (place / f"{number}").write_bytes(b"%d" % number * 100)
                for number in range(30):
                    assert (place / f"{number}").read_bytes() == b"%d" % number * 100
                    os.rename(place / f"{number}", place / f"r{number}")
                assert len(os.listdir(place)) == 30
                shutil.rmtree(place)
                count += 1
            return count

        fio = subprocess.Popen(
            [
                *(
                    "fio",
                    "--name=v",
                    f"--directory={top}",
                    "--rw=randrw",
                    "--bs=8k",
                    "--size=8m",
                    "--numjobs=2",
                ),
                *("--verify=crc32c", "--verify_fatal=1", "--time_based", "--runtime=14", "--ioengine=psync"),
                "--rate=4m",
                "--verify_state_save=0",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with ThreadPoolExecutor(2) as workers:
            compiler, files = workers.submit(compile_again_and_again), workers.submit(small_files)
            try:
                for _ in range(4):
                    time.sleep(1)
                    restart(daemon)
            finally:
                stop.set()
            assert compiler.result(60) > 0
            assert files.result(60) > 0
        said, _ = fio.communicate(timeout=60)
        assert fio.returncode == 0, said


def test_settings_are_read_anew_by_restart_and_sighup() -> None:
    with building() as (daemon, _, _, top):
        settings = daemon.place / "outputd" / "config.toml"
        settings.parent.mkdir()
        with open(top / "open", "wb") as file:
            settings.write_text('[log]\nformat = "json"\n')
            restart(daemon)
            daemon.logged(r'^\{"time".*listening on')
            settings.write_text("")
            before = json.loads(outputd(daemon, "status", "--json").stdout)["restarts"]
            daemon.send(signal.SIGHUP)
            deadline = time.monotonic() + 30
            while (status := outputd(daemon, "status", "--json")).returncode or json.loads(status.stdout)[
                "restarts"
            ] == before:
                assert time.monotonic() < deadline
            assert file.write(b"x") == 1


def test_a_program_that_would_not_start_is_not_let_in() -> None:
    with building() as (daemon, build, cas, top):
        settings = daemon.place / "outputd" / "config.toml"
        settings.parent.mkdir()
        with open(top / "open", "wb", buffering=0) as file:
            settings.write_text("[nonsense]\n")
            refused = outputd(daemon, "restart")
            assert refused.returncode == 3  # the command itself reads them too
            daemon.expects("no restart: the new program does not start .exit code 3.: .*nonsense")
            daemon.send(signal.SIGHUP)
            daemon.logged("no restart: ")
            settings.unlink()
            file.write(b"on")
        # The build has not even noticed.
        build.stage({"staged": cas.put(b"x")})
        told = json.loads(outputd(daemon, "status", "--json").stdout)
        assert (told["restarts"], "nonsense" in told["restart_error"]) == (0, True)
        assert (top / "open").read_bytes() == b"on"


def test_a_start_that_fails_late_leaves_no_mount_that_hangs() -> None:
    with daemon_fixture.directories() as daemon:
        shelf = daemon.place / "shelf"
        shelf.mkdir()
        daemon.socket = shelf / "socket"
        daemon.start()
        with daemon_fixture.connected(daemon) as channel:
            build = BuildClient(channel, daemon.outputs)
            build.start()
            (daemon.outputs / "base" / "kept").write_bytes(b"kept")
        with open(daemon.outputs / "base" / "kept", "rb") as file:
            daemon.socket.unlink()
            shelf.rmdir()
            daemon.expects("cannot listen on", "was in use; unmounted all the same")
            daemon.send(signal.SIGHUP)
            assert daemon.wait() == 1
            assert not os.path.ismount(daemon.mount)
            with pytest.raises(OSError):
                file.read()
        shelf.mkdir()
        daemon.start()
        assert (daemon.outputs / "base" / "kept").read_bytes() == b"kept"


def test_a_signal_to_stop_during_a_restart() -> None:
    with building() as (daemon, _, _, top):
        (top / "file").write_bytes(b"x")
        daemon.send(signal.SIGHUP)
        daemon.logged("running the program anew")
        daemon.send(signal.SIGTERM)
        assert daemon.wait() == 0
        assert not os.path.ismount(daemon.mount)
        daemon.start()
        assert (top / "file").read_bytes() == b"x"


def test_a_restart_without_a_daemon() -> None:
    with daemon_fixture.directories() as daemon:
        assert outputd(daemon, "restart").returncode == 4


def test_fifos_and_sockets_go_on() -> None:
    with building() as (daemon, _, _, top):
        os.mkfifo(top / "fifo")
        reader = os.open(top / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        writer = os.open(top / "fifo", os.O_WRONLY)
        restart(daemon)
        os.write(writer, b"through")
        assert os.read(reader, 10) == b"through"
        assert stat.S_ISFIFO(os.stat(top / "fifo").st_mode)
        os.close(reader)
        os.close(writer)
