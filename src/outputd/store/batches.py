"""Cut digests into the batches that one call may carry; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from outputd.digest import Digest, DigestFunction

# What a blob adds to a batch beside its bytes: hash, size, status, lengths.
_BLOB_OVERHEAD: Final = 150
# So many digests are put into or taken out of a message in about 1 ms, in which the loop serves nobody else.
_BLOBS_A_BATCH: Final = 250
_NO_SIZE: Final = bytes(8)


def by_function(digests: Iterable[Digest]) -> dict[DigestFunction, list[Digest]]:
    """Without the empty blobs and each once; all digests of a request have one function (REv2)."""
    found: dict[int, list[Digest]] = {}
    for digest in dict.fromkeys(digests):
        # By the digest's own bytes (function, then size): its properties would cost five times as much.
        if digest[1:9] != _NO_SIZE:
            found.setdefault(digest[0], []).append(digest)
    return {DigestFunction(number): some for number, some in found.items()}


def batches(digests: Iterable[Digest], limit: int) -> Iterator[list[Digest]]:
    """No batch has more bytes than the limit; a blob that has more by itself is alone in its batch."""
    batch: list[Digest] = []
    size = 0
    for digest in digests:
        cost = digest.size + _BLOB_OVERHEAD
        if batch and (size + cost > limit or len(batch) == _BLOBS_A_BATCH):
            yield batch
            batch = []
            size = 0
        batch.append(digest)
        size += cost
    if batch:
        yield batch
