"""What an ActionResult names: every blob that somebody who uses it may ask for. Never asks an action cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction
from outputd.errors import Corrupt, Exhausted, Invalid, NotFound
from outputd.rpc.digests import parse_digest
from outputd.rpc.directory_walk import Walked, walk_directories
from outputd.rpc.pace import paced
from outputd.store.base import BlobStore
from outputd.store.marks import Marks

_TREE_LIMIT: Final = 64 * 1024 * 1024


class KeptResults(Protocol):
    """Where results are kept, for whoever goes through all of them: serialized ActionResults by instance and action."""

    def results(self, after: tuple[str, bytes]) -> list[tuple[str, Digest, bytes]]:
        """Some results with instance and action, in their order, from after these on; none at the end."""

    async def drop_results(self, results: Sequence[tuple[str, Digest, bytes]]) -> None:
        """Drop these results, unless they were replaced meanwhile. Raises Exhausted."""


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
                    named = {digest async for digest in referenced(result, kept[1].function, self._here)}
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


async def referenced(
    result: reapi.ActionResult, function: DigestFunction, store: BlobStore
) -> AsyncIterator[Digest]:
    """Every blob that somebody who uses the result may ask for; the Trees and Directory messages among them are read by `store`.

    Raises Corrupt, Invalid or DecodeError for what is no result, and what reading raises."""
    async for named in paced(named_digests(result)):
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


def named_digests(result: reapi.ActionResult) -> list[tuple[str, reapi.Digest]]:
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
