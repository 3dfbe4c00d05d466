"""Where outputd listens: a unix socket or a TCP port, parsed and printed. Never binds or connects.

Forms and limits: `unix:PATH` and `HOST:PORT`, as gRPC spells targets; a socket's path must fit `sockaddr_un.sun_path`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final

from outputd.errors import Invalid

SOCKET_PATH_LIMIT: Final = 103 if sys.platform == "darwin" else 107
"""Bytes of a unix socket's path: sun_path (104 on macOS, 108 on Linux) less the terminating NUL."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket. Access is governed by the permissions of its directory."""

    path: str

    @property
    def target(self) -> str:
        """What gRPC calls this address, for a server's port as for a client's channel."""
        return f"unix:{self.path}"

    @property
    def bazel(self) -> str:
        """How Bazel's flags spell it."""
        return f"unix:{self.path}"

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port. Whoever can reach it may do everything: nothing is authenticated or encrypted."""

    host: str
    port: int

    @property
    def target(self) -> str:
        """What gRPC calls this address, for a server's port as for a client's channel."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def bazel(self) -> str:
        """How Bazel's flags spell it; without a scheme Bazel would speak TLS."""
        return f"grpc://{self.target}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        import ipaddress

        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return self.target


Address = UnixAddress | TcpAddress


def parse_address(text: str) -> Address:
    """Raises Invalid unless `text` is `unix:PATH` or `HOST:PORT`. The path is taken as it stands."""
    if text.startswith("unix:"):
        return _unix(text.removeprefix("unix:"), text)
    if "://" in text or text.startswith("/"):
        raise Invalid(f"{text!r} is not an address; write unix:/absolute/path or HOST:PORT")
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise Invalid(
            f"{text!r} is not an address; write unix:/absolute/path or HOST:PORT, for instance 127.0.0.1:8980"
        )
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise Invalid(f"{text!r}: an IPv6 host stands in brackets, for instance [::1]:8980")
    return TcpAddress(host, int(port))


def _unix(path: str, text: str) -> UnixAddress:
    # unix:///path is the URI form of unix:/path; both are in use.
    path = path.removeprefix("//") if path.startswith("///") else path
    if not path.startswith("/"):
        raise Invalid(f"{text!r}: a socket's path is absolute, for instance unix:/run/user/1000/outputd.sock")
    length = len(path.encode("utf-8", "surrogateescape"))
    if length > SOCKET_PATH_LIMIT:
        raise Invalid(
            f"{text!r}: a socket's path has at most {SOCKET_PATH_LIMIT} bytes, this one has {length}"
        )
    return UnixAddress(path)
