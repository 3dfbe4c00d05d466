from __future__ import annotations

from types import ModuleType
from typing import Any

import grpc
import grpc.aio
import pytest
import uvloop
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from outputd._proto import bazel_output_service_pb2, health_pb2, reflection_pb2, reflection_v1alpha_pb2
from outputd.rpc.reflection import reflection_services
from outputd.rpc.services import service_handler
from tests.unit.rpc.loopback import served
from tests.unit.rpc.played_remote import SERVICES

OFFERED = [
    *SERVICES.values(),
    bazel_output_service_pb2.DESCRIPTOR.services_by_name["BazelOutputService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
]
EDITIONS = pytest.mark.parametrize("edition", [reflection_pb2, reflection_v1alpha_pb2], ids=["v1", "v1alpha"])


def ask(edition: ModuleType, *questions: dict[str, Any]) -> list[Any]:
    """The answers to all questions, in one call."""

    async def main() -> list[Any]:
        handlers = [service_handler(*service) for service in reflection_services(OFFERED)]
        async with served(*handlers) as channel:
            name = edition.DESCRIPTOR.services_by_name["ServerReflection"].full_name
            invoke = channel.stream_stream(
                f"/{name}/ServerReflectionInfo",
                edition.ServerReflectionRequest.SerializeToString,
                edition.ServerReflectionResponse.FromString,
            )
            call = invoke(iter([edition.ServerReflectionRequest(**question) for question in questions]))
            return [reply async for reply in call]

    return uvloop.run(main())


@EDITIONS
def test_a_tool_that_knows_nothing_learns_every_message(edition: ModuleType) -> None:
    (listed,) = ask(edition, {"list_services": "*"})
    names = [service.name for service in listed.list_services_response.service]
    assert {service.full_name for service in OFFERED} < set(names)
    assert {"grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"} < set(names)
    for reply, name in zip(
        ask(edition, *({"file_containing_symbol": name} for name in names)), names, strict=True
    ):
        pool = DescriptorPool()
        for data in reply.file_descriptor_response.file_descriptor_proto:
            pool.AddSerializedFile(data)
        service = pool.FindServiceByName(name)
        assert all(method.input_type.fields is not None for method in service.methods)


@EDITIONS
def test_files_and_what_is_not_known(edition: ModuleType) -> None:
    digest = "build.bazel.remote.execution.v2.Digest"
    file, symbol, absent, extension, nothing = ask(
        edition,
        {"file_by_filename": "google/rpc/status.proto"},
        {"file_containing_symbol": digest, "host": "here"},
        {"file_by_filename": "no.proto"},
        {"all_extension_numbers_of_type": digest},
        {},
    )
    described = file.file_descriptor_response.file_descriptor_proto
    assert FileDescriptorProto.FromString(described[-1]).name == "google/rpc/status.proto"
    assert symbol.file_descriptor_response.file_descriptor_proto
    assert (symbol.valid_host, symbol.original_request.file_containing_symbol) == ("here", digest)
    codes = [reply.error_response.error_code for reply in (absent, extension, nothing)]
    not_found, invalid = (
        code.value[0] for code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)
    )
    assert codes == [not_found, not_found, invalid]
