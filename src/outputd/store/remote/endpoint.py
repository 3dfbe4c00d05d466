"""Where a remote is and how to reach it: its URL, the options of a connection, the gRPC channel. Never makes a call."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import grpc
import grpc.aio

from outputd import __version__
from outputd.errors import Invalid

_HOST_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:/@\s]+)(?::(\d{1,5}))?")
_HEADER_NAME: Final = re.compile(r"[0-9a-z_.-]+")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]*")
_FORMS: Final = "write grpc://HOST:PORT, grpcs://HOST:PORT, HOST:PORT (which is grpcs) or unix:/PATH"

# A server may send stream pieces and batches as large as it likes up to this; REv2 servers keep to 4 MiB.
_MAX_MESSAGE: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server."""

    url: str
    """As the user wrote it, for messages."""
    target: str
    """As gRPC names it."""
    secure: bool
    host: str = ""
    """Its name or address; empty behind a unix socket."""
    port: int = 0

    @property
    def uri(self) -> str:
        """As credential helpers are asked for it: Bazel gives them `https` whatever the channel is, and no port 443."""
        if not self.host:
            return self.target
        return f"https://{self.host}" + ("" if self.port == 443 else f":{self.port}")

    @property
    def near(self) -> bool:
        """Whether it is on this machine, as far as its name tells."""
        if not self.host or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """How to talk to a remote. Times in seconds."""

    timeout: float = 30.0
    """For one call, or for one piece of a stream."""
    retry_seconds: float = 30.0
    """Transient failures are tried again for so long after the last progress."""
    max_concurrent: int = 64
    """Calls at the same time; HTTP/2 servers commonly allow 100 streams."""
    max_batch_bytes: int = 3 << 20
    """Largest sum of blob sizes in one batch call; the server's limit counts when it is lower."""
    compression: str = "auto"
    """Zstandard where the server offers it: `zstd`; the same unless it is on this machine: `auto`; never: `off`."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every call, for instance `authorization`."""
    header_files: Mapping[str, str] = field(default_factory=dict)
    """Headers whose values are in files, by name; read again when the files change."""
    credential_helpers: Sequence[tuple[str, str]] = ()
    """Programs that tell headers, each with the pattern of the hosts it is for; an empty one fits all."""
    helper_timeout: float = 10.0
    helper_cache_duration: float = 1800.0
    """For what a helper tells without saying when it ends."""
    client_headers: Sequence[str] = ("authorization",)
    """Which headers of a client's call are sent with what is asked because of it, where no source above has them."""
    remember_authorization: float = 0.0
    """How long those serve for calls of our own."""
    netrc: str | None = None
    """A .netrc file, for the server's host, where neither a helper nor anybody else has an `authorization`."""
    ca_file: str | None = None
    """PEM certificates to trust instead of the system's."""
    client_cert: str | None = None
    client_key: str | None = None


def parse_endpoint(url: str) -> Endpoint:
    """Raises Invalid, with the forms that are right, unless `url` is one of them."""
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        # unix:///path is the URI form of unix:/path; both are in use.
        path = path.removeprefix("//") if path.startswith("///") else path
        if not path.startswith("/") or path.startswith("//"):
            raise Invalid(f"remote url {url!r}: a socket's path is absolute; {_FORMS}")
        return Endpoint(url, f"unix:{path}", secure=False)
    scheme, separator, rest = url.rpartition("://")
    if separator and scheme not in ("grpc", "grpcs"):
        raise Invalid(f"remote url {url!r}: the scheme {scheme!r} is not known; {_FORMS}")
    secure = scheme != "grpc"
    authority, _, instance = rest.partition("/")
    if instance:
        raise Invalid(
            f"remote url {url!r}: {instance!r} does not belong here; an instance name is set on its own"
        )
    found = _HOST_PORT.fullmatch(authority)
    if not found or (found[2] is None and not secure) or not 0 < int(found[2] or 443) < 65536:
        raise Invalid(f"remote url {url!r}: {authority!r} is not HOST:PORT; {_FORMS}")
    port = int(found[2] or 443)
    return Endpoint(url, f"dns:///{found[1]}:{port}", secure, found[1], port)


def check_headers(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """As gRPC takes them. Raises Invalid for what gRPC would refuse at every call."""
    checked = []
    for name, value in headers.items():
        name = name.lower()
        if not _HEADER_NAME.fullmatch(name) or name.startswith("grpc-") or name.endswith("-bin"):
            raise Invalid(
                f"remote header {name!r}: expected letters, digits, '_', '.', '-', neither grpc-… nor …-bin"
            )
        if not _HEADER_VALUE.fullmatch(value):
            # The value may be a secret; it is not shown.
            raise Invalid(f"remote header {name!r}: its value holds more than printable ASCII")
        checked.append((name, value))
    return tuple(checked)


def open_channel(endpoint: Endpoint, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    """A channel for the running loop; it connects when it is used."""
    arguments = [
        ("grpc.primary_user_agent", f"outputd/{__version__}"),
        ("grpc.max_receive_message_length", _MAX_MESSAGE),
        ("grpc.max_send_message_length", -1),
        # Sets TCP_USER_TIMEOUT too: bytes that a dead peer never acknowledges break the connection after the timeout, and
        # not only when the kernel gives up a quarter of an hour later.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # The defaults wait for up to two minutes before a server that came back is tried again.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # Two stores in a process share nothing, neither a connection nor the state of a failed one.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if credentials is None:
        return grpc.aio.insecure_channel(endpoint.target, options=arguments)
    return grpc.aio.secure_channel(endpoint.target, credentials, options=arguments)
