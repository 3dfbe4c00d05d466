"""REv2 Execution and google.longrunning.Operations, passed on to the remote; never runs anything, never fetches an output.

An operation's name gets the instance in front under which the client asked, `[{instance}/]operations/{the remote's name}`. So
WaitExecution, which tells nothing but that name, finds the remote again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final

from outputd._proto import empty_pb2
from outputd._proto import operations_pb2 as longrunning
from outputd._proto import remote_execution_pb2 as reapi
from outputd.errors import NotFound
from outputd.rpc.edge import Context
from outputd.rpc.inlined import Inlined
from outputd.rpc.log_streams import given
from outputd.rpc.passing import Passing
from outputd.rpc.resource_name import names_no_blob, operation_name, parse_operation_name

_EXECUTION: Final = reapi.DESCRIPTOR.services_by_name["Execution"].methods_by_name
_OPERATIONS: Final = longrunning.DESCRIPTOR.services_by_name["Operations"].methods_by_name
_PATIENCE: Final = 60.0


class Execution:
    """The service: what the remote says, message by message, for as long as the client listens."""

    def __init__(self, passing: Passing, inlined: Inlined) -> None:
        self._passing = passing
        self._inlined = inlined

    async def execute(
        self, request: reapi.ExecuteRequest, context: Context
    ) -> AsyncIterator[longrunning.Operation]:
        instance = request.instance_name
        request.instance_name = self._passing.instance(instance)
        method = _EXECUTION["Execute"]
        replies = self._passing.stream(method, request, longrunning.Operation, context, instance)
        async with aclosing(replies):
            async for operation in replies:
                await self._received(instance, operation)
                yield operation

    async def wait_execution(
        self, request: reapi.WaitExecutionRequest, context: Context
    ) -> AsyncIterator[longrunning.Operation]:
        instance, request.name = _parsed(request.name)
        method = _EXECUTION["WaitExecution"]
        replies = self._passing.stream(method, request, longrunning.Operation, context, instance)
        async with aclosing(replies):
            async for operation in replies:
                await self._received(instance, operation)
                yield operation

    async def _received(self, instance: str, operation: longrunning.Operation) -> None:
        operation.name = operation_name(instance, operation.name)
        prefix = self._passing.prefix(instance)
        about = reapi.ExecuteOperationMetadata()
        if prefix and operation.metadata.Unpack(about):
            for field in ("stdout_stream_name", "stderr_stream_name"):
                if names_no_blob(name := getattr(about, field)):
                    setattr(about, field, given(prefix, name))
            operation.metadata.Pack(about)
        response = reapi.ExecuteResponse()
        if operation.done and operation.response.Unpack(response):
            await self._inlined.keep(response.result)


class Operations:
    """The service, for operations of Execution."""

    def __init__(self, passing: Passing) -> None:
        self._passing = passing

    async def list_operations(
        self, request: longrunning.ListOperationsRequest, context: Context
    ) -> longrunning.ListOperationsResponse:
        instance = request.name.removesuffix("operations").removesuffix("/")
        request.name = self._passing.instance(instance)
        method, reply = _OPERATIONS["ListOperations"], longrunning.ListOperationsResponse
        answer = await self._passing.call(method, request, reply, context, _PATIENCE, instance)
        for operation in answer.operations:
            operation.name = operation_name(instance, operation.name)
        return answer

    async def get_operation(
        self, request: longrunning.GetOperationRequest, context: Context
    ) -> longrunning.Operation:
        instance, request.name = _parsed(request.name)
        method = _OPERATIONS["GetOperation"]
        operation = await self._passing.call(
            method, request, longrunning.Operation, context, _PATIENCE, instance
        )
        operation.name = operation_name(instance, operation.name)
        return operation

    async def delete_operation(
        self, request: longrunning.DeleteOperationRequest, context: Context
    ) -> empty_pb2.Empty:
        instance, request.name = _parsed(request.name)
        method = _OPERATIONS["DeleteOperation"]
        return await self._passing.call(method, request, empty_pb2.Empty, context, _PATIENCE, instance)

    async def cancel_operation(
        self, request: longrunning.CancelOperationRequest, context: Context
    ) -> empty_pb2.Empty:
        instance, request.name = _parsed(request.name)
        method = _OPERATIONS["CancelOperation"]
        return await self._passing.call(method, request, empty_pb2.Empty, context, _PATIENCE, instance)


def _parsed(name: str) -> tuple[str, str]:
    found = parse_operation_name(name)
    if found is None:
        # NOT_FOUND makes clients execute anew (REv2, WaitExecution).
        raise NotFound(f"operation {name[:300]!r}: no name that was given here")
    return found
