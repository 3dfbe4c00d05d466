"""outputd.config.load: precedence, origins, every problem with its place."""

from __future__ import annotations

import os
import re
import typing
from pathlib import Path

import pytest

from outputd.config import InvalidSettings, TcpAddress, UnixAddress, load, load_file
from outputd.config.settings import sections, table

ENVIRON = {"HOME": "/home/ed", "XDG_RUNTIME_DIR": "/run/user/7"}


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return str(path)


def problems(tmp_path: Path, text: str) -> list[str]:
    """What is said of a file, its directory left out."""
    with pytest.raises(InvalidSettings) as caught:
        load({}, ENVIRON, write(tmp_path, text))
    return [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]


class TestDefaults:
    def test_no_file_is_needed(self) -> None:
        loaded = load({}, ENVIRON)
        config = loaded.config
        assert config.mount.path == "/home/ed/outputd"
        assert config.listen.addresses == (UnixAddress("/run/user/7/outputd.sock"),)
        assert config.state.dir == "/home/ed/.local/state/outputd"
        assert config.cache.dir == "/home/ed/.cache/outputd"
        assert config.remote.url is None
        assert config.outputs.initial_contents is False
        assert loaded.file is None
        assert {origin.kind for origin in loaded.origins.values()} == {"default"}

    def test_xdg_directories(self) -> None:
        environ = ENVIRON | {"XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "relative counts as unset"}
        config = load({}, environ).config
        assert config.state.dir == "/s/outputd"
        assert config.cache.dir == "/home/ed/.cache/outputd"

    def test_every_value_has_the_type_that_its_annotation_promises(self) -> None:
        # The loader passes values through `object`; this is what makes the annotations true.
        for section, cls in sections().items():
            made = getattr(load({}, ENVIRON).config, section)
            for name, hint in typing.get_type_hints(cls).items():
                value, origin = getattr(made, name), typing.get_origin(hint)
                expected = origin if isinstance(origin, type) and origin is tuple else hint
                assert isinstance(value, expected), f"[{section}] {name} = {value!r}, annotated {hint}"

    def test_every_key_is_described_in_one_sentence(self) -> None:
        for entry in table().values():
            assert re.fullmatch(r"[A-Z][^\n]*\.", entry.key.sentence), entry.full


class TestPrecedence:
    def test_flag_over_environment_over_file_over_default(self, tmp_path: Path) -> None:
        file = write(tmp_path, '[mount]\npath = "/file"\n[log]\nlevel = "error"\nformat = "json"\n')
        environ = ENVIRON | {"OUTPUTD_MOUNT_PATH": "/environment", "OUTPUTD_LOG_LEVEL": "debug"}
        loaded = load({"mount.path": "/flag", "cache.dir": None}, environ, file)
        assert loaded.config.mount.path == "/flag"
        assert loaded.config.log.level == "debug"
        assert loaded.config.log.format == "json"
        assert str(loaded.origins["mount.path"]) == "--mount"
        assert str(loaded.origins["log.level"]) == "OUTPUTD_LOG_LEVEL"
        assert str(loaded.origins["log.format"]) == f"{file}:5"
        assert str(loaded.origins["cache.dir"]) == "default"

    def test_the_usual_file_and_the_one_the_environment_names(self, tmp_path: Path) -> None:
        usual = tmp_path / "outputd"
        usual.mkdir()
        write(usual, '[log]\nlevel = "debug"\n')
        other = tmp_path / "other.toml"
        other.write_text('[log]\nlevel = "error"\n')
        environ = ENVIRON | {"XDG_CONFIG_HOME": str(tmp_path)}
        assert load({}, environ).config.log.level == "debug"
        assert load({}, environ | {"OUTPUTD_CONFIG": str(other)}).config.log.level == "error"
        assert (
            load({}, environ | {"OUTPUTD_CONFIG": str(other)}, str(usual / "config.toml")).config.log.level
            == "debug"
        )

    def test_a_file_that_is_named_must_exist(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidSettings, match=r"/none\.toml: no such file"):
            load({}, ENVIRON, str(tmp_path / "none.toml"))

    def test_paths_start_from_who_names_them(self, tmp_path: Path) -> None:
        file = write(tmp_path, '[cache]\ndir = "blobs"\n[state]\ndir = "~/state/../kept"\n')
        config = load({"mount.path": "here"}, ENVIRON, file).config
        assert config.cache.dir == f"{tmp_path}/blobs"
        assert config.state.dir == "/home/ed/kept"
        assert config.mount.path == f"{os.getcwd()}/here"

    def test_a_flag_can_unset(self, tmp_path: Path) -> None:
        file = write(tmp_path, '[remote]\nurl = "grpc://h:1"\n')
        assert load({}, ENVIRON, file).config.remote.url == "grpc://h:1"
        assert load({"remote.url": ""}, ENVIRON, file).config.remote.url is None

    def test_load_file_looks_at_nothing_else(self, tmp_path: Path) -> None:
        environ = ENVIRON | {"OUTPUTD_LOG_LEVEL": "nonsense"}
        assert load_file(write(tmp_path, ""), environ).config.log.level == "info"


class TestEnvironment:
    def test_every_kind_can_be_set(self) -> None:
        environ = ENVIRON | {
            "OUTPUTD_LISTEN_ADDRESSES": "unix:/a.sock, 127.0.0.1:80",
            "OUTPUTD_MOUNT_ALLOW_OTHER": "yes",
            "OUTPUTD_MOUNT_ENTRY_TIMEOUT": "1.5",
            "OUTPUTD_REMOTE_MAX_CONCURRENT": "3",
            "OUTPUTD_REMOTE_MAX_BATCH_BYTES": "1 MiB",
            "OUTPUTD_REMOTE_HEADERS": "x-a=1,authorization=@/t",
        }
        config = load({}, environ).config
        assert config.listen.addresses == (UnixAddress("/a.sock"), TcpAddress("127.0.0.1", 80))
        assert config.mount.allow_other is True
        assert config.mount.entry_timeout == 1.5
        assert config.remote.max_concurrent == 3
        assert config.remote.max_batch_bytes == 1 << 20
        assert config.remote.headers == (("x-a", "1"), ("authorization", "@/t"))

    def test_problems_name_the_variable(self) -> None:
        environ = ENVIRON | {
            "OUTPUTD_MOUNT_PAHT": "/x",
            "OUTPUTD_REMOTE_TIMEOUT": "soon",
            "OUTPUTD_OTHER": "not ours",
        }
        with pytest.raises(InvalidSettings) as caught:
            load({}, environ)
        assert [str(problem) for problem in caught.value.problems] == [
            "OUTPUTD_MOUNT_PAHT: no such setting; did you mean OUTPUTD_MOUNT_PATH?",
            "OUTPUTD_REMOTE_TIMEOUT: [remote] timeout: 'soon' is not a number of seconds from 0.1 to 1e+09",
        ]


class TestProblems:
    def test_all_at_once_in_the_order_of_the_file(self, tmp_path: Path) -> None:
        text = """\
# a comment with [brackets]
[mount]
pth = "/x"
allow_other = "maybe"
[remot]
[remote]
url = "http://x"
max_concurrent = 0
dir = "/x"
[log]
level = "loud"
"""
        assert problems(tmp_path, text) == [
            "config.toml:3: [mount] pth: no such key; did you mean path?",
            "config.toml:4: [mount] allow_other: 'maybe' is not true or false",
            "config.toml:5: [remot]: no such section; did you mean remote?; there are mount, listen, state, cache, "
            "remote, outputs, crawl, prefetch, log and [remotes.NAME]",
            "config.toml:7: [remote] url: 'http://x' is not a server; write grpc://HOST:PORT, grpcs://HOST:PORT or "
            "unix:/PATH",
            "config.toml:8: [remote] max_concurrent: 0 is not a whole number from 1 to 10000",
            "config.toml:9: [remote] dir: no such key; did you mean [state] dir?",
            "config.toml:11: [log] level: 'loud' is not one of debug, info, warning, error",
        ]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (
                "mount = 3\n",
                "config.toml:1: [mount]: a section is a table; write [mount] on a line of its own",
            ),
            ("\n[cache]\n\ndir = 3\n", "config.toml:4: [cache] dir: 3 is not a path; put it in quotes"),
            ('[cache]\ndir = ""\n', "config.toml:2: [cache] dir: an empty path"),
            ('[cache]\ndir = "~bob/x"\n', "config.toml:2: [cache] dir: '~bob/x': other users' homes"),
            ('[cache]\ndir = "$TMP/x"\n', "config.toml:2: [cache] dir: '$TMP/x': only $XDG_RUNTIME_DIR, "),
            (
                "[listen]\naddresses = []\n",
                "config.toml:2: [listen] addresses: [] is not a list of addresses",
            ),
            (
                '[listen]\naddresses = "unix:/x"\n',
                "config.toml:2: [listen] addresses: 'unix:/x' is not a list",
            ),
            (
                '[listen]\naddresses = ["a:1", "a:1"]\n',
                "config.toml:2: [listen] addresses: 'a:1' stands twice",
            ),
            ("[mount]\nattr_timeout = true\n", "config.toml:2: [mount] attr_timeout: true is not a number"),
            ("[mount]\nattr_timeout = nan\n", "config.toml:2: [mount] attr_timeout: nan is not a number"),
            (
                '[remote]\nmax_batch_bytes = "1 Mib"\n',
                "config.toml:2: [remote] max_batch_bytes: '1 Mib' is not a size",
            ),
            (
                "[remote]\nmax_batch_bytes = 9\n",
                "config.toml:2: [remote] max_batch_bytes: 9 is not a size from 1 KiB",
            ),
            ("[log]\nlevel = ['info']\n", "config.toml:2: [log] level: ['info'] is not one of debug"),
            (
                "[remote.headers]\nA = 'x'\n",
                "config.toml:1: [remote] headers: header 'A': a name has lowercase letters",
            ),
            ("[remote]\nheaders = 'x'\n", "config.toml:2: [remote] headers: not a table of headers"),
            ('[log]\nlevel = "info\n', "config.toml:2: not TOML: Illegal character '\\n'"),
            ("[log]\nlevel = [\n", "config.toml:2: not TOML: Invalid value"),
            ("[log]\nlevel = 'info'\nlevel = 'info'\n", "config.toml:3: not TOML: Cannot overwrite a value"),
        ],
    )
    def test_each(self, tmp_path: Path, text: str, expected: str) -> None:
        (said,) = problems(tmp_path, text)
        assert said.startswith(expected)

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "config.toml").write_bytes(b"[log]\n# \xff\n")
        with pytest.raises(InvalidSettings, match=r"config\.toml:2: not UTF-8 text"):
            load({}, ENVIRON, str(tmp_path / "config.toml"))

    def test_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidSettings, match=r"cannot be read: Is a directory"):
            load({}, ENVIRON, str(tmp_path))


