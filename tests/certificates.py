"""Certificates for one test, made in it: an authority's, a server's and a client's, as files that may be replaced at any time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import trustme


class Certificates:
    """The files of one side or the other. `renew` puts new ones in their place, of a new authority if asked for."""

    def __init__(self, directory: Path) -> None:
        self.ca: Final = directory / "ca.pem"
        self.server: Final = (directory / "server.pem", directory / "server.key")
        self.client: Final = (directory / "client.pem", directory / "client.key")
        self._authority = trustme.CA()
        self.renew()

    def renew(self, *, authority: bool = False) -> None:
        if authority:
            self._authority = trustme.CA()
        _replace(self.ca, self._authority.cert_pem.bytes())
        for files, names in (
            (self.server, ("localhost", "127.0.0.1")),
            (self.client, ("ed@example.com",)),
        ):
            issued = self._authority.issue_cert(*names)
            certificate, key = files
            _replace(certificate, b"".join(blob.bytes() for blob in issued.cert_chain_pems))
            _replace(key, issued.private_key_pem.bytes())

    @property
    def server_pair(self) -> tuple[bytes, bytes]:
        """Key and certificate, as grpc.ssl_server_credentials takes them."""
        certificate, key = self.server
        return key.read_bytes(), certificate.read_bytes()


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    os.replace(fresh, path)
