"""What is mounted, what may be a mount point, and in which order a mount is taken off; real mounts are in tests/e2e."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from outputd.errors import Invalid, Precondition, TimedOut, Unavailable, Unsupported
from outputd.front.fuse import mount as module
from outputd.front.fuse.mount import (
    FSTYPE,
    Mount,
    MountEntry,
    Unmounted,
    mount,
    parse_mountinfo,
    real_mount_point,
    unmount,
)


@pytest.fixture(autouse=True)
def no_real_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that fails to refuse must not hide a directory of this machine."""

    def refuse(path: str, options: list[str]) -> int:
        raise AssertionError(f"a unit test mounts nothing, not even {path}")

    monkeypatch.setattr(module, "_mount_by_us", refuse)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


MOUNTINFO = rb"""27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
36 27 0:39 / /home/a\040b/o\134u rw,nosuid shared:1 master:2 - fuse.outputd outputd rw,user_id=0
37 27 0:40 /sub /mnt\011x rw - fuse.sshfs host:/it\043s rw
38 27 0:41 / /home/a\040b/o\134u rw - tmpfs none rw
"""


def test_mountinfo_is_read_as_proc_5_says() -> None:
    assert parse_mountinfo(MOUNTINFO) == [
        MountEntry(0, "/", "ext4", "/dev/vda"),
        MountEntry(39, "/home/a b/o\\u", "fuse.outputd", "outputd"),
        MountEntry(40, "/mnt\tx", "fuse.sshfs", "host:/it#s"),
        MountEntry(41, "/home/a b/o\\u", "tmpfs", "none"),
    ]


def test_mount_points_need_not_be_utf_8() -> None:
    (entry,) = parse_mountinfo(b"36 27 0:39 / /m/\xff rw - tmpfs none rw\n")
    assert os.fsencode(entry.mount_point) == b"/m/\xff"


def test_only_a_newline_ends_a_line() -> None:
    (entry,) = parse_mountinfo(b"36 27 0:39 / /m\rm rw - tmpfs none rw\n")
    assert entry.mount_point == "/m\rm"


@pytest.mark.parametrize(
    "line",
    [
        b"36 27 0:39 / /m rw tmpfs none rw",
        b"36 27 - tmpfs none rw",
        b"36 27 nine / /m rw - tmpfs none rw",
        b"36 27 0:39 / /m rw - tmpfs",
        b"nonsense",
    ],
)
def test_a_line_that_is_none_is_told(line: bytes) -> None:
    with pytest.raises(Unsupported, match="mountinfo"):
        parse_mountinfo(line)


def test_of_several_mounts_on_a_place_the_last_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = parse_mountinfo(MOUNTINFO)
    monkeypatch.setattr(module, "parse_mountinfo", lambda _text: entries)
    assert module.topmost("/home/a b/o\\u") == entries[3]
    assert module.topmost("/nothing/here") is None


# --- mount points


def test_symlinks_are_followed_to_the_mount_point(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to(place)
    (tmp_path / "parent").symlink_to(tmp_path)
    real = os.path.realpath(place)
    assert real_mount_point(str(tmp_path / "one")) == real
    assert real_mount_point(str(tmp_path / "parent" / "one") + "/") == real
    assert real_mount_point(str(place / ".." / "two")) == real
    assert real_mount_point(str(place / "..")) == os.path.dirname(real)
    assert real_mount_point("/") == "/"


def test_a_relative_mount_point_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert real_mount_point("new") == os.path.join(os.path.realpath(tmp_path), "new")


def test_what_is_mounted_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = os.path.realpath(tmp_path / "place")
    monkeypatch.setattr(module, "topmost", lambda path: MountEntry(9, place, FSTYPE, "outputd"))
    asked: list[object] = []
    monkeypatch.setattr(os, "readlink", asked.append)
    assert real_mount_point(place) == place
    assert place not in asked


def test_symlinks_that_go_in_circles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    with pytest.raises(Invalid, match="symbolic links"):
        real_mount_point(str(tmp_path / "loop"))


def test_a_file_is_no_mount_point(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Precondition, match="no directory"):
        mount(str(tmp_path / "file"))


def test_nothing_is_hidden_under_a_mount(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(Precondition, match="not empty: 'precious' would be hidden"):
        mount(str(tmp_path))


def test_a_mount_of_others_that_is_not_empty_is_named() -> None:
    with pytest.raises(Precondition, match=r"/proc: is not empty \(proc from .* is mounted here\)"):
        mount("/proc")


def test_a_mount_point_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Precondition, match="Not a directory"):
        mount(str(tmp_path / "file" / "below"))
    with pytest.raises(Precondition, match="missing and cannot be made"):
        mount("/proc/no/such/place")


@pytest.mark.parametrize(
    ("code", "state"), [(0, "is alive"), (errno.EACCES, "another user"), (None, "does not answer")]
)
def test_a_living_outputd_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None, state: str
) -> None:
    place = os.path.realpath(tmp_path)
    monkeypatch.setattr(module, "topmost", lambda path: MountEntry(52, place, FSTYPE, "outputd"))
    monkeypatch.setattr(module, "probe", lambda path, deadline: code)
    with pytest.raises(Precondition, match=rf"connection 52\).*{state}"):
        mount(place)


