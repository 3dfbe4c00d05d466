"""REv2 ActionCache: the remote's, or without one a room that keeps results; by itself never answers with a result whose blobs
are gone.

A client that gets a result does not run the action, so a blob that is missing then can only be had by a failed build.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, Protocol

import grpc
from google.protobuf.message import DecodeError

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction
from outputd.errors import Corrupt, Exhausted, Invalid, NotFound, OutputdError, Unavailable
from outputd.rpc.capabilities import unreachable
from outputd.rpc.digests import parse_digest, request_function
from outputd.rpc.directory_walk import Walked, walk_directories
from outputd.rpc.edge import Context
from outputd.rpc.inlined import Inlined
from outputd.rpc.limits import MESSAGE_LIMIT
from outputd.rpc.pace import paced
from outputd.rpc.passing import Passing
from outputd.rpc.recent_results import RecentResults
from outputd.rpc.resource_name import check_instance_name
from outputd.store.base import BlobStore
from outputd.store.marks import Marks
from outputd.store.remote.relay import Refusal

_METHODS: Final = reapi.DESCRIPTOR.services_by_name["ActionCache"].methods_by_name
_TREE_LIMIT: Final = 64 * 1024 * 1024
_PATIENCE: Final = 60.0
"""Seconds for the remote to answer."""


class ActionResults(Protocol):
    """Where results are kept: serialized ActionResults by instance and action."""

    async def get(self, instance: str, action: Digest) -> bytes | None:
        """The result, or None when there is none."""

    async def put(self, instance: str, action: Digest, result: bytes) -> None:
        """Keep a result in place of an earlier one. Raises Exhausted."""


class KeptResults(Protocol):
    """The same, for whoever goes through all of them."""

    def results(self, after: tuple[str, bytes]) -> list[tuple[str, Digest, bytes]]:
        """Some results with instance and action, in their order, from after these on; none at the end."""

    async def drop_results(self, results: Sequence[tuple[str, Digest, bytes]]) -> None:
        """Drop these results, unless they were replaced meanwhile. Raises Exhausted."""


class ActionCache:
    """The service.

    With a remote it is the remote's cache, for only that one knows what was withdrawn. What the remote gave is answered from here
    for some minutes, and while it cannot be reached, then only if every blob of the result is here.
    """

    def __init__(
        self,
        results: ActionResults,
        store: BlobStore,
        passing: Passing,
        inlined: Inlined,
        *,
        check_results: Callable[[str], bool],
    ) -> None:
        """`check_results`: whether the remote of an instance is asked for the blobs of what its own action cache answers."""
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
            except NotFound:
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
        async for named in paced(_named_digests(result)):
            for field, message in named:
                parse_digest(message, action.function, f"action_result.{field}")
        size = result.ByteSize()
        if size > MESSAGE_LIMIT:
            raise Invalid(f"action_result: {size} bytes cannot be answered; {MESSAGE_LIMIT} is the most")
        if not self._passing.remote:
            await self._results.put(instance, action, result.SerializeToString(deterministic=True))
            return result
        request.instance_name = self._passing.instance(instance)
        request.digest_function = reapi.DigestFunction.Value.ValueType(action.function)
        try:
            taken = await self._passing.call(
                _METHODS["UpdateActionResult"], request, reapi.ActionResult, context, _PATIENCE, instance
            )
        except OutputdError as error:
            if not _is_unimplemented(error):
                raise
            await self._results.put(instance, action, result.SerializeToString(deterministic=True))
            return result
        self._recent.took(instance, action, await self._stripped(taken, action.function))
        return taken

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
            referenced = {digest async for digest in _referenced(result, action.function, store)}
        except (DecodeError, Corrupt, Invalid, NotFound) as error:
            raise NotFound(f"action {action}: its result cannot be used any more: {error}") from error
        except Unavailable as error:
            if not here:
                raise
            raise NotFound(f"action {action}: a directory of its result is not here: {error}") from error
        missing = store.local.missing(referenced) if here else await store.find_missing(referenced)
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


class ReferencedResults:
    """What kept results name, for a store that is the whole CAS and wants to know what it may evict (builds/collection.py)."""

    def __init__(self, results: KeptResults, here: BlobStore) -> None:
        """`here` asks no remote."""
        self._results = results
        self._here = here

    async def mark(self, marks: Marks, is_here: Callable[[Digest], bool]) -> None:
        """Mark the blobs of every result that can still be answered, and drop the others. Raises Unavailable or Exhausted."""
        after = ("", b"")
        while some := self._results.results(after):
            useless = []
            for kept in some:
                try:
                    result = reapi.ActionResult.FromString(kept[2])
                    named = {digest async for digest in _referenced(result, kept[1].function, self._here)}
                except (DecodeError, Corrupt, Exhausted, Invalid, NotFound):
                    useless.append(kept)
                    continue
                if not all(map(is_here, named)):
                    useless.append(kept)
                    continue
                for digest in named:
                    marks.add(digest)
                await asyncio.sleep(0)
            if useless:
                await self._results.drop_results(useless)
            after = some[-1][:2]


async def _referenced(
    result: reapi.ActionResult, function: DigestFunction, store: BlobStore
) -> AsyncIterator[Digest]:
    """Every blob that somebody who uses the result may ask for."""
    async for named in paced(_named_digests(result)):
        for field, message in named:
            yield parse_digest(message, function, field)
    for directory in result.output_directories:
        if directory.HasField("tree_digest"):
            tree = parse_digest(directory.tree_digest, function, "tree_digest")
            async for digest in _in_tree(tree, store):
                yield digest
        if directory.HasField("root_directory_digest"):
            root = parse_digest(directory.root_directory_digest, function, "root_directory_digest")
            async for digest in _below(root, store):
                yield digest


async def _in_tree(digest: Digest, store: BlobStore) -> AsyncIterator[Digest]:
    """The files of a Tree. Its directories are part of it and need not be blobs."""
    if digest.size > _TREE_LIMIT:
        raise Invalid(f"tree {digest}: larger than {_TREE_LIMIT} bytes")
    tree = reapi.Tree.FromString(await store.read(digest))
    async for directories in paced([tree.root, *tree.children]):
        for directory in directories:
            async for file in _files(directory, digest):
                yield file


async def _below(root: Digest, store: BlobStore) -> AsyncIterator[Digest]:
    """The directories below a root, each a blob of its own, and their files."""
    async for found in walk_directories(store, root):
        if not isinstance(found, Walked):
            raise NotFound(f"directory {found} below {root} is gone")
        yield found.digest
        async for file in _files(found.directory, found.digest):
            yield file


def _action(instance: str, message: reapi.Digest, function: int) -> Digest:
    check_instance_name(instance)
    return parse_digest(message, request_function(function, [message]), "action_digest")


def _named_digests(result: reapi.ActionResult) -> list[tuple[str, reapi.Digest]]:
    """The digests in the result itself, each with the name of its field."""
    named = [(f"output_files[{index}].digest", file.digest) for index, file in enumerate(result.output_files)]
    for index, directory in enumerate(result.output_directories):
        if directory.HasField("root_directory_digest"):
            named.append(
                (f"output_directories[{index}].root_directory_digest", directory.root_directory_digest)
            )
        if directory.HasField("tree_digest") or not directory.HasField("root_directory_digest"):
            named.append((f"output_directories[{index}].tree_digest", directory.tree_digest))
    if result.HasField("stdout_digest"):
        named.append(("stdout_digest", result.stdout_digest))
    if result.HasField("stderr_digest"):
        named.append(("stderr_digest", result.stderr_digest))
    return named


async def _files(directory: reapi.Directory, place: Digest) -> AsyncIterator[Digest]:
    async for nodes in paced(directory.files):
        for node in nodes:
            yield parse_digest(node.digest, place.function, f"directory in {place}, file {node.name!r}")
