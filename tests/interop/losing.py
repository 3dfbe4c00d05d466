"""A real REv2 server that loses blobs: their files are taken away behind its back."""

from __future__ import annotations

from pathlib import Path

import grpc

from tests.service_client import Cas, digest_of


class Losing:
    """A server and the directory of its blobs."""

    def __init__(self, directory: Path, url: str, channel: grpc.Channel) -> None:
        self._directory = directory
        self.url = url
        self.cas = Cas(channel)

    def lose(self, data: bytes) -> None:
        """Take its file away, as whoever frees a disk in a hurry."""
        hash_ = digest_of(data).hash
        found = [
            p for p in self._directory.rglob("*") if p.is_file() and "".join(p.parts[-3:]).endswith(hash_)
        ]
        assert found, f"the server keeps {hash_} nowhere"
        for path in found:
            path.unlink()
        assert self.cas.missing([digest_of(data)]) == {hash_}
