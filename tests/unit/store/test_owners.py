"""State directories that use one store, one after the other: none takes away what belongs to another, unless that one is gone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from outputd.disk.disk import RealDisk
from outputd.store.disk_store import DiskStore
from outputd.store.owners import Owner


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / "states" / name).mkdir(parents=True)
    return tmp_path


def opened(place: Path, number: str, state: str) -> DiskStore:
    return DiskStore(str(place / "cas"), RealDisk(), owner=Owner(number, f"{place}/states/{state}"))


def test_each_has_files_of_its_own(place: Path) -> None:
    one = opened(place, "1", "one")
    Path(one.private, "7").write_bytes(b"of one")
    one.close()
    two = opened(place, "2", "two")
    assert os.listdir(two.private) == []
    assert two.others() == [f"{place}/states/one"]
    assert Path(one.private, "7").read_bytes() == b"of one"
    two.close()
    one = opened(place, "1", "one")
    assert one.others() == [f"{place}/states/two"]
    assert os.listdir(one.private) == ["7"]
    one.close()


def test_a_state_that_has_moved_is_the_same_one(place: Path) -> None:
    opened(place, "1", "one").close()
    os.rename(place / "states/one", place / "states/moved")
    one = opened(place, "1", "moved")
    assert one.others() == []
    one.close()
    two = opened(place, "2", "two")
    assert two.others() == [f"{place}/states/moved"]
    two.close()


@pytest.mark.parametrize("remains", ["nothing", "damaged", "its disk is away"])
def test_what_belonged_to_a_state_that_is_gone_goes(place: Path, remains: str) -> None:
    one = opened(place, "1", "one")
    Path(one.private, "7").write_bytes(b"of one")
    one.close()
    two, other = "two", f"{place}/states/one"
    if remains == "damaged":
        two = "one"  # where it was, with a new database
        (place / "states/one/state.db.damaged-20260101T000000Z").touch()
    else:
        shutil.rmtree(place / ("states/one" if remains == "nothing" else "states"))
    store = opened(place, "2", two)
    gone = remains == "nothing"
    assert store.others() == ([] if gone else [other])
    assert os.path.exists(f"{one.private}/7") is not gone
    assert store.others() == ([] if gone else [other])
    store.close()


def test_a_new_state_in_the_place_of_the_old_one_takes_over(place: Path) -> None:
    one = opened(place, "1", "one")
    Path(one.private, "7").write_bytes(b"of one")
    one.close()
    two = opened(place, "2", "one")
    assert two.others() == []
    assert not os.path.exists(one.private)
    two.close()


def test_what_an_earlier_version_left_is_the_first_ones(place: Path) -> None:
    opened(place, "1", "one").close()
    shutil.rmtree(place / "cas/owners")
    shutil.rmtree(place / "cas/private")
    (place / "cas/format").write_text("1\n")
    (place / "cas/private").mkdir()
    (place / "cas/private/7").write_bytes(b"seven")
    one = opened(place, "1", "one")
    assert Path(one.private, "7").read_bytes() == b"seven"
    assert (place / "cas/format").read_text() == "2\n"
    assert one.others() == []
    one.close()
