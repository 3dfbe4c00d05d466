"""grpc.reflection, v1 and v1alpha: which services this server has and what their messages are; tells nothing else.

Written here and not taken from a package, for our descriptors lie in a pool of our own (`_proto/_pool.py`), and tools ask for both
editions, which differ in nothing but their names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from typing import Final, Protocol

import grpc
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from outputd._proto import reflection_pb2, reflection_v1alpha_pb2
from outputd.rpc.edge import Context

_NOT_FOUND: Final[int] = grpc.StatusCode.NOT_FOUND.value[0]
_INVALID_ARGUMENT: Final[int] = grpc.StatusCode.INVALID_ARGUMENT.value[0]


class _Request(Protocol):
    """A question of either edition."""

    file_by_filename: str
    file_containing_symbol: str

    def WhichOneof(self, oneof_group: str) -> str | None: ...  # noqa: N802 - protobuf's name


class Reflection:
    """The service of one edition."""

    def __init__(
        self,
        services: Collection[ServiceDescriptor],
        response: Callable[..., reflection_pb2.ServerReflectionResponse],
    ) -> None:
        """`services` are those that this server offers."""
        self._services = sorted(service.full_name for service in services)
        self._pool: DescriptorPool = next(iter(services)).file.pool
        self._response = response

    async def server_reflection_info(
        self, requests: AsyncIterator[reflection_pb2.ServerReflectionRequest], _context: Context
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        async for request in requests:
            yield self._answer(request)

    def _answer(
        self, request: reflection_pb2.ServerReflectionRequest
    ) -> reflection_pb2.ServerReflectionResponse:
        reply = self._response(valid_host=request.host, original_request=request)
        match request.WhichOneof("message_request"):
            case "list_services":
                for name in self._services:
                    reply.list_services_response.service.add(name=name)
            case "file_by_filename":
                self._describe(reply, self._pool.FindFileByName, request.file_by_filename)
            case "file_containing_symbol":
                self._describe(reply, self._pool.FindFileContainingSymbol, request.file_containing_symbol)
            case "file_containing_extension" | "all_extension_numbers_of_type":
                _refuse(reply, _NOT_FOUND, "there are no extensions here: all files are proto3")
            case _:
                _refuse(reply, _INVALID_ARGUMENT, "message_request: expected a question")
        return reply

    def _describe(
        self,
        reply: reflection_pb2.ServerReflectionResponse,
        find: Callable[[str], FileDescriptor],
        name: str,
    ) -> None:
        try:
            file = find(name)
        except KeyError:
            _refuse(reply, _NOT_FOUND, f"{name[:300]!r}: not known here")
            return
        reply.file_descriptor_response.file_descriptor_proto.extend(
            known.serialized_pb for known in _with_imports(file)
        )


def reflection_services(
    services: Collection[ServiceDescriptor],
) -> list[tuple[ServiceDescriptor, Reflection]]:
    """Both editions, which tell of themselves, too."""
    editions = [
        module.DESCRIPTOR.services_by_name["ServerReflection"]
        for module in (reflection_pb2, reflection_v1alpha_pb2)
    ]
    told = [*services, *editions]
    responses = (reflection_pb2.ServerReflectionResponse, reflection_v1alpha_pb2.ServerReflectionResponse)
    return [
        (edition, Reflection(told, response)) for edition, response in zip(editions, responses, strict=True)
    ]


def _with_imports(file: FileDescriptor) -> list[FileDescriptor]:
    """Each once, what is imported before who imports it."""
    found: dict[str, FileDescriptor] = {}

    def visit(one: FileDescriptor) -> None:
        if one.name not in found:
            for imported in one.dependencies:
                visit(imported)
            found[one.name] = one

    visit(file)
    return list(found.values())


def _refuse(reply: reflection_pb2.ServerReflectionResponse, code: int, text: str) -> None:
    reply.error_response.error_code = code
    reply.error_response.error_message = text
