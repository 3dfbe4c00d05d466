"""What the kernel may remember, and what RPCs then change: nobody sees an old name, listing, size or byte. Real mount, real kernel.

The kernel keeps names, also absent ones, attributes, listings and pages for an hour by default, so each test first makes it
remember and then changes the truth behind its back.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from tests import daemon_fixture
from tests.daemon_fixture import Daemon
from tests.rev2_tree import Program, Rev2Tree
from tests.service_client import BuildClient, Cas, digest_of

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

LARGE_BATCH = 300
"""More names than the daemon takes back one by one: it ends the epoch of everything that the kernel knows."""
SMALL_BATCH = 5


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with daemon_fixture.running() as running:
        yield running


@pytest.fixture(scope="module")
def cas(daemon: Daemon) -> Iterator[Cas]:
    with daemon_fixture.connected(daemon) as channel:
        yield Cas(channel)


@pytest.fixture
def build(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[BuildClient]:
    """A build of an output base of the test's own."""
    with daemon_fixture.connected(daemon) as channel:
        client = BuildClient(channel, daemon.outputs, f"base-{request.node.name}"[:200].replace("/", "_"))
        client.start()
        yield client
        client.finish()
        client.clean()


@pytest.fixture
def top(daemon: Daemon, build: BuildClient) -> Path:
    return daemon.outputs / build.base


def test_a_name_that_was_absent(top: Path, build: BuildClient, cas: Cas) -> None:
    digest = cas.put(b"content")
    for path in ("file", "new/file", "new/deeper/file"):
        assert not (top / path).exists()
    (top / "made here").mkdir()
    assert not (top / "made here" / "file").exists()
    assert os.listdir(top / "made here") == []

    build.stage(dict.fromkeys(("file", "new/file", "new/deeper/file", "made here/file"), digest))
    for path in ("file", "new/file", "new/deeper/file", "made here/file"):
        assert (top / path).read_bytes() == b"content"
    assert os.listdir(top / "made here") == ["file"]
    assert sorted(os.listdir(top)) == ["file", "made here", "new"]


@pytest.mark.parametrize("count", [SMALL_BATCH, LARGE_BATCH])
def test_many_names_at_once(top: Path, build: BuildClient, cas: Cas, count: int) -> None:
    one, two = cas.put_all([b"one", b"two!"])
    names = [f"file{number}" for number in range(count)]
    (top / "directory").mkdir()
    assert not any((top / "directory" / name).exists() for name in names)
    assert os.listdir(top / "directory") == []

    for digest, content in ((one, b"one"), (two, b"two!"), (one, b"one")):
        build.stage({f"directory/{name}": digest for name in names})
        assert sorted(os.listdir(top / "directory")) == sorted(names)
        for name in names:
            assert (top / "directory" / name).stat().st_size == len(content)
            assert (top / "directory" / name).read_bytes() == content


def test_a_file_that_is_read_while_it_is_replaced(top: Path, build: BuildClient, cas: Cas) -> None:
    old, new = os.urandom(3 << 20), os.urandom(2 << 20)
    build.stage({"file": cas.put(old)})
    with open(top / "file", "rb") as reader, mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert reader.read(100_000) == old[:100_000]
        before = os.fstat(reader.fileno())
        build.stage({"file": cas.put(new)})
        assert (top / "file").read_bytes() == new
        assert (top / "file").stat().st_size == len(new)
        assert (top / "file").stat().st_ino != before.st_ino
        # Who had it open goes on with what was there, as after rename(2) on any file system.
        assert reader.read() == old[100_000:]
        assert mapped[:] == old
        after = os.fstat(reader.fileno())
        assert (after.st_ino, after.st_size, after.st_nlink) == (before.st_ino, before.st_size, 0)


