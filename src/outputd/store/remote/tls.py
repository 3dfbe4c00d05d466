"""What a TLS connection is made with: authorities, our certificate, its key; read again when the files change. Opens no connection.

Certificates are renewed while we run, by programs that write one file after the other. What does not fit together, or cannot be
read, is left until the files change again, and what was read before stays in force.
"""

from __future__ import annotations

import logging
import ssl
from typing import Final

import grpc

from outputd.errors import Invalid
from outputd.store.remote.endpoint import RemoteOptions
from outputd.store.remote.watched import Watch

_log = logging.getLogger(__name__)


class Tls:
    """For one remote."""

    def __init__(self, options: RemoteOptions) -> None:
        """Raises Invalid for files that cannot be used."""
        if (options.client_cert is None) != (options.client_key is None):
            raise Invalid("remote client_cert and client_key: give both or neither")
        self._files: Final = {
            key: path
            for key, path in (
                ("ca_file", options.ca_file),
                ("client_cert", options.client_cert),
                ("client_key", options.client_key),
            )
            if path is not None
        }
        # Before they are read: what changes meanwhile is noticed.
        self._watch = Watch(list(self._files.values()))
        self._contents = self._read()
        self.credentials = _credentials(self._contents)
        self._generation = 0

    def generation(self) -> int:
        """Grows when `credentials` have become others. Looks at the files every few seconds."""
        if not self._watch.changed():
            return self._generation
        try:
            contents = self._read()
        except Invalid as error:
            _log.warning("%s; the certificates that were read before stay in force", error)
            return self._generation
        if contents != self._contents:
            self._contents = contents
            self.credentials = _credentials(contents)
            self._generation += 1
        return self._generation

    def _read(self) -> dict[str, bytes]:
        contents = {}
        for key, path in self._files.items():
            try:
                with open(path, "rb") as file:
                    contents[key] = file.read()
            except OSError as error:
                raise Invalid(f"remote {key} {path}: cannot be read: {error.strerror}") from error
        # gRPC would say nothing until the first handshake, and then not which file is to blame.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if "ca_file" in self._files:
                context.load_verify_locations(self._files["ca_file"])
        except (ssl.SSLError, ValueError) as error:
            raise Invalid(f"remote ca_file {self._files['ca_file']}: holds no PEM certificates") from error
        try:
            if "client_cert" in self._files:
                # An empty password, or OpenSSL would ask for one at the terminal.
                context.load_cert_chain(self._files["client_cert"], self._files["client_key"], b"")
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise Invalid(
                f"remote client_cert {self._files['client_cert']} and client_key {self._files['client_key']}: no certificate "
                "with its key, PEM and not encrypted"
            ) from error
        return contents


def _credentials(contents: dict[str, bytes]) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=contents.get("ca_file"),
        private_key=contents.get("client_key"),
        certificate_chain=contents.get("client_cert"),
    )
