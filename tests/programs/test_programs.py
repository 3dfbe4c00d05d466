"""Programs that people run in an output path do there what they do anywhere: compilers, git, tar, databases, rsync, fio."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.posix.mounted import Mounted
from tests.posix.odd import facts, odd_files

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)


@pytest.fixture(scope="module")
def output_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with Mounted(tmp_path_factory.mktemp("mounted"), xattrs=True) as mounted:
        yield mounted.root


@pytest.fixture
def tree(output_path: Path, request: pytest.FixtureRequest) -> Path:
    """A directory in the mount."""
    directory = output_path / str(request.node.name)
    directory.mkdir()
    return directory


def run(*command: str | Path, cwd: Path | None = None, timeout: float = 60) -> str:
    """Standard output of a program that must succeed."""
    environment = os.environ | {
        "LC_ALL": "C",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@localhost",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@localhost",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, (
        f"{command}: {done.returncode}\n{done.stdout.decode()}\n{done.stderr.decode()}"
    )
    return done.stdout.decode(errors="surrogateescape")


def c_project(at: Path) -> None:
    for number in range(4):
        (at / f"part{number}.c").write_text(
            f'#include "parts.h"\nint part{number}(void) {{ return {number} + BASE; }}\n'
        )
    (at / "parts.h").write_text("#define BASE 10\n" + "".join(f"int part{n}(void);\n" for n in range(4)))
    (at / "main.c").write_text(
        '#include <stdio.h>\n#include "parts.h"\nint main(void) { printf("%d\\n", part0() + part1() + part2() + part3()); }\n'
    )
    (at / "Makefile").write_text(
        textwrap.dedent("""\
        CFLAGS = -O1 -g -Wall -Werror -fPIC
        all: program linked
        program: main.o libparts.a
        \tgcc -o $@ $^
        linked: main.o libparts.so
        \tgcc -o $@ main.o -L. -lparts -Wl,-rpath,'$$ORIGIN'
        libparts.a: part0.o part1.o part2.o part3.o
        \tar rcs $@ $^
        libparts.so: part0.o part1.o part2.o part3.o
        \tgcc -shared -o $@ $^
        %.o: %.c parts.h
        \tgcc $(CFLAGS) -c -o $@ $<
        """)
    )


def test_a_c_project_is_built_and_runs(tree: Path) -> None:
    c_project(tree)
    run("make", "-j2", cwd=tree)
    assert run(tree / "program") == run(tree / "linked") == "46\n"
    run("strip", tree / "program")
    assert run(tree / "program") == "46\n"


def test_make_sees_what_is_older(tree: Path) -> None:
    c_project(tree)
    first = run("make", cwd=tree)
    assert first.count("gcc -O1") == 5
    assert "Nothing to be done" in run("make", cwd=tree)
    (tree / "part2.c").write_text('#include "parts.h"\nint part2(void) { return 100; }\n')
    second = run("make", cwd=tree)
    assert second.count("gcc -O1") == 1
    assert "part2.c" in second
    assert run(tree / "program") == "134\n"
    os.utime(tree / "parts.h")
    assert run("make", cwd=tree).count("gcc -O1") == 5
    run("make", "--touch", cwd=tree)
    assert "Nothing to be done" in run("make", cwd=tree)


def test_git_clones_changes_and_packs(tree: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    run("git", "init", "-q", "-b", "main", source)
    for commit in range(5):
        for number in range(40):
            path = source / f"d{number % 7}" / f"f{number}"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{commit * number} lines\n" * (commit + 1))
        (source / "script").write_text("#!/bin/sh\n")
        (source / "script").chmod(0o755)
        run("git", "add", "-A", cwd=source)
        run("git", "commit", "-q", "-m", f"commit {commit}", "--allow-empty", cwd=source)

    clone = tree / "clone"
    run("git", "clone", "-q", "--no-local", source, clone)
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    assert os.access(clone / "script", os.X_OK)
    (clone / "d0" / "f0").write_text("changed\n")
    (clone / "d1" / "f1").unlink()
    (clone / "new").symlink_to("d0/f0")
    (clone / "d2" / "f2").chmod(0o755)
    assert run("git", "status", "--porcelain", cwd=clone).splitlines() == [
        " M d0/f0",
        " D d1/f1",
        " M d2/f2",
        "?? new",
    ]
    run("git", "add", "-A", cwd=clone)
    run("git", "commit", "-q", "-m", "changed", cwd=clone)
    run("git", "checkout", "-q", "HEAD~3", cwd=clone)
    run("git", "checkout", "-q", "main", cwd=clone)
    run("git", "gc", "-q", "--prune=now", cwd=clone)
    run("git", "fsck", "--strict", cwd=clone)
    run("git", "worktree", "add", "-q", tree / "second", "HEAD~2", cwd=clone)
    assert run("git", "status", "--porcelain", cwd=tree / "second") == ""
    run("git", "push", "-q", "origin", "HEAD:refs/heads/back", cwd=clone)
    assert run("git", "diff", "main", "back", "--stat", cwd=source).count("|") == 4


def test_tar_goes_in_and_out(tree: Path, tmp_path: Path) -> None:
    odd_files(tmp_path / "odd")
    os.setxattr(tmp_path / "odd" / "plain", "user.kept", b"value")
    options = ("--format=pax", "--sparse", "--xattrs")
    run("tar", *options, "-C", tmp_path, "-cf", tmp_path / "in.tar", "odd")
    run("tar", *options, "-C", tree, "-xpf", tmp_path / "in.tar")
    assert facts(tree / "odd") == facts(tmp_path / "odd")
    assert os.getxattr(tree / "odd" / "plain", "user.kept") == b"value"

    run("tar", *options, "-C", tree, "-cf", tree / "out.tar", "odd")
    (tmp_path / "back").mkdir()
    run("tar", *options, "-C", tmp_path / "back", "-xpf", tree / "out.tar")
    assert facts(tmp_path / "back" / "odd") == facts(tmp_path / "odd")
    assert os.getxattr(tmp_path / "back" / "odd" / "plain", "user.kept") == b"value"


def test_cp_and_mv_keep_everything(tree: Path, tmp_path: Path) -> None:
    odd_files(tmp_path / "odd")
    wanted = facts(tmp_path / "odd")
    run("cp", "-a", tmp_path / "odd", tree / "copy")
    assert facts(tree / "copy") == wanted
    assert (tree / "copy" / "holes").stat().st_blocks < 100
    run("cp", "-a", tree / "copy", tree / "second")
    assert facts(tree / "second") == wanted
    run("mv", tree / "second", tmp_path / "back")
    assert facts(tmp_path / "back") == wanted
    run("rm", "-rf", tree / "copy")
    assert list(tree.iterdir()) == []


def test_rsync_finds_nothing_left_to_do(tree: Path, tmp_path: Path) -> None:
    odd_files(tmp_path / "odd")
    for source, target in ((tmp_path / "odd", tree / "in"), (tree / "in", tmp_path / "out")):
        run("rsync", "-aHX", f"{source}/", f"{target}/")
        assert run("rsync", "-aHXnci", f"{source}/", f"{target}/") == ""
    assert facts(tmp_path / "out") == facts(tmp_path / "odd")
    (tree / "in" / "plain").write_bytes(b"other bytes")
    (tree / "in" / "hard link").unlink()
    run("rsync", "-aHX", "--delete", "--inplace", f"{tmp_path}/odd/", f"{tree}/in/")
    assert facts(tree / "in") == facts(tmp_path / "odd")


_MAKER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
assert db.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
db.execute("CREATE TABLE t (who, what)")
"""
_WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
for number in range(300):
    db.execute("INSERT INTO t VALUES (?, ?)", (sys.argv[2], number))
    if number % 50 == 0:
        db.execute("PRAGMA wal_checkpoint(PASSIVE)")