@pytest.mark.parametrize("how", ["staged", "written in place"])
def test_the_link_count_of_a_file_that_is_open_while_it_is_replaced(
    top: Path, build: BuildClient, cas: Cas, how: str
) -> None:
    old = os.urandom(300_000)
    build.stage({"file": cas.put(old)})
    assert (top / "file").read_bytes() == old
    with open(top / "file", "rb") as reader:
        assert os.fstat(reader.fileno()).st_nlink == 1
        if how == "staged":
            build.stage({"file": cas.put(b"new")})
        else:
            with open(top / "file", "r+b") as writer:
                writer.write(b"new")
        assert os.fstat(reader.fileno()).st_nlink == 0
        assert os.pread(reader.fileno(), len(old), 0) == old
    assert (top / "file").read_bytes()[:3] == b"new"


def test_a_large_file_with_several_names_is_written_while_it_is_read(
    top: Path, build: BuildClient, cas: Cas
) -> None:
    old = os.urandom(300_000)
    build.stage({"file": cas.put(old)})
    for other in ("other", "d/other", "e/other"):
        (top / other).parent.mkdir(exist_ok=True)
        os.link(top / "file", top / other)
    build.finish()
    build.start()
    with open(top / "file", "rb") as reader:
        assert reader.read() == old
        with open(top / "file", "r+b") as writer:
            writer.write(b"CHANGED")
        assert os.pread(reader.fileno(), 7, 0) == old[:7], "as on overlayfs"
    names = ("file", "other", "d/other", "e/other")
    assert {(top / name).read_bytes() for name in names} == {b"CHANGED" + old[7:]}
    assert {(top / name).stat().st_ino for name in names} == {(top / "e/other").stat().st_ino}
    assert (top / "file").stat().st_nlink == 4


def test_a_file_that_is_written_while_it_is_replaced(top: Path, build: BuildClient, cas: Cas) -> None:
    build.stage({"file": cas.put(b"staged first")})
    with open(top / "file", "r+b") as writer:
        writer.write(b"WRITTEN")
        writer.flush()
        build.stage({"file": cas.put(b"staged second")})
        writer.write(b" ON")
        writer.flush()
        assert os.fstat(writer.fileno()).st_nlink == 0
        assert os.pread(writer.fileno(), 100, 0) == b"WRITTEN ONst"
        assert (top / "file").read_bytes() == b"staged second"
    assert (top / "file").read_bytes() == b"staged second"
    (found,) = build.digests("file")
    assert found == cas.put(b"staged second")


def test_the_same_artifact_again_is_the_same_file(top: Path, build: BuildClient, cas: Cas) -> None:
    digest = cas.put(b"the same")
    build.stage({"file": digest})
    os.chmod(top / "file", 0o555)  # as Bazel does
    before = (top / "file").stat()
    build.stage({"file": digest})
    after = (top / "file").stat()
    assert (before.st_ino, before.st_mtime_ns, before.st_mode) == (
        after.st_ino,
        after.st_mtime_ns,
        after.st_mode,
    )


def test_the_times_of_a_directory_move_on(top: Path, build: BuildClient, cas: Cas) -> None:
    build.stage({"directory/a": cas.put(b"a")})
    before = (top / "directory").stat()
    build.stage({"directory/b": cas.put(b"b"), "directory/below/c": cas.put(b"c")})
    after = (top / "directory").stat()
    assert after.st_mtime_ns > before.st_mtime_ns
    assert (before.st_nlink, after.st_nlink) == (2, 3)
    assert before.st_ino == after.st_ino


def test_a_listing_that_goes_on_while_names_come(top: Path, build: BuildClient, cas: Cas) -> None:
    digest = cas.put(b"x")
    build.stage({f"directory/file{number:04}": digest for number in range(500)})
    with os.scandir(top / "directory") as listing:
        seen = [next(listing).name for _ in range(10)]
        build.stage({f"directory/late{number:04}": digest for number in range(500)})
        seen += [entry.name for entry in listing]
    # What was there all along comes once; what came meanwhile may or may not (readdir(3)).
    assert sorted(name for name in seen if name.startswith("file")) == [f"file{n:04}" for n in range(500)]
    assert len(set(seen)) == len(seen)
    assert len(os.listdir(top / "directory")) == 1000


