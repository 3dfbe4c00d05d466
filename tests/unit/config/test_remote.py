"""outputd.config: where the remote is and what it is told; the same URLs as the remote store takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from outputd.config import InvalidSettings, Places, load
from outputd.config.kinds import RemoteUrl
from outputd.config.remote_options import configured_remotes, remote_options
from outputd.config.show import as_data, as_toml
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
        assert options.headers == {"x-a": "b"}
        assert options.header_files == {"authorization": f"{tmp_path}/token"}
        assert options.timeout == 7

    def test_where_a_netrc_is(self, tmp_path: Path) -> None:
        def found(setting: str, environ: Mapping[str, str] = ENVIRON) -> str | None:
            return remote_options(
                load({}, environ, write(tmp_path, f"[remote]\n{setting}\n")).config.remote
            ).netrc

        assert found("") == "/home/ed/.netrc"
        assert found("", {**ENVIRON, "NETRC": "/run/netrc"}) == "/run/netrc"
        assert found('netrc = "auto"') == "/home/ed/.netrc"
        assert found('netrc = "~/other"') == "/home/ed/other"
        assert found('netrc = "off"', {**ENVIRON, "NETRC": "/run/netrc"}) is None
        assert found("", {**ENVIRON, "OUTPUTD_REMOTE_NETRC": "off"}) is None
        with pytest.raises(InvalidSettings, match="auto"):
            found("netrc = true")

    def test_headers_of_clients(self, tmp_path: Path) -> None:
        def found(setting: str, **environ: str) -> tuple[str, ...]:
            loaded = load({}, {**ENVIRON, **environ}, write(tmp_path, f"[remote]\n{setting}\n"))
            return loaded.config.remote.client_headers

        assert found("") == ("authorization",)
        assert found('client_headers = ["Authorization", "x-buildbuddy-api-key"]') == (
            "authorization",
            "x-buildbuddy-api-key",
        )
        assert found("", OUTPUTD_REMOTE_CLIENT_HEADERS="x-a, x-b") == ("x-a", "x-b")
        for wrong in ('"authorization"', '["a b"]', '["x-bin"]', "[1]"):
            with pytest.raises(InvalidSettings):
                found(f"client_headers = {wrong}")

    def test_credential_helpers_as_bazel_writes_them(self, tmp_path: Path) -> None:
        text = '[remote]\ncredential_helper = ["bare", "*.Example.com=./near", "h=~/far"]\n'
        settings = load({}, ENVIRON, write(tmp_path, text)).config.remote
        assert settings.credential_helper == (
            ("", "bare"),
            ("*.example.com", f"{tmp_path}/near"),
            ("h", "/home/ed/far"),
        )

    @pytest.mark.parametrize(
        ("helper", "wrong"),
        [
            ("%workspace%/tools/helper", "%workspace% has no meaning"),
            ("a b=/x", "is not .PATTERN=.PATH"),
            ("*=/x", "is not .PATTERN=.PATH"),
            ("h=", "is not .PATTERN=.PATH"),
        ],
    )
    def test_credential_helpers_that_will_not_do(self, helper: str, wrong: str) -> None:
        with pytest.raises(InvalidSettings, match=wrong):
            load({}, ENVIRON | {"OUTPUTD_REMOTE_CREDENTIAL_HELPER": helper})

    def test_what_is_read_through_the_own_mount_is_refused(self, tmp_path: Path) -> None:
        inside = "/home/ed/outputd/x"
        text = (
            f'[remote]\nurl = "grpcs://h"\nca_file = "{inside}"\nheaders = {{ a = "@{inside}" }}\n'
            f'credential_helper = "{inside}"\nnetrc = "{inside}"\n'
        )
        with pytest.raises(InvalidSettings) as caught:
            load({}, ENVIRON, write(tmp_path, text))
        assert [problem.subject for problem in caught.value.problems] == [
            "[remote] ca_file",
            "[remote] headers",
            "[remote] netrc",
            "[remote] credential_helper",
        ]
        assert all("lies inside the mount" in problem.text for problem in caught.value.problems)


class TestSeveral:
    def test_each_with_its_own(self, tmp_path: Path) -> None:
        text = """
[remote]
url = "grpc://default:1"
[remotes.team]
url = "grpcs://team"
timeout = 3
headers = { authorization = "hunter2222" }
[remotes.other]
prefix = "big/cluster"
instance_name = "main"
url = "grpcs://other"
"""
        loaded = load({}, ENVIRON, write(tmp_path, text))
        found = list(configured_remotes(loaded.config))
        assert [(one.section, one.prefix, one.url) for one in found] == [
            ("remote", "", "grpc://default:1"),
            ("remotes.team", "team", "grpcs://team"),
            ("remotes.other", "big/cluster", "grpcs://other"),
        ]
        assert found[1].settings.timeout == 3 and found[2].settings.timeout == 30
        assert loaded.origins["remotes.team.timeout"].where == f"{tmp_path}/config.toml:6"
        shown = as_toml(loaded, True)
        assert "[remotes.other]\n" in shown and 'prefix = "big/cluster"' in shown
        assert "hunter2222" not in shown + repr(loaded.config) + repr(remote_options(found[1].settings))
        assert as_data(loaded, False)["remotes.team"]["timeout"] == 3

    def test_problems_are_named_with_their_lines(self, tmp_path: Path) -> None:
        text = """
remotes.odd = 3
[remotes.a]
timeout = 1
[remotes.b]
url = "grpc://h:1"
prefx = "a"
[remotes.c]
url = "grpc://h:1"
prefix = "x//y"
[remotes."a b"]
"""
        with pytest.raises(InvalidSettings) as caught:
            load({}, ENVIRON, write(tmp_path, text))
        assert [str(problem).partition("config.toml")[2] for problem in caught.value.problems] == [
            ":2: [remotes.odd]: a section is a table; write [remotes.odd] on a line of its own and its keys below",
            ":7: [remotes.b] prefx: no such key; did you mean prefix?",
            ":10: [remotes.c] prefix: 'x//y' is not an instance name: words with a slash between them, none of them blobs, "
            "uploads, actions, actionResults, operations, capabilities, compressed-blobs",
            ":11: [remotes.'a b']: a name of letters, digits, '-' and '_' is needed; what clients call it is its `prefix`",
        ]

    def test_two_may_not_have_the_same(self, tmp_path: Path) -> None:
        text = '[remotes.a]\n[remotes.b]\nurl = "grpc://h:1"\nprefix = "a"\n'
        with pytest.raises(InvalidSettings) as caught:
            load({}, ENVIRON, write(tmp_path, text))
        assert [problem.subject for problem in caught.value.problems] == [
            "[remotes.a] url",
            "[remotes.b] prefix",
        ]

    def test_variables_name_none(self) -> None:
        with pytest.raises(InvalidSettings, match="OUTPUTD_REMOTES_A_URL: no such setting"):
            load({}, ENVIRON | {"OUTPUTD_REMOTES_A_URL": "grpc://h:1"})
