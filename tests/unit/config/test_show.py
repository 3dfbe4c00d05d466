"""outputd.config.show: settings as text again, without secrets."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from outputd.config import Loaded, Places, load
from outputd.config.kinds import Size, show_size
from outputd.config.show import as_data, as_toml

ENVIRON = {"HOME": "/home/ed", "XDG_RUNTIME_DIR": "/run/user/7"}


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return str(path)


class TestShow:
    FILE = """\
[listen]
addresses = ["unix:/a \\"b\\".sock", "[::1]:80"]
[remote]
url = "grpcs://h"
max_batch_bytes = 1025
timeout = 0.5
[remote.headers]
authorization = "Bearer hunter2"
x-token = "@/t"
"""

    def loaded(self, tmp_path: Path) -> Loaded:
        return load({}, ENVIRON, write(tmp_path, self.FILE))

    def test_secrets_are_masked_but_names_of_files_are_not(self, tmp_path: Path) -> None:
        for text in (as_toml(self.loaded(tmp_path), True), json.dumps(as_data(self.loaded(tmp_path), True))):
            assert "hunter2" not in text
            assert "********" in text
            assert "@/t" in text

    def test_what_is_shown_is_a_settings_file(self, tmp_path: Path) -> None:
        environ = ENVIRON | {"OUTPUTD_REMOTE_HEADERS": "x=@/t"}
        loaded = load({}, environ, write(tmp_path, self.FILE))
        again = load({}, ENVIRON, write(tmp_path, as_toml(loaded, True)))
        assert again.config == loaded.config

    def test_origins(self, tmp_path: Path) -> None:
        text = as_toml(self.loaded(tmp_path), True)
        assert f'url = "grpcs://h"  # {tmp_path}/config.toml:4\n' in text
        assert "# ca_file is not set  # default\n" in text
        data = as_data(self.loaded(tmp_path), True)
        assert data["remote"]["timeout"] == {
            "value": 0.5,
            "origin": {"kind": "file", "where": f"{tmp_path}/config.toml:6"},
        }
        assert as_data(self.loaded(tmp_path), False)["remote"]["timeout"] == 0.5

    @given(st.integers(0, 1 << 60))
    def test_sizes_parse_back(self, size: int) -> None:
        assert Size(0, 1 << 60).parse(show_size(size), Places.of(ENVIRON)) == size
