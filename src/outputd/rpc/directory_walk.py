"""The Directory messages below a root, out of a blob store; never loads more than a few of them at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest
from outputd.errors import Corrupt, Exhausted, Invalid, NotFound
from outputd.rpc.digests import parse_digest
from outputd.rpc.limits import MESSAGE_LIMIT
from outputd.rpc.pace import paced
from outputd.store.base import BlobStore

LARGEST: Final = MESSAGE_LIMIT - 1024
"""Bytes of a Directory that still fits into an answer of its own. Larger ones are refused before they are fetched."""


class Walked(NamedTuple):
    """One directory: its bytes as stored, and what they say."""

    digest: Digest
    data: bytes
    directory: reapi.Directory


async def walk_directories(store: BlobStore, root: Digest) -> AsyncIterator[Walked | Digest]:
    """Breadth first, each distinct digest once; the bare digest stands for a directory that is absent.

    Raises NotFound for the root, Corrupt for a blob that is no Directory, Exhausted for one that is too large, and
    whatever else keeps the store from telling.
    """
    seen = {root}
    level = [root]
    while level:
        below: list[Digest] = []
        async for some in paced(level):
            for digest in some:
                if digest.size > LARGEST:
                    raise Exhausted(
                        f"directory {digest}: larger than the {LARGEST} bytes that fit into an answer"
                    )
            failures = await store.fetch_many(some)
            for digest in some:
                failure = failures.get(digest)
                if isinstance(failure, NotFound) and digest != root:
                    yield digest
                    continue
                if failure is not None:
                    raise failure
                walked = _walked(digest, await store.read(digest))
                for child in _children(walked):
                    if child not in seen:
                        seen.add(child)
                        below.append(child)
                yield walked
        level = below


def _walked(digest: Digest, data: bytes) -> Walked:
    try:
        return Walked(digest, data, reapi.Directory.FromString(data))
    except DecodeError as error:
        raise Corrupt(f"blob {digest} is no Directory: {error}") from error


def _children(walked: Walked) -> Iterator[Digest]:
    digest = walked.digest
    for node in walked.directory.directories:
        try:
            yield parse_digest(node.digest, digest.function, f"directory {digest}, entry {node.name!r}")
        except Invalid as error:
            raise Corrupt(str(error)) from None