class TestDisagreements:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (
                '[cache]\ndir = "~/outputd/cache"\n',
                "config.toml:2: [cache] dir: /home/ed/outputd/cache lies inside the mount /home/ed/outputd",
            ),
            (
                '[state]\ndir = "~"\n',
                "default: [mount] path: /home/ed/outputd lies inside state.dir /home/ed;",
            ),
            (
                '[listen]\naddresses = ["unix:~/outputd/s"]\n',
                "config.toml:2: [listen] addresses: unix:/home/ed/outputd/s lies inside the mount",
            ),
            (
                '[remote]\nurl = "grpc://h:1"\nca_file = "/ca"\n',
                "config.toml:3: [remote] ca_file: grpc://h:1 is not encrypted",
            ),
            (
                '[remote]\nurl = "grpcs://h"\nclient_key = "/k"\n',
                "config.toml:3: [remote] client_key: set without client_cert",
            ),
            (
                '[remote]\nurl = "grpc://[::1]:80"\n[listen]\naddresses = ["[::1]:80"]\n',
                "config.toml:2: [remote] url: grpc://[::1]:80 is where outputd itself listens",
            ),
        ],
    )
    def test_each(self, tmp_path: Path, text: str, expected: str) -> None:
        (said,) = problems(tmp_path, text)
        assert said.startswith(expected)

    def test_a_common_prefix_of_names_is_not_inside(self) -> None:
        flags = {"mount.path": "/a/out", "cache.dir": "/a/out-cache", "state.dir": "/a/outer"}
        assert load(flags, ENVIRON).config.cache.dir == "/a/out-cache"
