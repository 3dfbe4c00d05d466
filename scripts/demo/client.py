"""The part of a build client: the calls that Bazel makes to a CAS and to the output service, in its order. Never reads a file.

It is small enough to be read as an example of the protocol: protos/bazel_output_service.proto.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Final

import grpc.aio

from outputd._proto import bazel_output_service_pb2 as service
from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from outputd._proto import bytestream_pb2 as bytestream
from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction
from outputd.rpc.client import CHANNEL_OPTIONS, Stub

_SECONDS: Final = 20.0
_BATCH_BYTES: Final = 2 << 20
_PIECE_BYTES: Final = 1 << 20


class Uploader:
    """Puts outputs into a CAS, as remote workers do."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._cas = Stub(channel, reapi.DESCRIPTOR.services_by_name["ContentAddressableStorage"])
        self._streams = Stub(channel, bytestream.DESCRIPTOR.services_by_name["ByteStream"])

    async def upload(self, blobs: Iterable[bytes]) -> None:
        """Small ones in batches, large ones as streams."""
        batch = reapi.BatchUpdateBlobsRequest(digest_function=reapi.DigestFunction.SHA256)
        room = _BATCH_BYTES
        for blob in blobs:
            if len(blob) > _BATCH_BYTES:
                await self._stream(blob)
                continue
            if len(blob) > room:
                await self._send(batch)
                del batch.requests[:]
                room = _BATCH_BYTES
            batch.requests.add(digest=_message(digest_of(blob)), data=blob)
            room -= len(blob)
        await self._send(batch)

    async def _send(self, batch: reapi.BatchUpdateBlobsRequest) -> None:
        reply = await self._cas.call(
            "BatchUpdateBlobs", batch, reapi.BatchUpdateBlobsResponse, timeout=_SECONDS
        )
        for response in reply.responses:
            assert response.status.code == 0, response.status.message

    async def _stream(self, blob: bytes) -> None:
        name = f"uploads/{uuid.uuid4()}/blobs/{digest_of(blob)}"

        async def pieces() -> AsyncIterator[bytestream.WriteRequest]:
            for offset in range(0, len(blob), _PIECE_BYTES):
                end = offset + _PIECE_BYTES
                yield bytestream.WriteRequest(
                    resource_name=name if offset == 0 else "",
                    write_offset=offset,
                    finish_write=end >= len(blob),
                    data=blob[offset:end],
                )

        await self._streams.send("Write", pieces(), bytestream.WriteResponse, timeout=_SECONDS)


class BuildClient:
    """One build of one workspace."""

    def __init__(self, channel: grpc.aio.Channel, output_base_id: str, mount: str) -> None:
        self._service = Stub(channel, service.DESCRIPTOR.services_by_name["BazelOutputService"])
        self._output_base_id = output_base_id
        self._mount = mount
        self._build_id = str(uuid.uuid4())

    async def start(self) -> str:
        """StartBuild; returns the directory where the outputs are."""
        request = service.StartBuildRequest(
            version=1,
            output_base_id=self._output_base_id,
            build_id=self._build_id,
            output_path_prefix=f"{self._mount}/outputs",
            output_path_aliases={"/home/you/project/bazel-out": "."},
        )
        request.args.Pack(rev2.StartBuildArgs(digest_function=reapi.DigestFunction.SHA256))
        reply = await self._service.call("StartBuild", request, service.StartBuildResponse, timeout=_SECONDS)
        return f"{self._mount}/outputs/{reply.output_path_suffix}"

    async def stage(self, outputs: Mapping[str, Digest]) -> None:
        """StageArtifacts: paths and digests, no bytes."""
        request = service.StageArtifactsRequest(build_id=self._build_id)
        for path, digest in outputs.items():
            request.artifacts.add(path=path).locator.Pack(rev2.FileArtifactLocator(digest=_message(digest)))
        reply = await self._service.call(
            "StageArtifacts", request, service.StageArtifactsResponse, timeout=_SECONDS
        )
        for path, response in zip(outputs, reply.responses, strict=True):
            assert response.status.code == 0, f"{path}: {response.status.message}"

    async def stat(self, paths: Iterable[str]) -> dict[str, Digest | None]:
        """BatchStat: the digest of each path that is a file; None for what is absent or something else."""
        request = service.BatchStatRequest(build_id=self._build_id, paths=paths)
        reply = await self._service.call("BatchStat", request, service.BatchStatResponse, timeout=_SECONDS)
        return {path: _digest(found) for path, found in zip(request.paths, reply.responses, strict=True)}

    async def finalize(self, outputs: Mapping[str, Digest]) -> None:
        """FinalizeArtifacts: this build will not change them any more."""
        request = service.FinalizeArtifactsRequest(build_id=self._build_id)
        for path, digest in outputs.items():
            request.artifacts.add(path=path).locator.Pack(rev2.FileArtifactLocator(digest=_message(digest)))
        await self._service.call(
            "FinalizeArtifacts", request, service.FinalizeArtifactsResponse, timeout=_SECONDS
        )

    async def end(self) -> None:
        """FinalizeBuild."""
        request = service.FinalizeBuildRequest(build_id=self._build_id, build_successful=True)
        await self._service.call("FinalizeBuild", request, service.FinalizeBuildResponse, timeout=_SECONDS)


def open_channel(target: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)


def digest_of(blob: bytes) -> Digest:
    return Digest.of(DigestFunction.SHA256, blob)


def _message(digest: Digest) -> reapi.Digest:
    return reapi.Digest(hash=digest.hash_hex, size_bytes=digest.size)


def _digest(found: service.BatchStatResponse.StatResponse) -> Digest | None:
    locator = rev2.FileArtifactLocator()
    if not found.stat.file.locator.Unpack(locator):
        return None
    return Digest.parse(DigestFunction.SHA256, locator.digest.hash, locator.digest.size_bytes)