def test_a_directory_becomes_a_file_and_a_directory_again(top: Path, build: BuildClient, cas: Cas) -> None:
    digest = cas.put(b"content")
    build.stage({"place/below/file": digest})
    assert (top / "place/below/file").read_bytes() == b"content"
    inside = os.open(top / "place/below", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(2):
            build.stage({"place": digest})
            assert (top / "place").is_file()
            assert (top / "place").read_bytes() == b"content"
            with pytest.raises(NotADirectoryError):
                (top / "place/below/file").stat()
            # Who stood in the directory stands in an empty one that nobody finds any more.
            assert os.listdir(inside) == []
            assert os.fstat(inside).st_nlink == 0
            with pytest.raises(FileNotFoundError):
                os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=inside)

            build.stage({"place/below/other": digest})
            assert os.listdir(top / "place") == ["below"]
            assert os.listdir(top / "place/below") == ["other"]
            assert not (top / "place/below/file").exists()
    finally:
        os.close(inside)


def test_a_symlink_becomes_a_file(top: Path, build: BuildClient, cas: Cas) -> None:
    (top / "target").write_bytes(b"what the link leads to")
    (top / "link").symlink_to("target")
    assert (top / "link").read_bytes() == b"what the link leads to"
    build.stage({"link": cas.put(b"staged")})
    assert not (top / "link").is_symlink()
    assert (top / "link").read_bytes() == b"staged"
    assert (top / "target").read_bytes() == b"what the link leads to"


def test_a_lazy_directory_replaces_another(top: Path, build: BuildClient, cas: Cas) -> None:
    first = Rev2Tree({"a": b"a1", "both": b"b1", "below": {"c": b"c1"}})
    second = Rev2Tree({"both": Program(b"b2 longer"), "below": "both", "d": b"d2"})
    for tree in (first, second):
        cas.put_all([*tree.files, tree.message])
    for tree in (first, second, first):
        build.stage({"out/tree": rev2.TreeArtifactLocator(tree_digest=tree.digest)})
        if tree is first:
            assert sorted(os.listdir(top / "out/tree")) == ["a", "below", "both"]
            assert (top / "out/tree/both").read_bytes() == b"b1"
            assert (top / "out/tree/below/c").read_bytes() == b"c1"
            assert not os.access(top / "out/tree/d", os.F_OK)
        else:
            assert sorted(os.listdir(top / "out/tree")) == ["below", "both", "d"]
            assert os.readlink(top / "out/tree/below") == "both"
            assert (top / "out/tree/below").read_bytes() == b"b2 longer"
            assert not os.access(top / "out/tree/a", os.F_OK)


def test_a_local_file_is_replaced_and_truncated_in_place(top: Path, build: BuildClient, cas: Cas) -> None:
    (top / "out").write_bytes(b"written by a local action")
    build.stage({"out": cas.put(b"staged")})
    assert (top / "out").read_bytes() == b"staged"
    # The client gives the staging up and runs the action over what was staged.
    with open(top / "out", "wb") as output:
        output.write(b"local again")
    assert (top / "out").read_bytes() == b"local again"
    assert build.digests("out") == [cas.put(b"local again")]


def test_other_names_of_a_replaced_file(top: Path, build: BuildClient, cas: Cas) -> None:
    build.stage({"directory/a": cas.put(b"first")})
    os.link(top / "directory/a", top / "directory/b")
    os.link(top / "directory/a", top / "c")
    before = (top / "c").stat()
    assert (before.st_nlink, (top / "directory/b").stat().st_nlink) == (3, 3)
    build.stage({"directory/a": cas.put(b"second")})
    after = (top / "c").stat()
    assert (after.st_ino, after.st_nlink, (top / "directory/b").stat().st_nlink) == (before.st_ino, 2, 2)
    assert after.st_ctime_ns > before.st_ctime_ns
    assert (top / "directory/b").read_bytes() == (top / "c").read_bytes() == b"first"
    assert (top / "directory/a").stat().st_nlink == 1


