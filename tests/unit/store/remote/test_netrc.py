"""What a .netrc says, as Bazel reads it."""

from __future__ import annotations

import pytest

from outputd.store.remote.netrc import parse


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        (b"", {}),
        (b"machine a login l password p", {b"a": (b"l", b"p")}),
        (b"machine a\n\tlogin l\n\taccount x\n\n\tpassword\n\tp\n", {b"a": (b"l", b"p")}),
        (
            b"machine a password p#1 login l\r\nmachine b login m password q",
            {b"a": (b"l", b"p#1"), b"b": (b"m", b"q")},
        ),
        (b"# machine x login y password z\nmachine a\n# no\nlogin l", {b"a": (b"l", b"")}),
        (b"machine a login l password p machine a login m password q", {b"a": (b"m", b"q")}),
        (b"machine a", {}),
        (b"default login l password p\nmachine a login m password q\nnonsense", {b"": (b"l", b"p")}),
        (b"macdef init\ncd /x\nlogin no\n\nmachine a login l password p", {b"a": (b"l", b"p")}),
        (b"machine a login l password p\nmacdef init\nmachine b", {b"a": (b"l", b"p")}),
        (b"machine machine login login password password", {b"machine": (b"login", b"password")}),
        (b"machine a login caf\xe9 password \xff", {b"a": (b"caf\xe9", b"\xff")}),
    ],
)
def test_entries(text: bytes, entries: dict[bytes, tuple[bytes, bytes]]) -> None:
    assert parse(text) == entries


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (b"login l", "line 1 has what"),
        (b"machine a login l\nport 21", "line 2 has what"),
        (b"machine a login l # a comment", "line 1 has what"),
        (b"\nmachine", "before line 2 is complete"),
        (b"machine a login l password\n", "before line 1 is complete"),
    ],
)
def test_what_is_none(text: bytes, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        parse(text)
