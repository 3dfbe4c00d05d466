"""REv2 ActionCache over a room that keeps results by action; never answers with a result whose blobs are gone.

A client that gets a result does not run the action, so a blob that is missing then can only be had by a failed build.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction
from outputd.errors import Corrupt, Denied, Exhausted, Invalid, NotFound
from outputd.rpc.digests import parse_digest, request_function
from outputd.rpc.directory_walk import Walked, walk_directories
from outputd.rpc.edge import Context
from outputd.rpc.limits import MESSAGE_LIMIT
from outputd.rpc.pace import paced
from outputd.rpc.resource_name import check_instance_name
from outputd.store.base import BlobStore
from outputd.store.marks import Marks

_TREE_LIMIT: Final = 64 * 1024 * 1024


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
    """The service. `update_enabled` must be what CacheCapabilities says."""

    def __init__(self, results: ActionResults, store: BlobStore, *, update_enabled: bool = True) -> None:
        self._results = results
        self._store = store
        self._update_enabled = update_enabled

    async def get_action_result(
        self, request: reapi.GetActionResultRequest, _context: Context
    ) -> reapi.ActionResult:
        action = _action(request.instance_name, request.action_digest, request.digest_function)
        kept = await self._results.get(request.instance_name, action)
        if kept is None:
            raise NotFound(f"action {action}: no result is kept")
        store = self._store.of_instance(request.instance_name)
        try:
            result = reapi.ActionResult.FromString(kept)
            referenced = {digest async for digest in _referenced(result, action.function, store)}
        except (DecodeError, Corrupt, Invalid, NotFound) as error:
            raise NotFound(f"action {action}: its result cannot be used any more: {error}") from error
        missing = await store.find_missing(referenced) if referenced else set()
        if missing:
            some = ", ".join(sorted(map(str, missing))[:3])
            raise NotFound(f"action {action}: {len(missing)} blobs of its result are gone: {some}")
        return result

    async def update_action_result(
        self, request: reapi.UpdateActionResultRequest, _context: Context
    ) -> reapi.ActionResult:
        if not self._update_enabled:
            raise Denied("updates of the action cache are disabled here (ActionCacheUpdateCapabilities)")
        action = _action(request.instance_name, request.action_digest, request.digest_function)
        if not request.HasField("action_result"):
            raise Invalid("action_result is not set")
        result = request.action_result
        async for named in paced(_named_digests(result)):
            for field, message in named:
                parse_digest(message, action.function, f"action_result.{field}")
        data = result.SerializeToString(deterministic=True)
        if len(data) > MESSAGE_LIMIT:
            raise Invalid(f"action_result: {len(data)} bytes cannot be answered; {MESSAGE_LIMIT} is the most")
        await self._results.put(request.instance_name, action, data)
        return result


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