def test_a_listing_when_the_time_of_its_directory_is_set_back(
    top: Path, build: BuildClient, cas: Cas
) -> None:
    """As tar and rsync do: the time alone does not tell the kernel whether the listing it keeps is still true."""
    digest = cas.put(b"x")
    build.stage({"directory/a": digest})
    for _ in range(2):
        assert os.listdir(top / "directory") == ["a"]
    time_then = (top / "directory").stat().st_mtime_ns
    build.stage({"directory/b": digest})
    os.utime(top / "directory", ns=(time_then, time_then))
    for _ in range(2):
        assert sorted(os.listdir(top / "directory")) == ["a", "b"]
    assert (top / "directory").stat().st_mtime_ns == time_then


def test_a_directory_that_was_moved_away(top: Path, build: BuildClient, cas: Cas) -> None:
    one, two = cas.put_all([b"one", b"two!"])
    build.stage({"place/below/file": one})
    assert (top / "place/below/file").read_bytes() == b"one"
    (top / "place").rename(top / "moved")
    assert not (top / "place").exists()
    build.stage({"place/below/file": two, "moved/below/another": two})
    assert (top / "place/below/file").read_bytes() == b"two!"
    assert (top / "moved/below/file").read_bytes() == b"one"
    assert sorted(os.listdir(top / "moved/below")) == ["another", "file"]


def test_a_lazy_directory_that_was_changed_is_staged_again(top: Path, build: BuildClient, cas: Cas) -> None:
    tree = Rev2Tree({"a": b"a", "below": {"b": b"b"}})
    cas.put_all([*tree.files, tree.message])
    locator = rev2.TreeArtifactLocator(tree_digest=tree.digest)
    build.stage({"tree": locator})
    (top / "tree/a").write_bytes(b"changed")
    (top / "tree/new").write_bytes(b"new")
    (top / "tree/below/b").unlink()
    assert os.listdir(top / "tree/below") == []
    build.stage({"tree": locator})
    assert sorted(os.listdir(top / "tree")) == ["a", "below"]
    assert ((top / "tree/a").read_bytes(), (top / "tree/below/b").read_bytes()) == (b"a", b"b")


def test_a_file_that_becomes_a_blob_stays_as_it_is(top: Path, build: BuildClient, cas: Cas) -> None:
    content = os.urandom(100_000)
    (top / "file").write_bytes(content)
    before = (top / "file").stat()
    with open(top / "file", "rb") as reader:
        assert reader.read(10) == content[:10]
        assert build.digests("file") == [digest_of(content)]
        assert reader.read() == content[10:]
    after = (top / "file").stat()
    for field in ("st_ino", "st_mode", "st_nlink", "st_size", "st_mtime_ns", "st_ctime_ns", "st_blocks"):
        assert getattr(after, field) == getattr(before, field), field


def test_clean_with_a_working_directory_inside(
    daemon: Daemon, top: Path, build: BuildClient, cas: Cas
) -> None:
    build.stage({"a/b/file": cas.put(b"content")})
    (top / "a/b/local").write_bytes(b"local")
    inside = os.open(top / "a/b", os.O_RDONLY | os.O_DIRECTORY)
    with open(top / "a/b/local", "rb") as reader:
        build.clean()
        assert build.base not in os.listdir(daemon.outputs)
        with pytest.raises(FileNotFoundError):
            top.stat()
        assert reader.read() == b"local"
        assert os.listdir(inside) == []
    os.close(inside)

    build.start()
    assert os.listdir(top) == []
    assert not (top / "a").exists()


def test_clean_takes_back_all_that_is_remembered(top: Path, build: BuildClient, cas: Cas) -> None:
    digest = cas.put(b"x")
    names = [f"d{number // 100}/f{number}" for number in range(1000)]
    build.stage(dict.fromkeys(names, digest))
    assert all((top / name).exists() for name in names)
    build.clean()
    build.start()
    assert not any((top / name).exists() for name in names)
    assert not (top / "d0").exists()


