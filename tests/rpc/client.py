"""Calls BazelOutputService as Bazel does, over a real socket; one method for each RPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc.aio

from outputd._proto import any_pb2
from outputd._proto import bazel_output_service_pb2 as bos
from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from outputd._proto import remote_execution_pb2 as reapi
from outputd.builds.builds import Builds
from outputd.digest import Digest, DigestFunction
from outputd.rpc.bazel_output_service import SERVICE, BazelOutputService
from outputd.rpc.client import Stub
from outputd.rpc.services import service_handler
from tests.unit.builds.world import BASE, EXECROOT, PREFIX, World, world
from tests.unit.rpc.loopback import served

TYPE = "type.googleapis.com/bazel_output_service_rev2."
Stat: TypeAlias = bos.BatchStatResponse.Stat

_TIMEOUT = 30.0


class Client:
    """Of one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._stub = Stub(channel, SERVICE)

    def raw(self, method: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
        """For requests that no message can be: bytes in, bytes out, gRPC's own errors."""
        return self.channel.unary_unary(
            f"/{SERVICE.full_name}/{method}", request_serializer=bytes, response_deserializer=bytes
        )

    async def clean(self, base: str = BASE) -> None:
        await self._stub.call(
            "Clean", bos.CleanRequest(output_base_id=base), bos.CleanResponse, timeout=_TIMEOUT
        )

    async def start(self, build_id: str = "b1", base: str = BASE, **changes: Any) -> bos.StartBuildResponse:
        """`changes` replaces fields of the request."""
        return await self._stub.call(
            "StartBuild", start_request(build_id, base, **changes), bos.StartBuildResponse, timeout=_TIMEOUT
        )

    async def stage(
        self, artifacts: Sequence[bos.StageArtifactsRequest.Artifact], build_id: str = "b1"
    ) -> Sequence[bos.StageArtifactsResponse.Response]:
        request = bos.StageArtifactsRequest(build_id=build_id, artifacts=artifacts)
        reply = await self._stub.call("StageArtifacts", request, bos.StageArtifactsResponse, timeout=_TIMEOUT)
        return reply.responses

    async def finalize_artifacts(
        self, artifacts: Sequence[bos.FinalizeArtifactsRequest.Artifact], build_id: str = "b1"
    ) -> None:
        request = bos.FinalizeArtifactsRequest(build_id=build_id, artifacts=artifacts)
        await self._stub.call("FinalizeArtifacts", request, bos.FinalizeArtifactsResponse, timeout=_TIMEOUT)

    async def finalize_build(self, build_id: str = "b1", *, successful: bool = True) -> None:
        request = bos.FinalizeBuildRequest(build_id=build_id, build_successful=successful)
        await self._stub.call("FinalizeBuild", request, bos.FinalizeBuildResponse, timeout=_TIMEOUT)

    async def stat(self, *paths: str, build_id: str = "b1") -> Sequence[bos.BatchStatResponse.StatResponse]:
        request = bos.BatchStatRequest(build_id=build_id, paths=paths)
        reply = await self._stub.call("BatchStat", request, bos.BatchStatResponse, timeout=_TIMEOUT)
        return reply.responses


def start_request(build_id: str, base: str = BASE, **changes: Any) -> bos.StartBuildRequest:
    """As Bazel sends it. `args` may be replaced by fields of StartBuildArgs, or by an Any as a whole."""
    fields: dict[str, Any] = {
        "version": 1,
        "output_base_id": base,
        "build_id": build_id,
        "output_path_prefix": PREFIX,
        "output_path_aliases": {f"{EXECROOT}/bazel-out": "."},
        "args": {},
    }
    fields |= changes
    if isinstance(fields["args"], Mapping):
        defaults = {
            "remote_cache": "grpc://cache.example.com",
            "instance_name": "main",
            "digest_function": reapi.DigestFunction.SHA256,
        }
        args = rev2.StartBuildArgs(**(defaults | dict(fields["args"])))
        fields["args"] = any_pb2.Any(type_url=f"{TYPE}StartBuildArgs", value=args.SerializeToString())
    return bos.StartBuildRequest(**fields)


def proto(digest: Digest) -> reapi.Digest:
    return reapi.Digest(hash=digest.hash_hex, size_bytes=digest.size)


def locator(digest: Digest) -> any_pb2.Any:
    value = rev2.FileArtifactLocator(digest=proto(digest)).SerializeToString()
    return any_pb2.Any(type_url=f"{TYPE}FileArtifactLocator", value=value)


def file(path: str, digest: Digest) -> bos.StageArtifactsRequest.Artifact:
    return bos.StageArtifactsRequest.Artifact(path=path, locator=locator(digest))


def tree(
    path: str, tree_digest: Digest | None, root_digest: Digest | None = None
) -> bos.StageArtifactsRequest.Artifact:
    value = rev2.TreeArtifactLocator(
        tree_digest=None if tree_digest is None else proto(tree_digest),
        root_directory_digest=None if root_digest is None else proto(root_digest),
    )
    packed = any_pb2.Any(type_url=f"{TYPE}TreeArtifactLocator", value=value.SerializeToString())
    return bos.StageArtifactsRequest.Artifact(path=path, locator=packed)


def finalized(path: str, digest: Digest) -> bos.FinalizeArtifactsRequest.Artifact:
    return bos.FinalizeArtifactsRequest.Artifact(path=path, locator=locator(digest))


def digest_of(stat: Stat, function: DigestFunction = DigestFunction.SHA256) -> Digest:
    """What a file's locator says. Fails where there is none."""
    assert stat.file.HasField("locator")
    assert stat.file.locator.type_url == f"{TYPE}FileArtifactLocator"
    found = rev2.FileArtifactLocator.FromString(stat.file.locator.value).digest
    return Digest.parse(function, found.hash, found.size_bytes)


@asynccontextmanager
async def connected(builds: Builds) -> AsyncIterator[Client]:
    """A client of a server in this process, with Bazel's limits."""
    async with served(service_handler(SERVICE, BazelOutputService(builds))) as channel:
        yield Client(channel)


@asynccontextmanager
async def service(path: Path, **options: Any) -> AsyncIterator[tuple[World, Client]]:
    """One run of a daemon without a mount, and its client."""
    async with world(path, **options) as w, connected(w.builds) as client:
        yield w, client
