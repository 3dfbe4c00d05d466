"""Action results on their way out of the write-back queue: what they name, and their update. Keeps nothing, never tries again."""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf.message import DecodeError

from outputd._proto import remote_execution_pb2 as reapi
from outputd.builds.queued_rows import Key
from outputd.digest import Digest
from outputd.errors import Corrupt
from outputd.rpc.action_cache import ActionResults
from outputd.rpc.passing import Passing
from outputd.rpc.referenced import referenced
from outputd.store.base import BlobStore
from outputd.store.remote.failure import of_code
from outputd.store.remote.relay import Refusal

_UPDATE: Final = reapi.DESCRIPTOR.services_by_name["ActionCache"].methods_by_name["UpdateActionResult"]
_PATIENCE: Final = 60.0
"""Seconds for the remote to answer."""


class QueuedResults:
    """Queued are serialized UpdateActionResultRequests, as the client sent them."""

    def __init__(self, store: BlobStore, passing: Passing, results: ActionResults) -> None:
        """`results` keeps those of a remote that has no action cache."""
        self._store = store
        self._passing = passing
        self._results = results

    async def named(self, key: Key, request: bytes) -> set[Digest]:
        """As builds/bringing.py says."""
        store = self._store.of_instance(key.instance_name)
        try:
            result = reapi.UpdateActionResultRequest.FromString(request).action_result
            return {digest async for digest in referenced(result, key.digest.function, store)}
        except DecodeError as error:
            raise Corrupt(f"action {key.digest}: what it names cannot be read: {error}") from error

    async def update(self, key: Key, request: bytes) -> None:
        """The same."""
        message = reapi.UpdateActionResultRequest.FromString(request)
        message.instance_name = self._passing.instance(key.instance_name)
        message.digest_function = reapi.DigestFunction.Value.ValueType(key.digest.function)
        try:
            await self._passing.call(_UPDATE, message, reapi.ActionResult, None, _PATIENCE, key.instance_name)
        except Refusal as error:
            if error.code is not grpc.StatusCode.UNIMPLEMENTED:
                raise of_code(error.code, str(error)) from error
            result = message.action_result.SerializeToString(deterministic=True)
            await self._results.put(key.instance_name, key.digest, result)
