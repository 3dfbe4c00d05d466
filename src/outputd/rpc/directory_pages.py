"""The answer to GetTree: every Directory below a root, page by page; never re-encodes a Directory.

Clients find children by hashing what they got, and an unknown field or another order of fields in it is part of its digest.
So a page is put together from the stored bytes, and protobuf only reads them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from outputd.digest import Digest
from outputd.errors import Invalid
from outputd.rpc.directory_walk import Walked, walk_directories
from outputd.store.base import BlobStore

_PAGE_BYTES: Final = 1024 * 1024
_PAGE_DIRECTORIES: Final = 1024

# GetTreeResponse.directories and .next_page_token, both length-delimited (wire type 2).
_DIRECTORIES_TAG: Final = bytes([1 << 3 | 2])
_TOKEN_TAG: Final = bytes([2 << 3 | 2])


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
    async for found in walk_directories(store, root):
        if walked >= resume_at and isinstance(found, Walked):
            if page and (len(page) >= limit or size + len(found.data) > _PAGE_BYTES):
                yield _page(page, f"{walked}:{last}")
                page, size = [], 0
            page.append(found.data)
            size += len(found.data)
        walked += 1
        last = found.digest if isinstance(found, Walked) else found
        if walked == resume_at and str(last) != resume_after:
            raise Invalid(f"page_token {token!r}: this tree has changed since; begin again without a token")
    if walked < resume_at:
        raise Invalid(
            f"page_token {token!r}: this tree has {walked} directories; begin again without a token"
        )
    yield _page(page, "")


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
