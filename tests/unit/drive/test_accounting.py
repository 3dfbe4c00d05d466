"""outputd.drive.accounting: whose bytes came, and what a path says of its target."""

from __future__ import annotations

import time

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.drive.accounting import DAEMON, Accounting, Place, Process, Ranking, target_of
from outputd.tree.node import File
from outputd.tree.tree import Tree


def digest(number: int) -> Digest:
    return Digest.of(DigestFunction.SHA256, b"%d" % number)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        (b"k8-fastbuild/bin/a/b/c.o", "//a/b"),
        (b"bazel-out/k8-opt/bin/a/b/c.o", "//a/b"),
        (b"k8-fastbuild/bin/top", "//"),
        (b"k8-fastbuild/bin/a/_objs/lib/x.o", "//a:lib"),
        (b"k8-fastbuild/bin/a/t.runfiles/ws/a/t", "//a:t"),
        (b"k8-fastbuild/testlogs/a/t/test.log", "//a/t"),
        (b"k8-fastbuild/bin/external/zlib/z.o", "@zlib//"),
        (b"some/where/else", "some/where"),
        (b"file", "."),
    ],
)
def test_target(path: bytes, target: str) -> None:
    assert target_of(path) == target


def test_bytes_belong_to_who_asked() -> None:
    accounting = Accounting()
    told: list[object] = []
    accounting.arrivals.append(lambda *what: told.append(what))
    reader = Process(7, 1, "ld")
    place = Place("base", b"k8/bin/a/x.o")
    accounting.asked(reader, place, digest(1))
    accounting.arrived(digest(1), 10)
    accounting.arrived(digest(1), 5)
    accounting.arrived(digest(2), 100)
    assert (accounting.total.pieces, accounting.total.bytes) == (3, 115)
    assert [(who, came.bytes) for who, came in accounting.processes.top(0)] == [(DAEMON, 100), (reader, 15)]
    assert [(name, came.bytes) for name, came in accounting.output_bases.top(0)] == [("base", 15)]
    assert [(name, came.bytes) for name, came in accounting.targets.top(0)] == [("//a", 15)]
    assert told[0] == (reader, place, digest(1), 10)


def test_a_ranking_is_bounded_and_keeps_the_largest() -> None:
    ranking: Ranking[int] = Ranking(10)
    for number in range(1000):
        ranking.add(number, number)
    top = ranking.top(5)
    assert [key for key, _ in top] == [999, 998, 997, 996, 995]
    assert len(ranking.top(0)) <= 20


def test_place() -> None:
    tree = Tree(uid=0, gid=0, now=time.time_ns())
    volume = tree.add_volume(1, b"base", 1)
    file = File(0o100644, 1, digest(1))
    tree.place(volume.root, b"x", file, 1)
    assert Place.of(file) == ("base", b"x")
    assert Place.of(volume.root) == ("base", b"")
    assert Place.of(tree.outputs) == ("", b"outputs")