@pytest.mark.parametrize("fstype", ["fuse", "fuse.sshfs"])
def test_what_others_serve_is_not_even_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fstype: str
) -> None:
    place = os.path.realpath(tmp_path)
    monkeypatch.setattr(module, "topmost", lambda path: MountEntry(52, place, fstype, "host:/dir"))
    monkeypatch.setattr(module, "_prepare", lambda path: pytest.fail("it was looked at"))
    with pytest.raises(Precondition, match=f"type {fstype} from host:/dir is mounted here"):
        mount(place)


def test_the_slower_of_two_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = os.path.realpath(tmp_path)
    taken_off: list[bool] = []
    null = os.open(os.devnull, os.O_RDONLY)
    monkeypatch.setattr(module, "_mount_by_us", lambda path, options: os.dup(null))
    monkeypatch.setattr(module, "topmost", lambda path: None)
    both = [MountEntry(52, place, FSTYPE, "outputd"), MountEntry(53, place, FSTYPE, "outputd")]
    monkeypatch.setattr(module, "_mounted_on", lambda path: both)
    monkeypatch.setattr(module, "_take_off", lambda path, *, by_us, lazy: taken_off.append(lazy))
    monkeypatch.setattr(module, "connection_of", lambda fd: 53)
    with pytest.raises(Precondition, match="another outputd was mounted here at the same moment"):
        mount(place, by_us=True)
    assert taken_off == [True]
    monkeypatch.setattr(module, "connection_of", lambda fd: 52)
    mounted = mount(place, by_us=True)
    assert mounted.connection == 52
    os.close(mounted.fd)
    os.close(null)


# --- fusermount3, played by a script


@pytest.fixture
def fusermount(tmp_path: Path) -> Path:
    programs = tmp_path / "bin"
    programs.mkdir()
    script = programs / "fusermount3"
    script.touch(mode=0o755)
    return script


def test_what_fusermount_says_is_shown(fusermount: Path, tmp_path: Path) -> None:
    fusermount.write_text("#!/bin/sh\necho 'fusermount3: user has no write access' >&2\nexit 1\n")
    place = tmp_path / "m"
    with pytest.raises(Unsupported, match=r"/m: fusermount3 \(exit code 1\) said: .* no write access"):
        mount(str(place), by_us=False)


