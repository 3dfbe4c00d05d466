"""What a server's GetCapabilities reply means to us; pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import DigestFunction
from outputd.errors import Unsupported
from outputd.store.base import RemoteAbilities

_FUNCTIONS: Final = {function.value: function for function in DigestFunction}


def told(capabilities: reapi.ServerCapabilities, max_batch_bytes: int, url: str) -> RemoteAbilities:
    """Raises Unsupported when the server speaks no REv2."""
    cache = capabilities.cache_capabilities
    low, high = capabilities.low_api_version, capabilities.high_api_version
    if not low.major:
        low = capabilities.deprecated_api_version
    # Unset versions read as 0: such a server is given the benefit of the doubt.
    if high.major and not low.major <= 2 <= high.major:
        raise Unsupported(f"{url} speaks REv{low.major} to REv{high.major}; outputd speaks REv2")
    limit = cache.max_batch_total_size_bytes
    return RemoteAbilities(
        digest_functions=frozenset(
            _FUNCTIONS[number] for number in cache.digest_functions if number in _FUNCTIONS
        ),
        # 0 means that only the size of a message is limited (REv2, CacheCapabilities).
        max_batch_bytes=min(limit, max_batch_bytes) if limit > 0 else max_batch_bytes,
        compressors=_names(cache.supported_compressors),
        batch_compressors=_names(cache.supported_batch_update_compressors),
        api_version=f"{low.major}.{low.minor}-{high.major}.{high.minor}",
        splits=cache.split_blob_support,
    )


def untold(max_batch_bytes: int) -> RemoteAbilities:
    """For a plain CAS that does not describe itself: whatever it cannot do, the calls will tell."""
    return RemoteAbilities(frozenset(), max_batch_bytes, frozenset(), frozenset(), "", splits=False)


def _names(compressors: Iterable[int]) -> frozenset[str]:
    known = reapi.Compressor.Value.DESCRIPTOR.values_by_number
    return frozenset(known[number].name.lower() for number in compressors if number in known)
