"""The sockets that build clients connect to: made, and removed, without harm to those of others. Serves nobody."""

from __future__ import annotations

import contextlib
import os
import socket
import stat

import grpc.aio

from outputd.config import Address
from outputd.errors import Precondition


def remove(sockets: list[str]) -> None:
    """Those that are there."""
    for path in sockets:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def bind(server: grpc.aio.Server, address: Address) -> None:
    """Have a server listen. Raises Precondition."""
    try:
        server.add_insecure_port(address.target)
    except RuntimeError as error:
        raise Precondition(
            f"cannot listen on {address}: it is in use, or its directory does not exist or is not ours"
        ) from error


def clear_stale_socket(path: str) -> None:
    """Remove a socket that nobody listens on. Raises Precondition when somebody does, or when it is no socket."""
    try:
        # unix_find_bsd() refuses the connection to any other kind of file as it does to a stale socket.
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise Precondition(
                f"cannot listen on unix:{path}: what is there is no socket; move it away, or choose another path"
            )
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            probe.connect(path)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
        return
    except OSError as error:
        raise Precondition(f"cannot listen on unix:{path}: {error.strerror or error}") from error
    raise Precondition(
        f"cannot listen on unix:{path}: another process listens there, is outputd running already?"
    )
