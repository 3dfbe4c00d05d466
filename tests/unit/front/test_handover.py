"""What goes over to the next process comes out as it went in; a crash leaves what kept.py says, and nothing of use is nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from outputd.errors import Corrupt
from outputd.front.fuse import kept as kept_module
from outputd.front.fuse.handover import (
    Agreed,
    Handover,
    Nameless,
    OpenDirectory,
    Opened,
    decode,
    encode,
)
from outputd.front.fuse.kept import KeptHandles, recall
from outputd.front.fuse.mount import FSTYPE, Mount, MountEntry
from outputd.tree.inodes import Identity

MOUNT = Mount("/m", 9, 41, by_us=True, created=False, replaced=0)
AGREED = Agreed(45, (1 << 37) | 5, True)


def whole() -> Handover:
    return Handover(
        MOUNT,
        AGREED,
        identities={
            2: Identity(1, b"outputs", 1),
            (7 << 40) + 1: Identity(2, b"\xff\n", 1 << 40, {b"absent", b"\x80"}),
        },
        nameless=[Nameless(3, b"leftover", 0), Nameless(1, b"", 77)],
        opened=[Opened(5, "instance", 6, 1 << 60, [(1, True), (2, False)])],
        directories=[OpenDirectory(4, 2, None), OpenDirectory(5, 2, [(3, b"a"), (1 << 62, b"\xfe")])],
        next_handle=12,
        next_directory_handle=13,
        requests=[bytes(range(256))],
        restarts=4,
    )


def shown(handover: Handover) -> str:
    identities = {
        ino: (i.parent, i.name, i.lookups, i.negatives and sorted(i.negatives))
        for ino, i in handover.identities.items()
    }
    rest = {name: getattr(handover, name) for name in Handover.__slots__ if name != "identities"}
    return f"{identities} {rest}"


def test_it_comes_out_as_it_went_in() -> None:
    assert shown(decode(encode(whole()), 9)) == shown(whole())
    empty = Handover(MOUNT, AGREED)
    assert shown(decode(encode(empty), 9)) == shown(empty)


def test_what_is_none_is_refused() -> None:
    data = encode(whole())
    for wrong in (b"", b"x", data[:-1], data + b"x", b"X" + data[1:], data[:16] + b"\x02" + data[17:]):
        with pytest.raises(Corrupt, match="handover"):
            decode(wrong, 9)
    for at in range(0, len(data), 7):
        broken = bytearray(data)
        broken[at] ^= 0xFF
        try:
            decode(bytes(broken), 9)
        except Corrupt:
            pass


# --- kept.py


def keep(path: Path, *, restarts: int = 2) -> KeptHandles:
    kept = KeptHandles(str(path))
    kept.begin(MOUNT, AGREED, restarts)
    return kept


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "_trouble", lambda mount, agreed: "")


@pytest.mark.usefixtures("trusting")
def test_open_handles_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "mount"
    kept = keep(path)
    kept.publish()
    slots = [kept.opened(fh, 100 + fh % 3, fh % 3, writing=fh == 4) for fh in range(1, 7)]
    kept.closed(slots[1])
    kept.closed(slots[2])
    kept.opened(8, 108, 0, writing=False)
    # It was killed here: nothing is closed.
    found = recall(str(path), 9)
    assert found is not None
    assert (found.mount, found.agreed, found.restarts, found.crashed) == (MOUNT, AGREED, 2, True)
    assert {(o.ino, o.backing, *sorted(o.handles)) for o in found.opened} == {
        (101, 1, (1, False), (4, True)),
        (102, 2, (5, False)),
        (100, 0, (6, False)),
        (108, 0, (8, False)),
    }
    assert found.next_handle > 1 << 40
    kept.close()


@pytest.mark.usefixtures("trusting")
def test_there_is_room_for_many(tmp_path: Path) -> None:
    path = tmp_path / "mount"
    kept = keep(path)
    kept.publish()
    for fh in range(1, 10_001):
        kept.opened(fh, fh, 0, writing=False)
    found = recall(str(path), 9)
    assert found is not None
    assert sorted(o.ino for o in found.opened) == list(range(1, 10_001))
    kept.close()


@pytest.mark.usefixtures("trusting")
def test_the_last_one_counts_until_the_next_is_published(tmp_path: Path) -> None:
    path = tmp_path / "mount"
    kept = keep(path)
    kept.publish()
    kept.opened(1, 101, 0, writing=False)
    kept.close()
    following = keep(path, restarts=3)
    following.opened(2, 102, 0, writing=False)
    found = recall(str(path), 9)
    assert found is not None and [o.ino for o in found.opened] == [101]
    following.publish()
    found = recall(str(path), 9)
    assert found is not None and ([o.ino for o in found.opened], found.restarts) == ([102], 3)
    following.remove()
    assert os.listdir(tmp_path) == []


def test_a_disk_that_refuses_costs_only_the_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    kept = keep(tmp_path / "mount")
    kept.publish()
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    slots = [kept.opened(fh, fh, 0, writing=False) for fh in range(1, 5000)]
    assert slots[-1] == -1
    assert "open files would not survive a crash: No space left" in caplog.text
    kept.closed(slots[0])
    kept.closed(slots[-1])
    assert recall(str(tmp_path / "mount"), 9) is None


@pytest.mark.parametrize("data", [b"", b"\xff\xff\xff\xff", b"\x02\0\0\0{}", b"\x02\0\0\0[]"])
def test_what_cannot_be_read_is_of_no_use(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mount").write_bytes(data)
    assert recall(str(tmp_path / "mount"), 9) is None
    assert "cannot be used" in caplog.text


def test_only_the_device_of_this_very_mount_is_of_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "mount")

    def told(agreed: Agreed, device: int) -> str:
        kept = KeptHandles(path)
        kept.begin(MOUNT, agreed, 0)
        kept.publish()
        kept.close()
        caplog.clear()
        assert recall(path, device) is None
        return caplog.text

    null = os.open(os.devnull, os.O_RDONLY)
    try:
        assert "no FUSE device" in told(AGREED, null)
        assert "speaks FUSE 7.43" in told(Agreed(43, 0, False), null)
        monkeypatch.setattr(kept_module, "_FUSE_DEVICE", (1, 3))
        assert "/m shows nothing" in told(AGREED, null)
        other = MountEntry(42, "/m", FSTYPE, "outputd")
        monkeypatch.setattr(kept_module, "topmost", lambda path: other)
        assert "not connection 41" in told(AGREED, null)
        monkeypatch.setattr(kept_module, "connection_of", lambda fd: 40)
        assert "it belongs to connection 40, not 41" in told(AGREED, null)
    finally:
        os.close(null)
