"""Sizes of what we send, in bytes; numbers only.

gRPC's default limit for a message that comes in is 4 MiB, and few clients raise it.
"""

from __future__ import annotations

from typing import Final

MESSAGE_LIMIT: Final = 4 * 1024 * 1024 - 1024
"""A reply is never larger. The rest is left for what gRPC puts around it."""

BATCH_LIMIT: Final = 3 * 1024 * 1024
"""Sum of the blobs in one batch, as told in CacheCapabilities.max_batch_total_size_bytes."""

ITEM_OVERHEAD: Final = 192
"""A blob's part in a batch reply besides its data: a digest (at most 128 + 16), a status code, tags and lengths."""

ITEM_LIMIT: Final = 16_384
"""Blobs in one batch: so many overheads leave a quarter of a message for data."""

PIECE: Final = 512 * 1024
"""Of a stream. Large enough that gRPC's cost for a message disappears, small enough to be read at one go."""
