"""outputd.config.places: home, XDG directories, the private directory in /tmp."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from outputd.config import InvalidSettings, Places, load
from outputd.errors import Denied, Invalid, Unavailable

ENVIRON = {"HOME": "/home/ed", "XDG_RUNTIME_DIR": "/run/user/7"}


class TestPlaces:
    def test_a_working_directory_that_is_gone(self) -> None:
        places = Places(ENVIRON, 7, None)
        assert places.complete("/a/../b") == "/b"
        with pytest.raises(
            Invalid, match="'x' is relative, and the working directory does not exist any more"
        ):
            places.complete("x")

    def test_nobody_knows_the_home(self) -> None:
        with pytest.raises(
            Invalid, match="HOME is not set, and there is no user with uid 4000000000; set HOME"
        ):
            Places({"HOME": "relative"}, 4_000_000_000, "/").home()

    def test_a_settings_file_that_cannot_be_named(self) -> None:
        with pytest.raises(
            InvalidSettings, match=r"settings file: '~bob/x': other users' homes are not looked up"
        ):
            load({}, ENVIRON, "~bob/x")

    def test_two_slashes_in_front_are_one(self) -> None:
        assert Places(ENVIRON, 7, "/").complete("//a//b/") == "/a/b"


class TestPrivateDirectory:
    def places(self) -> Places:
        return Places.of({"HOME": "/home/ed"})

    def test_made_and_found_again(self, tmp_path: Path) -> None:
        path = f"{tmp_path}/run"
        self.places().ensure_private(path)
        assert os.stat(path).st_mode & 0o777 == 0o700
        self.places().ensure_private(path)

    def test_open_to_others(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir(mode=0o755)
        with pytest.raises(Denied, match="not a directory of yours alone"):
            self.places().ensure_private(f"{tmp_path}/run")

    def test_a_symlink_to_a_directory_of_ours(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir(mode=0o700)
        (tmp_path / "run").symlink_to("real")
        with pytest.raises(Denied):
            self.places().ensure_private(f"{tmp_path}/run")

    def test_somebody_elses(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir(mode=0o700)
        other = Places({"HOME": "/home/ed"}, os.getuid() + 1, "/")
        with pytest.raises(Denied, match=f"owner uid {os.getuid() + 1}"):
            other.check_private(f"{tmp_path}/run")

    def test_where_nothing_can_be_made(self) -> None:
        with pytest.raises(Unavailable, match="/proc/outputd cannot be made"):
            self.places().ensure_private("/proc/outputd")

    def test_without_a_runtime_directory(self) -> None:
        # No user has this id, so /run/user has no directory for it.
        nobody = Places({"HOME": "/home/ed"}, 4_000_000_000, "/")
        assert nobody.xdg("XDG_RUNTIME_DIR") == "/tmp/outputd-4000000000"
