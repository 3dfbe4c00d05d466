"""outputd.config: where the remote is and what it is told; the same URLs as the remote store takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from outputd.config import InvalidSettings, Places, load
from outputd.config.kinds import RemoteUrl
from outputd.config.remote_options import remote_options
from outputd.errors import Invalid
from outputd.store.remote import parse_endpoint

ENVIRON = {"HOME": "/home/ed", "XDG_RUNTIME_DIR": "/run/user/7"}


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return str(path)


class TestRemote:
    @pytest.mark.parametrize(
        "url",
        ["grpc://h:1", "grpcs://h", "grpcs://h:443", "h:1", "h", "unix:/s", "unix:///s", "grpc://[::1]:1"],
    )
    def test_what_the_remote_store_takes(self, url: str) -> None:
        parse_endpoint(str(RemoteUrl().parse(url, Places.of(ENVIRON))))

    @pytest.mark.parametrize(
        "url",
        [
            "http://h:1",
            "grpc://h",
            "grpc://",
            "grpc://h:0",
            "grpc://h:70000",
            "h:1/x",
            "grpc://h:1/x",
            "a b:1",
            "unix:",
            "::1:1",
        ],
    )
    def test_what_the_remote_store_refuses(self, url: str) -> None:
        with pytest.raises(Invalid):
            parse_endpoint(url)
        with pytest.raises(Invalid):
            RemoteUrl().parse(url, Places.of(ENVIRON))

    def test_a_password_is_refused_and_not_shown(self) -> None:
        with pytest.raises(InvalidSettings, match="with a user or a password") as caught:
            load({"remote.url": "grpcs://ed:hunter2@h:1"}, ENVIRON)
        assert "hunter2" not in str(caught.value)

    def test_options(self, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("Bearer abc\n")
        text = (
            '[remote]\nurl = "grpc://h:1"\ntimeout = 7\nheaders = { authorization = "@token", x-a = "b" }\n'
        )
        options = remote_options(load({}, ENVIRON, write(tmp_path, text)).config.remote)
        assert options.headers == {"authorization": "Bearer abc", "x-a": "b"}
        assert options.timeout == 7

    @pytest.mark.parametrize("content", ["", "two\nlines", "caf\xe9"])
    def test_a_header_file_that_will_not_do(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "token").write_bytes(content.encode("latin-1"))
        settings = load({}, ENVIRON | {"OUTPUTD_REMOTE_HEADERS": f"a=@{tmp_path}/token"}).config.remote
        with pytest.raises(Invalid, match=r"headers a: .*/token does not hold one line"):
            remote_options(settings)

    def test_a_header_file_that_is_absent(self, tmp_path: Path) -> None:
        settings = load({}, ENVIRON | {"OUTPUTD_REMOTE_HEADERS": f"a=@{tmp_path}/token"}).config.remote
        with pytest.raises(Invalid, match=r"headers a: .*/token cannot be read: No such file"):
            remote_options(settings)