"""
_READER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=30)
rows = db.execute("SELECT who, count(*), sum(what) FROM t GROUP BY who ORDER BY who")
print(db.execute("PRAGMA integrity_check").fetchone()[0], *rows)
"""


def test_two_processes_write_one_sqlite_database(tree: Path) -> None:
    database = tree / "data base"
    run(sys.executable, "-c", _MAKER, database)
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, database, name]) for name in ("one", "two")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    total = sum(range(300))
    wanted = f"ok ('one', 300, {total}) ('two', 300, {total})\n"
    assert run(sys.executable, "-c", _READER, database) == wanted
    shutil.copy(database, tree / "copy")
    assert run(sys.executable, "-c", _READER, tree / "copy") == wanted


def test_a_python_virtual_environment_works(tree: Path) -> None:
    run(sys.executable, "-m", "venv", tree / "venv")
    python = tree / "venv" / "bin" / "python"
    assert run(python, "-c", "import sys; print(sys.prefix)") == f"{tree / 'venv'}\n"
    assert f"{tree / 'venv'}" in run(python, "-m", "pip", "--version")
    run(python, "-m", "compileall", "-q", "-f", tree / "venv" / "lib")
    package = tree / "package"
    package.mkdir()
    (package / "here.py").write_text("print('imported')\n")
    assert run(python, "-c", "import here", cwd=package) == "imported\n"
    assert (package / "__pycache__").is_dir()


@pytest.mark.parametrize("engine", ["psync", "mmap", "io_uring"])
def test_fio_reads_what_it_wrote(tree: Path, engine: str) -> None:
    for pattern in ("randwrite", "randrw"):
        run(
            "fio",
            f"--name={pattern}",
            f"--directory={tree}",
            f"--rw={pattern}",
            f"--ioengine={engine}",
            "--size=8m",
            "--bsrange=4k-64k",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--fsync=500",
            "--numjobs=2",
            "--thread",
            "--minimal",
            cwd=tree,
        )  # fmt: skip


def test_a_big_listed_tree_is_removed(tree: Path) -> None:
    """rm(1) reads a directory on from where it was, after it has removed what it read: it must not miss a name."""
    directory = tree / "big"
    directory.mkdir()
    for number in range(5000):
        (directory / f"name {number}").symlink_to("nowhere")
    assert len(os.listdir(directory)) == 5000  # the kernel remembers the listing from here on
    run("rm", "-r", directory)
    assert not directory.exists()
    run("mkdir", "-p", *(tree / "many" / f"d{number}" / "e" for number in range(300)))
    assert run("find", tree / "many", "-type", "d").count("\n") == 601
    run("find", tree / "many", "-delete")
    assert list(tree.iterdir()) == []
