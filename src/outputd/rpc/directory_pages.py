"""The answer to GetTree: every Directory below a root, page by page; never re-encodes a Directory.

Clients find children by hashing what they got, and an unknown field or another order of fields in it is part of its digest.
So a page is put together from the stored bytes, and protobuf only reads them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Final

from google.protobuf.message import DecodeError

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest
from outputd.errors import Corrupt, Exhausted, Invalid, NotFound
from outputd.rpc.digests import parse_digest
from outputd.rpc.limits import MESSAGE_LIMIT
from outputd.store.base import BlobStore

_FETCHED_AT_ONCE: Final = 128
_PAGE_BYTES: Final = 1024 * 1024
_PAGE_DIRECTORIES: Final = 1024

# GetTreeResponse.directories and .next_page_token, both length-delimited (wire type 2).
_DIRECTORIES_TAG: Final = bytes([1 << 3 | 2])
_TOKEN_TAG: Final = bytes([2 << 3 | 2])
# Of a Directory that still fits into a page of its own, tag, length and token beside it.
_LARGEST: Final = MESSAGE_LIMIT - 1024


async def directory_pages(store: BlobStore, root: Digest, page_size: int, token: str) -> AsyncIterator[bytes]:
    """Serialized GetTreeResponses. Each distinct Directory comes once, parents first; absent ones are left out.

    A page token tells how many directories the pages before it walked over, and the last of them, so that a walk which
    has changed meanwhile is noticed. Raises NotFound for the root, Invalid for a token, Corrupt and Exhausted for what
    cannot be a Directory or cannot be sent.
    """
    resume_at, resume_after = _parse_token(token)
    limit = min(page_size or _PAGE_DIRECTORIES, _PAGE_DIRECTORIES)
    page: list[bytes] = []
    size = 0
    walked = 0
    last = root
    async for digest, data in _walk(store, root):
        if walked >= resume_at and data is not None:
            if page and (len(page) >= limit or size + len(data) > _PAGE_BYTES):
                yield _page(page, f"{walked}:{last}")
                page, size = [], 0
            page.append(data)
            size += len(data)
        walked += 1
        last = digest
        if walked == resume_at and str(digest) != resume_after:
            raise Invalid(f"page_token {token!r}: this tree has changed since; begin again without a token")
    if walked < resume_at:
        raise Invalid(f"page_token {token!r}: this tree has {walked} directories; begin again without a token")
    yield _page(page, "")


async def _walk(store: BlobStore, root: Digest) -> AsyncIterator[tuple[Digest, bytes | None]]:
    """Breadth first, each digest once, with the bytes of those that are there."""
    seen = {root}
    level = [root]
    while level:
        below: list[Digest] = []
        for start in range(0, len(level), _FETCHED_AT_ONCE):
            some = level[start : start + _FETCHED_AT_ONCE]
            for digest in some:
                if digest.size > _LARGEST:
                    raise Exhausted(f"directory {digest} is larger than the {_LARGEST} bytes that fit into an answer")
            failures = await store.fetch_many(some)
            for digest in some:
                failure = failures.get(digest)
                if failure is None:
                    data = await store.read(digest)
                    for child in _children(digest, data):
                        if child not in seen:
                            seen.add(child)
                            below.append(child)
                    yield digest, data
                elif digest == root or not isinstance(failure, NotFound):
                    raise failure
                else:
                    yield digest, None
        level = below


def _children(digest: Digest, data: bytes) -> Iterator[Digest]:
    try:
        directory = reapi.Directory.FromString(data)
    except DecodeError as error:
        raise Corrupt(f"blob {digest} is no Directory: {error}") from error
    for node in directory.directories:
        try:
            yield parse_digest(node.digest, digest.function, f"directory {digest}, entry {node.name!r}")
        except Invalid as error:
            raise Corrupt(str(error)) from None


def _parse_token(token: str) -> tuple[int, str]:
    if not token:
        return 0, ""
    walked, separator, last = token.partition(":")
    if not (separator and walked.isascii() and walked.isdigit() and 0 < len(walked) < 10 and int(walked)):
        raise Invalid(f"page_token {token[:100]!r}: expected one that an answer of GetTree gave")
    return int(walked), last


def _page(directories: list[bytes], token: str) -> bytes:
    parts: list[bytes] = []
    for data in directories:
        parts += (_DIRECTORIES_TAG, _varint(len(data)), data)
    if token:
        parts += (_TOKEN_TAG, _varint(len(token)), token.encode())
    return b"".join(parts)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first, the top bit set in all but the last (protobuf encoding)."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
