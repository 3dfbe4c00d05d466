"""Reading what nobody has read yet through a REv2 server, beside a raw client of the same server: `python -m bench.macro.fetching`.

The server is a second outputd without a remote, on a unix socket of the same machine.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import uuid
from collections.abc import Iterator
from functools import partial

import grpc

from bench.macro.daemon import Daemon, heading, measured, running_daemon
from outputd._proto import any_pb2
from outputd._proto import bazel_output_service_pb2 as service
from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from outputd._proto import bytestream_pb2 as bytestream
from outputd._proto import remote_execution_pb2 as reapi

_MIB = 1 << 20
_PIECE = 2 * _MIB
_BYTE_STREAM = "/google.bytestream.ByteStream/"


def digest_of(data: bytes) -> reapi.Digest:
    return reapi.Digest(hash=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


class Raw:
    """A client of the server that does nothing else."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._read = channel.unary_stream(
            _BYTE_STREAM + "Read",
            bytestream.ReadRequest.SerializeToString,
            bytestream.ReadResponse.FromString,
        )
        self._write = channel.stream_unary(
            _BYTE_STREAM + "Write",
            bytestream.WriteRequest.SerializeToString,
            bytestream.WriteResponse.FromString,
        )

    def put(self, data: bytes) -> reapi.Digest:
        digest = digest_of(data)
        name = f"uploads/{uuid.uuid4()}/blobs/{digest.hash}/{digest.size_bytes}"

        def requests() -> Iterator[bytestream.WriteRequest]:
            for at in range(0, len(data), _PIECE):
                piece = data[at : at + _PIECE]
                yield bytestream.WriteRequest(
                    resource_name=name, write_offset=at, data=piece, finish_write=at + len(piece) == len(data)
                )

        self._write(requests())
        return digest

    def read(self, *digests: reapi.Digest, most: int = 0) -> None:
        for digest in digests:
            name = f"blobs/{digest.hash}/{digest.size_bytes}"
            for _ in self._read(bytestream.ReadRequest(resource_name=name, read_limit=most)):
                pass

    def keep(self, digest: reapi.Digest, path: str) -> None:
        """Read, hash, and write to a file: what anybody must do who keeps it."""
        hasher = hashlib.sha256()
        name = f"blobs/{digest.hash}/{digest.size_bytes}"
        with open(path, "wb", buffering=0) as file:
            for reply in self._read(bytestream.ReadRequest(resource_name=name)):
                hasher.update(reply.data)
                file.write(reply.data)
        assert hasher.hexdigest() == digest.hash


def stage(daemon: Daemon, artifacts: dict[str, reapi.Digest]) -> None:
    request = service.StageArtifactsRequest(build_id="b")
    for path, digest in artifacts.items():
        locator = any_pb2.Any()
        locator.Pack(rev2.FileArtifactLocator(digest=digest))
        request.artifacts.add(path=path, locator=locator)
    daemon.call("StageArtifacts", request, service.StageArtifactsResponse)


def read_all(paths: list[str]) -> None:
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.read(_MIB):
                pass


def read_at(path: str, offset: int, size: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.pread(fd, size, offset)
    finally:
        os.close(fd)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000, help="small files, of 4 KiB")
    parser.add_argument("--size", type=int, default=1024, help="MiB of the large ones")
    options = parser.parse_args(arguments)
    size = options.size * _MIB
    with (
        running_daemon() as upstream,
        running_daemon("--remote", upstream.address) as daemon,
        grpc.insecure_channel(upstream.address) as channel,
    ):
        raw = Raw(channel)
        small = [raw.put(os.urandom(4096)) for _ in range(options.files)]
        large = [raw.put(os.urandom(size)) for _ in range(2)]
        top = daemon.start_build("base", "b")
        stage(daemon, {f"small/{index}": digest for index, digest in enumerate(small)})
        stage(daemon, {f"large/{index}": digest for index, digest in enumerate(large)})
        paths = [f"{top}/small/{index}" for index in range(options.files)]
        whole, part = (f"{top}/large/{index}" for index in range(2))
        heading("raw")
        measured(
            daemon,
            f"{options.files} x 4 KiB, cold",
            partial(read_all, paths),
            partial(raw.read, *small),
        )
        measured(daemon, f"{options.files} x 4 KiB, again", partial(read_all, paths), None)
        measured(
            daemon,
            f"last 4 KiB of {options.size} MiB, cold",
            partial(read_at, part, size - 4096, 4096),
            None,
        )
        measured(
            daemon,
            f"first MiB of {options.size} MiB, cold",
            partial(read_at, whole, 0, _MIB),
            partial(raw.read, large[0], most=_MIB),
        )
        measured(
            daemon,
            f"{options.size} MiB from beginning to end, cold",
            partial(read_all, [whole]),
            partial(raw.read, large[0]),
        )
        measured(
            daemon,
            "a raw client that hashes and keeps it",
            partial(raw.keep, large[0], f"{daemon.plain}/kept"),
            None,
        )
        measured(daemon, f"{options.size} MiB, again", partial(read_all, [whole]), None)


if __name__ == "__main__":
    main()