def test_a_fusermount_that_hangs_is_ended(
    fusermount: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HELPER_DEADLINE", 0.05)
    fusermount.write_text("#!/bin/sh\nwhile :; do :; done\n")
    with pytest.raises(Unsupported, match="ended by signal 9"):
        mount(str(tmp_path / "m"), by_us=False)


def test_a_fusermount_that_sends_nothing_has_failed(fusermount: Path, tmp_path: Path) -> None:
    fusermount.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(Unsupported, match="said: nothing"):
        mount(str(tmp_path / "m"), by_us=False)


def test_a_missing_fusermount_names_its_package(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="package fuse3"):
        mount(str(tmp_path / "m"), by_us=False)


def test_the_first_error_is_not_hidden_behind_the_second(
    fusermount: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, options: list[str]) -> int:
        raise Unsupported("mount(2) refused: seccomp")

    monkeypatch.setattr(module, "may_mount", lambda: True)
    monkeypatch.setattr(module, "_mount_by_us", refuse)
    fusermount.write_text("#!/bin/sh\necho sorry >&2\nexit 1\n")
    with pytest.raises(Unsupported, match=r"seccomp; and with fusermount3: .*sorry"):
        mount(str(tmp_path / "m"))


@pytest.mark.parametrize(("status", "held"), [("CapEff:\t000001ffffffffff\n", True), ("CapEff:\t0\n", False)])
def test_the_capability_is_bit_21(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, held: bool
) -> None:
    file = tmp_path / "status"
    file.write_text(f"Name:\tx\n{status}CapBnd:\t000001ffffffffff\n")
    real = open
    monkeypatch.setattr("builtins.open", lambda path, mode: real(file, mode))
    assert module.may_mount() is held


# --- taking a mount off


class Place:
    """A mount that answers attempts to take it off from a list: an error, or None for success."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Exception | None) -> None:
        self.answers = list(answers)
        self.attempts: list[bool] = []
        self.entry: MountEntry | None = MountEntry(7, "/m", FSTYPE, "outputd")
        self.aborted = 0
        self.hang = threading.Event()
        self.hang.set()
        monkeypatch.setattr(module, "topmost", lambda path: self.entry)
        monkeypatch.setattr(module, "_take_off", self._take_off)
        monkeypatch.setattr(module, "abort", self._abort)
        monkeypatch.setattr(module, "_RETRY_PAUSE", 0.001)

    def _take_off(self, path: str, *, by_us: bool, lazy: bool) -> None:
        assert (path, by_us) == ("/m", True)
        self.attempts.append(lazy)
        self.hang.wait(10)
        answer = self.answers.pop(0) if self.answers else module._Busy("/m: busy")
        if answer is not None and not lazy:
            raise answer

    def _abort(self, mount: Mount) -> None:
        self.aborted += 1
        self.hang.set()


MINE = Mount("/m", -1, connection=7, by_us=True, created=False, replaced=0)


def test_a_free_mount_goes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(monkeypatch, None)
    assert unmount(MINE) is Unmounted.CLEAN
    assert place.attempts == [False]


def test_a_busy_mount_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(monkeypatch, module._Busy("/m: busy"), module._Busy("/m: busy"), None)
    assert unmount(MINE) is Unmounted.CLEAN
    assert place.attempts == [False] * 3


def test_a_mount_that_stays_busy_is_detached(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(monkeypatch)
    assert unmount(MINE, patience=0.02) is Unmounted.DETACHED
    assert place.attempts.count(True) == 1
    assert len(place.attempts) > 1


def test_a_mount_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(monkeypatch)
    place.entry = None
    assert unmount(MINE) is Unmounted.GONE
    assert place.attempts == []


def test_a_mount_that_goes_while_we_try_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(monkeypatch, None)

    def take_off(path: str, *, by_us: bool, lazy: bool) -> None:
        place.entry = None
        raise Unavailable("/m: umount2(2) failed: Invalid argument")

    monkeypatch.setattr(module, "_take_off", take_off)
    assert unmount(MINE) is Unmounted.GONE


def test_what_the_thread_meets_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Place(monkeypatch, OSError(errno.EMFILE, "Too many open files"))
    with pytest.raises(Unavailable, match=r"/m: .*Too many open files") as raised:
        unmount(MINE)
    assert isinstance(raised.value.__cause__, OSError)


@pytest.mark.parametrize(("fstype", "connection"), [("tmpfs", 7), (FSTYPE, 8)])
def test_what_covers_our_mount_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, fstype: str, connection: int
) -> None:
    place = Place(monkeypatch, None)
    place.entry = MountEntry(connection, "/m", fstype, "theirs")
    with pytest.raises(Precondition, match="covered by"):
        unmount(MINE)
    assert place.attempts == []


def test_a_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Place(monkeypatch, Unavailable("/m: umount2(2) failed: Operation not permitted"))
    with pytest.raises(Unavailable, match="not permitted"):
        unmount(MINE)


def test_a_kernel_that_waits_for_answers_is_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(monkeypatch, None)
    place.hang.clear()
    assert unmount(MINE, deadline=0.5) is Unmounted.ABORTED
    assert place.aborted == 1


def test_a_hang_that_survives_the_abort_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(monkeypatch, None)
    place.hang.clear()
    monkeypatch.setattr(module, "abort", lambda mount: None)
    with pytest.raises(TimedOut, match="aborted"):
        unmount(MINE, deadline=0.02)
    place.hang.set()
