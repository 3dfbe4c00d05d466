"""From the settings of `[remote]` to the options of a connection, header files read. Never connects.

A module of its own, for it needs the remote store, and with it gRPC, which most commands do without.
"""

from __future__ import annotations

from outputd.config.settings import Remote
from outputd.errors import Invalid
from outputd.store.remote.endpoint import RemoteOptions


def remote_options(settings: Remote) -> RemoteOptions:
    """Raises Invalid for a header's file that cannot be read."""
    return RemoteOptions(
        timeout=settings.timeout,
        retry_seconds=settings.retry_seconds,
        max_concurrent=settings.max_concurrent,
        max_batch_bytes=settings.max_batch_bytes,
        headers={name: _value(name, text) for name, text in settings.headers},
        ca_file=settings.ca_file,
        client_cert=settings.client_cert,
        client_key=settings.client_key,
    )


def _value(name: str, text: str) -> str:
    if not text.startswith("@"):
        return text
    path = text[1:]
    try:
        with open(path, encoding="ascii") as file:
            value = file.read().strip()
    except OSError as wrong:
        raise Invalid(f"[remote] headers {name}: {path} cannot be read: {wrong.strerror}") from wrong
    except UnicodeDecodeError:
        value = ""
    if not value or not value.isprintable():
        # Not shown, and not chained: it may be a secret.
        raise Invalid(f"[remote] headers {name}: {path} does not hold one line of printable ASCII text")
    return value