def together(*work: Callable[[threading.Event], None], seconds: float) -> None:
    """Run these in threads until the time is over, or one fails; none may hang."""
    over = threading.Event()
    failures: list[BaseException] = []

    def guarded(job: Callable[[threading.Event], None]) -> None:
        try:
            while not over.is_set():
                job(over)
        except BaseException as failure:
            failures.append(failure)
            over.set()

    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in work]
    for thread in threads:
        thread.start()
    over.wait(seconds)
    over.set()
    end = time.monotonic() + 60
    for thread in threads:
        thread.join(max(0.1, end - time.monotonic()))
    hanging = [thread.name for thread in threads if thread.is_alive()]
    assert not hanging, f"hang: {hanging}"
    if failures:
        raise failures[0]


@pytest.mark.parametrize("count", [SMALL_BATCH, LARGE_BATCH])
def test_lookups_and_creations_beside_staging(top: Path, build: BuildClient, cas: Cas, count: int) -> None:
    """The kernel holds a directory's lock while it asks for a name in it, and wants it to take a name back (fuse_dentry_revalidate,
    fuse_reverse_inval_entry): whoever answers must not be who waits for the lock."""
    contents = [b"one", b"three"]
    digests = cas.put_all(contents)
    names = [f"file{number}" for number in range(count)]
    build.stage({f"place/{name}": digests[0] for name in names})
    rounds = 0

    def stage(over: threading.Event) -> None:
        nonlocal rounds
        rounds += 1
        build.stage({f"place/{name}": digests[rounds % 2] for name in names})

    def look(over: threading.Event) -> None:
        for name in random.sample(names, min(50, count)):
            assert (top / "place" / name).read_bytes() in contents
            with pytest.raises(FileNotFoundError):
                os.stat(top / "place" / f"absent {random.random()}")

    def walk(over: threading.Event) -> None:
        with os.scandir(top / "place") as listing:
            staged = [entry for entry in listing if entry.name.startswith("file")]
        assert sorted(entry.name for entry in staged) == sorted(names)
        assert all(entry.stat(follow_symlinks=False).st_size in (3, 5) for entry in staged)

    def create(over: threading.Event) -> None:
        name = f"made {threading.get_ident()}"
        (top / "place" / name).write_bytes(b"abc")
        os.rename(top / "place" / name, top / "place" / f"{name} again")
        (top / "place" / f"{name} again").unlink()

    together(stage, look, look, walk, create, create, seconds=4)
    assert rounds > 3
    assert sorted(os.listdir(top / "place")) == sorted(names)


def test_replacing_directories_that_are_walked(top: Path, build: BuildClient, cas: Cas) -> None:
    digest = cas.put(b"x")
    tree = Rev2Tree({"below": {f"f{number}": b"x" for number in range(50)}})
    cas.put_all([*tree.files, tree.message])
    locator = rev2.TreeArtifactLocator(tree_digest=tree.digest)
    build.stage({"place": locator})
    rounds = 0

    def replace(over: threading.Event) -> None:
        nonlocal rounds
        rounds += 1
        build.stage({"place": locator})
        build.stage({"place/extra": digest})

    def walk(over: threading.Event) -> None:
        try:
            for directory, _, files in os.walk(top / "place"):
                for name in files:
                    Path(directory, name).read_bytes()
        except OSError as error:
            # What is replaced under a walker is gone for it, and no other fault.
            assert error.errno in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR), error

    together(replace, walk, walk, seconds=4)
    assert rounds > 3


def test_pages_are_read_while_files_are_replaced(top: Path, build: BuildClient, cas: Cas) -> None:
    """An INVAL_INODE for bytes would wait for the lock of a page that is being read."""
    contents = [bytes([letter]) * (1 << 20) for letter in b"ab"]
    digests = cas.put_all(contents)
    build.stage({"file": digests[0]})
    rounds = 0

    def stage(over: threading.Event) -> None:
        nonlocal rounds
        rounds += 1
        build.stage({"file": digests[rounds % 2]})

    def read(over: threading.Event) -> None:
        assert (top / "file").read_bytes() in contents

    def map_pages(over: threading.Event) -> None:
        with open(top / "file", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] in contents

    together(stage, read, read, map_pages, seconds=4)
    assert rounds > 3
