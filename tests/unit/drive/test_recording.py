"""What is gathered while somebody records: whose files, in which order, how much of them, and how many at most."""

from __future__ import annotations

import time

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.drive import recording as module
from outputd.drive.profile import LARGE, WHOLE, Part, Profile
from outputd.drive.recording import Recording, Recordings, Watch
from outputd.tree.node import EXECUTABLE_MODE, File
from outputd.tree.tree import Tree

NOW = time.time_ns()
SIZE = 2 * LARGE
STEP = 64 << 10


class World:
    def __init__(self) -> None:
        self.tree = Tree(uid=0, gid=0, now=NOW)
        self.roots = {
            name: self.tree.add_volume(number, name, NOW).root
            for number, name in enumerate((b"base", b"other"), 1)
        }
        self.recordings = Recordings()

    def file(self, name: bytes, size: int = 5, base: bytes = b"base") -> File:
        digest = Digest.make(DigestFunction.SHA256, name.ljust(32), size)
        file = File(EXECUTABLE_MODE, NOW, digest)
        self.tree.place(self.roots[base], name, file, NOW)
        return file

    def begin(self, base: str = "base", profile: Profile | None = None) -> Recording:
        made = Recording(profile or Profile(base))
        self.recordings.begin(made)
        return made


@pytest.fixture
def w() -> World:
    return World()


def test_only_while_somebody_records_it_is_on(w: World) -> None:
    seen = [w.recordings.on]
    one, two = w.begin(), w.begin()
    for made in (one, two):
        seen.append(w.recordings.on)
        w.recordings.end(made)
    assert [*seen, w.recordings.on] == [False, True, True, False]


def test_files_are_kept_in_the_order_of_their_first_read(w: World) -> None:
    made = w.begin()
    files = [w.file(name) for name in (b"c", b"a", b"b")]
    for file in (*files, files[0]):
        w.recordings.read(file, 0, 5)
    assert list(made.profile.files.items()) == [(b"c", WHOLE), (b"a", WHOLE), (b"b", WHOLE)]
    assert list(made.changed) == [b"c", b"a", b"b"]


def test_what_is_not_read_or_lies_elsewhere_is_not_kept(w: World) -> None:
    made = w.begin()
    assert w.recordings.opening(w.file(b"opened")) is Watch.AFRESH
    w.recordings.read(w.file(b"empty", 0), 0, 0)
    other = w.file(b"x", base=b"other")
    assert w.recordings.opening(other) is Watch.NOT
    w.recordings.read(other, 0, 5)
    gone = w.file(b"gone")
    w.tree.unlink(w.roots[b"base"], b"gone", NOW)
    w.recordings.read(gone, 0, 5)
    assert not made.profile.files


def test_the_first_open_of_each_file_is_afresh_for_each_recording(w: World) -> None:
    w.begin()
    file = w.file(b"a")
    assert [w.recordings.opening(file) for _ in range(2)] == [Watch.AFRESH, Watch.ON]
    w.begin()
    assert [w.recordings.opening(file) for _ in range(2)] == [Watch.AFRESH, Watch.ON]


def test_of_large_files_what_was_read_is_kept(w: World) -> None:
    made = w.begin()
    file = w.file(b"large", SIZE)
    w.recordings.read(file, SIZE - 10, 10)
    assert made.profile.files[b"large"] == Part(SIZE, ((SIZE - STEP, SIZE),))
    made.changed.clear()
    w.recordings.read(file, SIZE - 100, 10)
    assert not made.changed
    w.recordings.read(file, 0, 1)
    assert list(made.changed) == [b"large"]
    assert made.profile.files[b"large"] == Part(SIZE, ((0, STEP), (SIZE - STEP, SIZE)))
    w.recordings.read_unseen(file)
    assert made.profile.files[b"large"] == WHOLE
    w.recordings.read(file, 0, 1)
    assert made.profile.files[b"large"] == WHOLE


def test_a_file_that_is_another_one_now_begins_anew_in_its_place(w: World) -> None:
    made = w.begin()
    w.recordings.read(w.file(b"large", SIZE), 0, 1)
    w.recordings.read(w.file(b"b"), 0, 1)
    w.recordings.read(w.file(b"large", SIZE + 1), SIZE, 1)
    assert next(iter(made.profile.files.items())) == (b"large", Part(SIZE + 1, ((SIZE, SIZE + 1),)))
    w.recordings.read(w.file(b"large", 5), 0, 5)
    assert list(made.profile.files.items()) == [(b"large", WHOLE), (b"b", WHOLE)]


def test_a_recording_goes_on_with_what_it_has(w: World) -> None:
    made = w.begin(profile=Profile("base", files={b"a": WHOLE, b"large": Part(SIZE, ((0, STEP),))}))
    w.recordings.read(w.file(b"large", SIZE), SIZE - 1, 1)
    w.recordings.read(w.file(b"a"), 0, 1)
    assert list(made.changed) == [b"large"]
    assert made.profile.files[b"large"].runs == ((0, STEP), (SIZE - STEP, SIZE))


def test_a_full_one_takes_no_more_files_and_slows_nobody(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_FILES", 2)
    made = w.begin()
    for name in (b"a", b"b"):
        w.recordings.read(w.file(name), 0, 1)
    found = [(made.profile.complete, w.recordings.opening(w.file(b"c")))]
    w.recordings.read(w.file(b"c"), 0, 1)
    found.append((made.profile.complete, w.recordings.opening(w.file(b"d"))))
    assert found == [(True, Watch.AFRESH), (False, Watch.NOT)]
    assert list(made.profile.files) == [b"a", b"b"]
