"""REv2 Capabilities: what this server can do by itself; never asks another server.

A server with a remote behind it has to answer with what both can do; that is for who puts the two together.
"""

from __future__ import annotations

from typing import Final

from outputd._proto import remote_execution_pb2 as reapi
from outputd._proto import semver_pb2 as semver
from outputd.digest import DigestFunction
from outputd.rpc.edge import Context
from outputd.rpc.limits import BATCH_LIMIT
from outputd.rpc.resource_name import check_instance_name

LOW_API_VERSION: Final = (2, 0)
HIGH_API_VERSION: Final = (2, 12)


class Capabilities:
    """The service: a cache without execution."""

    def __init__(self, *, update_enabled: bool = True) -> None:
        """`update_enabled`: whether clients may store action results."""
        self._update_enabled = update_enabled

    async def get_capabilities(
        self, request: reapi.GetCapabilitiesRequest, _context: Context
    ) -> reapi.ServerCapabilities:
        check_instance_name(request.instance_name)
        cache = reapi.CacheCapabilities(
            # The numbers of our enumeration are REv2's.
            digest_functions=[
                reapi.DigestFunction.Value.ValueType(function)
                for function in DigestFunction
                if function.supported
            ],
            action_cache_update_capabilities=reapi.ActionCacheUpdateCapabilities(
                update_enabled=self._update_enabled
            ),
            max_batch_total_size_bytes=BATCH_LIMIT,
            symlink_absolute_path_strategy=reapi.SymlinkAbsolutePathStrategy.ALLOWED,
        )
        return reapi.ServerCapabilities(
            cache_capabilities=cache,
            deprecated_api_version=_version(LOW_API_VERSION),
            low_api_version=_version(LOW_API_VERSION),
            high_api_version=_version(HIGH_API_VERSION),
        )


def _version(version: tuple[int, int]) -> semver.SemVer:
    return semver.SemVer(major=version[0], minor=version[1])
