"""REv2 ActionCache: the remote's, or without one a room that keeps results; by itself never answers with a result whose blobs
are gone.

A client that gets a result does not run the action, so a blob that is missing then can only be had by a failed build.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import grpc
from google.protobuf.message import DecodeError

from outputd._proto import remote_execution_pb2 as reapi
from outputd.builds.write_back import WriteBack
from outputd.digest import Digest, DigestFunction
from outputd.errors import Corrupt, Invalid, NotFound, OutputdError, Unavailable, Unreachable
from outputd.rpc.capabilities import unreachable
from outputd.rpc.digests import parse_digest, request_function
from outputd.rpc.edge import Context
from outputd.rpc.inlined import Inlined
from outputd.rpc.limits import MESSAGE_LIMIT
from outputd.rpc.pace import paced
from outputd.rpc.passing import Passing
from outputd.rpc.recent_results import RecentResults
from outputd.rpc.referenced import named_digests, referenced
from outputd.rpc.resource_name import check_instance_name
from outputd.store.base import BlobStore
from outputd.store.remote.relay import Refusal

_METHODS: Final = reapi.DESCRIPTOR.services_by_name["ActionCache"].methods_by_name
_PATIENCE: Final = 60.0
"""Seconds for the remote to answer."""


class ActionResults(Protocol):
    """Where results are kept: serialized ActionResults by instance and action."""

    async def get(self, instance: str, action: Digest) -> bytes | None:
        """The result, or None when there is none."""

    async def put(self, instance: str, action: Digest, result: bytes) -> None:
        """Keep a result in place of an earlier one. Raises Exhausted."""


class ActionCache:
    """The service.

    With a remote it is the remote's cache, for only that one knows what was withdrawn. What the remote gave is answered from here
    for some minutes, and while it cannot be reached, then only if every blob of the result is here. With a write-back queue an
    update that finds no remote waits there; it is answered from there until the remote has it.
    """

    def __init__(
        self,
        results: ActionResults,
        store: BlobStore,
        passing: Passing,
        inlined: Inlined,
        *,
        check_results: Callable[[str], bool],
        queue: WriteBack | None = None,
    ) -> None:
        """`check_results`: whether the remote of an instance is asked for the blobs of what its own action cache answers."""
        self._queue = queue
        self._check_results = check_results
        self._results = results
        self._store = store
        self._passing = passing
        self._inlined = inlined
        self._recent = RecentResults()

    async def get_action_result(
        self, request: reapi.GetActionResultRequest, context: Context
    ) -> reapi.ActionResult:
        instance = request.instance_name
        action = _action(instance, request.action_digest, request.digest_function)
        result = await self._got(request, instance, action, context)
        self._inlined.fill(result, request, action.function)
        return result

    async def _got(
        self, request: reapi.GetActionResultRequest, instance: str, action: Digest, context: Context
    ) -> reapi.ActionResult:
        if not self._passing.remote:
            return await self._complete(await self._results.get(instance, action), instance, action)
        kept = self._recent.fresh(instance, action)
        if kept is not None:
            return _parsed(kept, action)
        if (waiting := await self._waiting(instance, action)) is not None:
            return waiting
        asked = reapi.GetActionResultRequest()
        asked.CopyFrom(request)
        asked.instance_name = self._passing.instance(instance)
        asked.digest_function = reapi.DigestFunction.Value.ValueType(action.function)
        try:
            result = await self._passing.call(
                _METHODS["GetActionResult"], asked, reapi.ActionResult, context, _PATIENCE, instance
            )
        except OutputdError as error:
            if _is_unimplemented(error):
                # A CAS and no more: this is the cache in front of it.
                return await self._complete(await self._results.get(instance, action), instance, action)
            if not unreachable(error):
                self._recent.has_none(instance, action)
                raise
            try:
                return await self._complete(self._recent.last(instance, action), instance, action, here=True)
            except NotFound as unknown:
                if self._offline(instance, error):
                    # Not UNAVAILABLE, which clients try again before each action that they then run, only to have it queued.
                    raise NotFound(f"{unknown}; and {error}") from error
                raise error from None
        kept = await self._stripped(result, action.function)
        if self._check_results(instance):
            await self._complete(kept, instance, action)
        self._recent.gave(instance, action, kept)
        return result

    async def update_action_result(
        self, request: reapi.UpdateActionResultRequest, context: Context
    ) -> reapi.ActionResult:
        instance = request.instance_name
        action = _action(instance, request.action_digest, request.digest_function)
        if not request.HasField("action_result"):
            raise Invalid("action_result is not set")
        result = request.action_result
        async for named in paced(named_digests(result)):
            for field, message in named:
                parse_digest(message, action.function, f"action_result.{field}")
        size = result.ByteSize()
        if size > MESSAGE_LIMIT:
            raise Invalid(f"action_result: {size} bytes cannot be answered; {MESSAGE_LIMIT} is the most")
        if not self._passing.remote:
            await self._results.put(instance, action, result.SerializeToString(deterministic=True))
            return result
        asked = request.SerializeToString(deterministic=True)
        if self._comes_after(instance, action, result):
            await self._enqueue(instance, action, asked, Unreachable("earlier uploads wait for the remote"))
            return result
        request.instance_name = self._passing.instance(instance)
        request.digest_function = reapi.DigestFunction.Value.ValueType(action.function)
        try:
            taken = await self._passing.call(
                _METHODS["UpdateActionResult"], request, reapi.ActionResult, context, _PATIENCE, instance
            )
        except OutputdError as error:
            if _is_unimplemented(error):
                await self._results.put(instance, action, result.SerializeToString(deterministic=True))
            elif unreachable(error) and self._queue is not None and self._queue.takes(instance):
                await self._enqueue(instance, action, asked, error)
            else:
                raise
            return result
        self._recent.took(instance, action, await self._stripped(taken, action.function))
        return taken

    async def _waiting(self, instance: str, action: Digest) -> reapi.ActionResult | None:
        """What waits for the remote to have it, if every blob of it is here."""
        asked = None if self._queue is None else self._queue.request(instance, action)
        if asked is None:
            return None
        result = reapi.UpdateActionResultRequest.FromString(asked).action_result
        try:
            return await self._complete(result.SerializeToString(), instance, action, here=True)
        except NotFound:
            return None

    def _offline(self, instance: str, error: OutputdError) -> bool:
        """The remote of an instance was given up, and what is uploaded meanwhile is queued."""
        return self._queue is not None and self._queue.takes(instance) and isinstance(error, Unreachable)

    def _comes_after(self, instance: str, action: Digest, result: reapi.ActionResult) -> bool:
        """The remote is still to get an older result of this action, or blobs that this one names."""
        if self._queue is None:
            return False
        if self._queue.request(instance, action) is not None:
            return True
        if not self._queue.waits(instance):
            return False
        named = [parse_digest(message, action.function, field) for field, message in named_digests(result)]
        return bool(result.output_directories) or self._queue.waits(instance, named)

    async def _enqueue(self, instance: str, action: Digest, asked: bytes, why: OutputdError) -> None:
        """Have an update wait. Raises `why`, and says so, when there is no room for it."""
        assert self._queue is not None
        if not await self._queue.keep_result(instance, action, asked):
            text = f"{why}; {self._queue.limit(instance)}"
            raise Refusal(why.code, text, why.details) if isinstance(why, Refusal) else type(why)(text)
        result = reapi.UpdateActionResultRequest.FromString(asked).action_result
        self._recent.took(instance, action, await self._stripped(result, action.function))

    async def _stripped(self, result: reapi.ActionResult, function: DigestFunction) -> bytes:
        """A result without the contents that are inlined in it, which go to the local store."""
        await self._inlined.keep(result, function)
        stripped = reapi.ActionResult()
        stripped.CopyFrom(result)
        self._inlined.strip(stripped, function)
        return stripped.SerializeToString()

    async def _complete(
        self, kept: bytes | None, instance: str, action: Digest, *, here: bool = False
    ) -> reapi.ActionResult:
        """A result that is kept, if its blobs can be had; `here`: if they are in the local store. Raises NotFound."""
        if kept is None:
            raise NotFound(f"action {action}: no result is kept")
        store = self._store.of_instance(instance)
        try:
            result = _parsed(kept, action)
            named = {digest async for digest in referenced(result, action.function, store)}
        except (DecodeError, Corrupt, Invalid, NotFound) as error:
            raise NotFound(f"action {action}: its result cannot be used any more: {error}") from error
        except Unavailable as error:
            if not here:
                raise
            raise NotFound(f"action {action}: a directory of its result is not here: {error}") from error
        missing = store.local.missing(named) if here else await store.find_missing(named)
        if missing:
            some = ", ".join(sorted(map(str, missing))[:3])
            raise NotFound(f"action {action}: {len(missing)} blobs of its result are gone: {some}")
        return result


def _is_unimplemented(error: OutputdError) -> bool:
    return isinstance(error, Refusal) and error.code is grpc.StatusCode.UNIMPLEMENTED


def _parsed(kept: bytes, action: Digest) -> reapi.ActionResult:
    try:
        return reapi.ActionResult.FromString(kept)
    except DecodeError as error:
        raise Corrupt(f"action {action}: what is kept is no ActionResult: {error}") from error


def _action(instance: str, message: reapi.Digest, function: int) -> Digest:
    check_instance_name(instance)
    return parse_digest(message, request_function(function, [message]), "action_digest")
