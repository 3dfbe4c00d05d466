"""Cut digests into the batches that one call may carry; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from outputd.digest import Digest, DigestFunction

# What a blob adds to a batch beside its bytes: hash, size, status, lengths.
_BLOB_OVERHEAD: Final = 150
# So many digests are put into or taken out of a message in about 1 ms, in which the loop serves nobody else.
_BLOBS_A_BATCH: Final = 500


def by_function(digests: Iterable[Digest]) -> dict[DigestFunction, list[Digest]]:
    """Without the empty blobs and each once; all digests of a request have one function (REv2)."""
    found: dict[DigestFunction, list[Digest]] = {}
    for digest in dict.fromkeys(digests):
        if digest.size:
            found.setdefault(digest.function, []).append(digest)
    return found


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
