"""BazelOutputService: Bazel's side of a build to the verbs of builds. Only translates; what is true of a path is decided there.

Field numbers and meanings: protos/bazel_output_service.proto. Requests may have any size, replies stay below 4 MiB. No method's
permanent error is one that Bazel retries (UNKNOWN, INTERNAL, UNAVAILABLE and their like).
"""

from __future__ import annotations

from typing import Final

from outputd._proto import bazel_output_service_pb2 as bos
from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from outputd.builds.builds import BuildRequest, Builds
from outputd.digest import Digest, DigestFunction, supported_names
from outputd.errors import Invalid, OutputdError
from outputd.rpc.bazel_locators import LocatorCodec, unpack
from outputd.rpc.bazel_replies import StageReply, StatReply
from outputd.rpc.bulk import take_apart
from outputd.rpc.digests import told_function
from outputd.rpc.edge import Context, decode
from outputd.rpc.pace import paced
from outputd.rpc.resource_name import check_instance_name
from outputd.rpc.services import gives_bytes, takes_bytes

SERVICE: Final = bos.DESCRIPTOR.services_by_name["BazelOutputService"]

_VERSION: Final = 1
_ITEMS: Final = 2
"""Field number of `artifacts` and `paths`, in each of the three requests that have one."""


class BazelOutputService:
    """The service, for `services.service_handler`."""

    def __init__(self, builds: Builds) -> None:
        self._builds = builds
        self._codecs: dict[DigestFunction, LocatorCodec] = {}

    async def clean(self, request: bos.CleanRequest, _context: Context) -> bos.CleanResponse:
        await self._builds.clean(request.output_base_id)
        return bos.CleanResponse()

    async def start_build(self, request: bos.StartBuildRequest, _context: Context) -> bos.StartBuildResponse:
        started = await self._builds.start(_build_request(request))
        response = bos.StartBuildResponse(output_path_suffix=started.suffix)
        if started.modified is not None:
            response.initial_output_path_contents.build_id = started.modified.build_id
            response.initial_output_path_contents.modified_path_prefixes.extend(started.modified.prefixes)
        return response

    @takes_bytes
    @gives_bytes
    async def stage_artifacts(self, data: bytes, _context: Context) -> bytes:
        head, artifacts = await take_apart(data, _ITEMS, "StageArtifactsRequest")
        request = decode(bos.StageArtifactsRequest, head)
        reply = StageReply(len(artifacts), "StageArtifacts")
        codec = self._codec(request.build_id)
        at = 0
        async with self._builds.staging(request.build_id) as staging:
            async for part in paced(artifacts):
                reply.add(await staging.place(codec.artifacts(part, at)))
                at += len(part)
        return reply.message()

    async def finalize_build(
        self, request: bos.FinalizeBuildRequest, _context: Context
    ) -> bos.FinalizeBuildResponse:
        self._builds.finalize_build(request.build_id, successful=request.build_successful)
        return bos.FinalizeBuildResponse()

    @takes_bytes
    async def finalize_artifacts(self, data: bytes, _context: Context) -> bos.FinalizeArtifactsResponse:
        head, artifacts = await take_apart(data, _ITEMS, "FinalizeArtifactsRequest")
        request = decode(bos.FinalizeArtifactsRequest, head)
        codec = self._codec(request.build_id)
        at = 0
        async for part in paced(artifacts):
            # An Artifact of this request has the fields that one of StageArtifacts has.
            files: list[tuple[bytes, Digest]] = []
            for path, content in codec.artifacts(part, at):
                if isinstance(content, OutputdError):
                    raise content
                if isinstance(content, Digest):
                    files.append((path, content))
            self._builds.finalize_artifacts(request.build_id, files)
            at += len(part)
        return bos.FinalizeArtifactsResponse()

    @takes_bytes
    @gives_bytes
    async def batch_stat(self, data: bytes, _context: Context) -> bytes:
        head, paths = await take_apart(data, _ITEMS, "BatchStatRequest")
        request = decode(bos.BatchStatRequest, head)
        reply = StatReply(len(paths), self._codec(request.build_id))
        stats = self._builds.stats(request.build_id)
        async for part in paced(paths):
            reply.add(await stats.of(part))
        return reply.message()

    def _codec(self, build_id: str) -> LocatorCodec:
        """Raises Precondition for an unknown build."""
        function = self._builds.function(build_id)
        codec = self._codecs.get(function)
        if codec is None:
            codec = self._codecs[function] = LocatorCodec(function)
        return codec


def _build_request(request: bos.StartBuildRequest) -> BuildRequest:
    """The fields of StartBuild, checked as far as they can be without knowing any build. Raises Invalid."""
    if request.version != _VERSION:
        raise Invalid(f"version {request.version}: expected {_VERSION}, the only one that outputd speaks")
    if not request.HasField("args"):
        raise Invalid(f"args: is missing, expected an Any with a {rev2.StartBuildArgs.DESCRIPTOR.full_name}")
    args = unpack(rev2.StartBuildArgs, request.args, "args")
    function = told_function(args.digest_function)
    if function is None:
        raise Invalid(f"args.digest_function: is UNKNOWN, expected one of {supported_names()}")
    check_instance_name(args.instance_name)
    return BuildRequest(
        request.output_base_id,
        request.build_id,
        args.instance_name,
        function,
        request.output_path_prefix,
        dict(request.output_path_aliases),
    )
