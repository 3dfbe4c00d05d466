"""outputd.config.address: forms, limits, how others spell it."""

from __future__ import annotations

import pytest

from outputd.config import TcpAddress, UnixAddress
from outputd.config.address import SOCKET_PATH_LIMIT, parse_address
from outputd.errors import Invalid

ENVIRON = {"HOME": "/home/ed", "XDG_RUNTIME_DIR": "/run/user/7"}


class TestAddress:
    @pytest.mark.parametrize(
        ("text", "address", "target", "bazel"),
        [
            ("unix:/run/x.sock", UnixAddress("/run/x.sock"), "unix:/run/x.sock", "unix:/run/x.sock"),
            ("unix:///run/x.sock", UnixAddress("/run/x.sock"), "unix:/run/x.sock", "unix:/run/x.sock"),
            ("localhost:80", TcpAddress("localhost", 80), "localhost:80", "grpc://localhost:80"),
            ("[::1]:80", TcpAddress("::1", 80), "[::1]:80", "grpc://[::1]:80"),
        ],
    )
    def test_forms(self, text: str, address: UnixAddress | TcpAddress, target: str, bazel: str) -> None:
        assert parse_address(text) == address
        assert (address.target, address.bazel) == (target, bazel)
        assert parse_address(str(address)) == address

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "/run/x.sock",
            "unix:",
            "unix:x",
            "h",
            "h:",
            ":80",
            "h:0",
            "h:65536",
            "h:x",
            "::1:80",
            "grpc://h:80",
        ],
    )
    def test_refused(self, text: str) -> None:
        with pytest.raises(Invalid):
            parse_address(text)

    def test_length_of_a_socket_path(self) -> None:
        fits = "/" + "x" * (SOCKET_PATH_LIMIT - 1)
        assert parse_address(f"unix:{fits}") == UnixAddress(fits)
        with pytest.raises(
            Invalid, match=f"at most {SOCKET_PATH_LIMIT} bytes, this one has {SOCKET_PATH_LIMIT + 1}"
        ):
            parse_address(f"unix:{fits}x")
        # It is bytes that count.
        with pytest.raises(Invalid):
            parse_address(f"unix:{fits[:-1]}é")

    @pytest.mark.parametrize(
        ("host", "loopback"),
        [
            ("localhost", True),
            ("127.9.9.9", True),
            ("::1", True),
            ("0.0.0.0", False),
            ("::", False),
            ("example.com", False),
        ],
    )
    def test_loopback(self, host: str, loopback: bool) -> None:
        assert TcpAddress(host, 1).loopback is loopback
