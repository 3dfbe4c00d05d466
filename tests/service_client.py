"""A plain client of the protocols for tests: generated messages over a synchronous channel, nothing of outputd's own clients.

`Cas` puts and asks for blobs as any REv2 client does, `BuildClient` makes the calls of BazelOutputService. Never looks into a
mount.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias, TypeVar

import blake3
import grpc
from google.protobuf.message import Message

from outputd._proto import any_pb2, status_pb2
from outputd._proto import bazel_output_service_pb2 as service
from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from outputd._proto import bytestream_pb2 as bytestream
from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction

SECONDS: Final = 60.0
"""For any call."""
_CAS: Final = "/build.bazel.remote.execution.v2.ContentAddressableStorage/"
_BATCH_BYTES: Final = 2 << 20
_PIECE: Final = 1 << 20

SHA256: Final = DigestFunction.SHA256
_HASHES: Final[dict[DigestFunction, Callable[[bytes], str]]] = {
    DigestFunction.SHA256: lambda data: hashlib.sha256(data).hexdigest(),
    DigestFunction.SHA1: lambda data: hashlib.sha1(data).hexdigest(),
    DigestFunction.MD5: lambda data: hashlib.md5(data).hexdigest(),
    DigestFunction.SHA384: lambda data: hashlib.sha384(data).hexdigest(),
    DigestFunction.SHA512: lambda data: hashlib.sha512(data).hexdigest(),
    DigestFunction.BLAKE3: lambda data: blake3.blake3(data).hexdigest(),
    # No library has it; its own test compares ours with the published vectors.
    DigestFunction.SHA256TREE: lambda data: Digest.of(DigestFunction.SHA256TREE, data).hash_hex,
}
_NAMED: Final = {DigestFunction.BLAKE3: "blake3/", DigestFunction.SHA256TREE: "sha256tree/"}
"""Functions that a resource name must say (REv2, `ByteStream`)."""

M = TypeVar("M", bound=Message)
Locator: TypeAlias = "reapi.Digest | rev2.TreeArtifactLocator | any_pb2.Any"


def digest_of(data: bytes, function: DigestFunction = SHA256) -> reapi.Digest:
    return reapi.Digest(hash=_HASHES[function](data), size_bytes=len(data))


def pack(locator: Locator) -> any_pb2.Any:
    """In the Any that requests carry."""
    if isinstance(locator, any_pb2.Any):
        return locator
    packed = any_pb2.Any()
    packed.Pack(rev2.FileArtifactLocator(digest=locator) if isinstance(locator, reapi.Digest) else locator)
    return packed


def call(channel: grpc.Channel, method: str, request: Message | bytes, reply: type[M]) -> M:
    """One request, given as a message or as its bytes, and one reply."""
    invoke = channel.unary_unary(method, None, reply.FromString)
    answer: M = invoke(
        request if isinstance(request, bytes) else request.SerializeToString(), timeout=SECONDS
    )
    return answer


class Cas:
    """One instance of a REv2 CAS."""

    def __init__(self, channel: grpc.Channel, instance: str = "", function: DigestFunction = SHA256) -> None:
        self._channel = channel
        self._instance = instance
        self._function = function
        self._number = reapi.DigestFunction.Value.Value(function.name)

    def put(self, data: bytes) -> reapi.Digest:
        """One blob."""
        return self.put_all([data])[0]

    def put_all(self, blobs: Sequence[bytes]) -> list[reapi.Digest]:
        """Small ones in batches, each large one as a stream."""
        digests = [digest_of(data, self._function) for data in blobs]
        batch: list[tuple[reapi.Digest, bytes]] = []
        size = 0
        for digest, data in zip(digests, blobs, strict=True):
            if len(data) > _BATCH_BYTES:
                self._put_stream(digest, data)
                continue
            if size + len(data) > _BATCH_BYTES:
                self._put_batch(batch)
                batch, size = [], 0
            batch.append((digest, data))
            size += len(data)
        self._put_batch(batch)
        return digests

    def missing(self, digests: Iterable[reapi.Digest]) -> set[str]:
        """The hashes of those that it lacks."""
        request = reapi.FindMissingBlobsRequest(
            instance_name=self._instance, blob_digests=digests, digest_function=self._number
        )
        reply = call(self._channel, f"{_CAS}FindMissingBlobs", request, reapi.FindMissingBlobsResponse)
        return {digest.hash for digest in reply.missing_blob_digests}

    def _put_batch(self, batch: list[tuple[reapi.Digest, bytes]]) -> None:
        request = reapi.BatchUpdateBlobsRequest(
            instance_name=self._instance,
            requests=[
                reapi.BatchUpdateBlobsRequest.Request(digest=digest, data=data) for digest, data in batch
            ],
            digest_function=self._number,
        )
        reply = call(self._channel, f"{_CAS}BatchUpdateBlobs", request, reapi.BatchUpdateBlobsResponse)
        refused = [response for response in reply.responses if response.status.code]
        assert not refused, f"the CAS did not take {refused}"

    def _put_stream(self, digest: reapi.Digest, data: bytes) -> None:
        instance = f"{self._instance}/" if self._instance else ""
        function = _NAMED.get(self._function, "")
        name = f"{instance}uploads/{uuid.uuid4()}/blobs/{function}{digest.hash}/{digest.size_bytes}"

        def pieces() -> Iterator[bytes]:
            for offset in range(0, len(data), _PIECE):
                yield bytestream.WriteRequest(
                    resource_name=name,
                    write_offset=offset,
                    finish_write=offset + _PIECE >= len(data),
                    data=data[offset : offset + _PIECE],
                ).SerializeToString()

        write = self._channel.stream_unary(
            "/google.bytestream.ByteStream/Write", None, bytestream.WriteResponse.FromString
        )
        reply = write(pieces(), timeout=SECONDS)
        assert reply.committed_size == len(data)


class BuildClient:
    """Builds of one output base, one after the other."""

    def __init__(
        self,
        channel: grpc.Channel,
        outputs: object,
        base: str = "base",
        *,
        instance: str = "",
        function: DigestFunction = SHA256,
    ) -> None:
        """`outputs` is the directory that output paths are in."""
        self._channel = channel
        self._outputs = str(outputs)
        self.base: Final = base
        self._instance = instance
        self._number = reapi.DigestFunction.Value.Value(function.name)
        self.build_id = ""

    def start(self, build_id: str | None = None) -> None:
        """A build of a new id, or of the given one."""
        self.build_id = build_id or str(uuid.uuid4())
        arguments = any_pb2.Any()
        arguments.Pack(rev2.StartBuildArgs(instance_name=self._instance, digest_function=self._number))
        request = service.StartBuildRequest(
            version=1,
            output_base_id=self.base,
            build_id=self.build_id,
            args=arguments,
            output_path_prefix=self._outputs,
            output_path_aliases={"/execroot/workspace/bazel-out": "."},
        )
        reply = self.call("StartBuild", request, service.StartBuildResponse)
        assert reply.output_path_suffix == self.base

    def stage_request(self, artifacts: Mapping[str, Locator]) -> service.StageArtifactsRequest:
        request = service.StageArtifactsRequest(build_id=self.build_id)
        for path, locator in artifacts.items():
            request.artifacts.add(path=path, locator=pack(locator))
        return request

    def try_stage(self, artifacts: Mapping[str, Locator]) -> list[status_pb2.Status]:
        """What the daemon says of each."""
        request = self.stage_request(artifacts)
        reply = self.call("StageArtifacts", request, service.StageArtifactsResponse)
        assert len(reply.responses) == len(artifacts)
        return [response.status for response in reply.responses]

    def stage(self, artifacts: Mapping[str, Locator]) -> None:
        """All of them, for sure."""
        for path, status in zip(artifacts, self.try_stage(artifacts), strict=True):
            assert status.code == 0, f"{path}: {status.message}"

    def stat(self, paths: Iterable[str]) -> list[service.BatchStatResponse.StatResponse]:
        request = service.BatchStatRequest(build_id=self.build_id, paths=paths)
        reply = self.call("BatchStat", request, service.BatchStatResponse)
        assert len(reply.responses) == len(request.paths)
        return list(reply.responses)

    def digests(self, *paths: str) -> list[reapi.Digest | None]:
        """What stat tells of regular files; None where it tells no digest."""
        return [locator_in(found) for found in self.stat(paths)]

    def finalize_artifacts(self, artifacts: Mapping[str, Locator]) -> None:
        request = service.FinalizeArtifactsRequest(build_id=self.build_id)
        for path, locator in artifacts.items():
            request.artifacts.add(path=path, locator=pack(locator))
        self.call("FinalizeArtifacts", request, service.FinalizeArtifactsResponse)

    def finish(self) -> None:
        request = service.FinalizeBuildRequest(build_id=self.build_id, build_successful=True)
        self.call("FinalizeBuild", request, service.FinalizeBuildResponse)

    def clean(self) -> None:
        self.call("Clean", service.CleanRequest(output_base_id=self.base), service.CleanResponse)

    def call(self, method: str, request: Message | bytes, reply: type[M]) -> M:
        return call(self._channel, f"/bazel_output_service.BazelOutputService/{method}", request, reply)


def locator_in(found: service.BatchStatResponse.StatResponse) -> reapi.Digest | None:
    """The digest that a stat tells."""
    locator = rev2.FileArtifactLocator()
    if not found.stat.file.locator.Unpack(locator):
        return None
    return locator.digest
