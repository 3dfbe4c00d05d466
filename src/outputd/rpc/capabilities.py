"""REv2 Capabilities: what this server can do together with the remote behind it; never more than both.

What needs the remote for each call, execution and the updates of its action cache, is as it says. What this server does itself,
compression and chunking, it offers whatever the remote can.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import grpc

from outputd._proto import remote_execution_pb2 as reapi
from outputd._proto import semver_pb2 as semver
from outputd.digest import DigestFunction
from outputd.errors import OutputdError, Unavailable
from outputd.rpc.edge import Context
from outputd.rpc.limits import BATCH_LIMIT
from outputd.rpc.passing import Passing
from outputd.rpc.resource_name import check_instance_name
from outputd.store.fastcdc import FastCdc
from outputd.store.remote.relay import Refusal

LOW_API_VERSION: Final = (2, 0)
HIGH_API_VERSION: Final = (2, 12)

_GET: Final = reapi.DESCRIPTOR.services_by_name["Capabilities"].methods_by_name["GetCapabilities"]
_FRESH: Final = 300.0
"""Seconds for which an answer of the remote is not asked for again."""
_PATIENCE: Final = 10.0
"""Seconds for the remote to answer: clients wait a minute, and there may be an earlier answer."""
_INSTANCES: Final = 100
"""Instance names of which answers are kept: a client may send any."""


class RemoteCapabilities:
    """What the remote says of itself, by instance."""

    def __init__(self, passing: Passing, works_without: Callable[[str], bool] = lambda _: False) -> None:
        """`works_without` tells the instances whose clients are served though the remote has never answered: as by a plain CAS, for
        what they upload is queued."""
        self._passing = passing
        self._works_without = works_without
        self._answers: OrderedDict[str, tuple[float, reapi.ServerCapabilities]] = OrderedDict()
        """With the time they came."""

    async def of(self, instance: str) -> reapi.ServerCapabilities | None:
        """The answer, the last one known while the remote cannot be reached; None for a plain CAS, or without a remote.

        Raises Refusal, or Unavailable when it never answered.
        """
        if not self._passing.remote:
            return None
        name = self._passing.instance(instance)
        when, known = self._answers.get(instance, (0.0, None))
        if known is not None and time.monotonic() - when < _FRESH:
            return known
        request = reapi.GetCapabilitiesRequest(instance_name=name)
        try:
            answer = await self._passing.call(
                _GET, request, reapi.ServerCapabilities, None, _PATIENCE, instance
            )
        except OutputdError as error:
            if isinstance(error, Refusal) and error.code is grpc.StatusCode.UNIMPLEMENTED:
                return None
            if unreachable(error) and (known is not None or self._works_without(instance)):
                return known
            raise
        self._answers[instance] = time.monotonic(), answer
        self._answers.move_to_end(instance)
        if len(self._answers) > _INSTANCES:
            self._answers.popitem(last=False)
        return answer


class Capabilities:
    """The service."""

    def __init__(self, remote: RemoteCapabilities) -> None:
        self._remote = remote

    async def get_capabilities(
        self, request: reapi.GetCapabilitiesRequest, _context: Context
    ) -> reapi.ServerCapabilities:
        check_instance_name(request.instance_name)
        theirs = await self._remote.of(request.instance_name)
        return _ours() if theirs is None else _of_both(_ours(), theirs)


def unreachable(error: OutputdError) -> bool:
    """Whether the remote did not get to say anything of the matter."""
    if isinstance(error, Refusal):
        return error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return isinstance(error, Unavailable)


def chunking_of(theirs: reapi.ServerCapabilities | None) -> FastCdc:
    """How blobs are cut: as the remote does it, so that its chunks are ours."""
    if theirs is not None and theirs.cache_capabilities.HasField("fast_cdc_2020_params"):
        told = theirs.cache_capabilities.fast_cdc_2020_params
        parameters = FastCdc(told.avg_chunk_size_bytes, told.seed)
        if parameters.valid:
            return parameters
    return FastCdc()


def _ours() -> reapi.ServerCapabilities:
    """A cache without execution."""
    zstd = [reapi.Compressor.ZSTD]
    cache = reapi.CacheCapabilities(
        # The numbers of our enumeration are REv2's.
        digest_functions=[
            reapi.DigestFunction.Value.ValueType(function)
            for function in DigestFunction
            if function.supported
        ],
        action_cache_update_capabilities=reapi.ActionCacheUpdateCapabilities(update_enabled=True),
        max_batch_total_size_bytes=BATCH_LIMIT,
        symlink_absolute_path_strategy=reapi.SymlinkAbsolutePathStrategy.ALLOWED,
        supported_compressors=zstd,
        supported_batch_update_compressors=zstd,
        split_blob_support=True,
        splice_blob_support=True,
        fast_cdc_2020_params=_parameters(FastCdc()),
    )
    return reapi.ServerCapabilities(
        cache_capabilities=cache,
        deprecated_api_version=_version(LOW_API_VERSION),
        low_api_version=_version(LOW_API_VERSION),
        high_api_version=_version(HIGH_API_VERSION),
    )


def _of_both(ours: reapi.ServerCapabilities, theirs: reapi.ServerCapabilities) -> reapi.ServerCapabilities:
    cache, told = ours.cache_capabilities, theirs.cache_capabilities
    known = set(cache.digest_functions)
    # A server that names none is given the benefit of the doubt, here and by the store's client.
    if told.digest_functions:
        common = [function for function in cache.digest_functions if function in set(told.digest_functions)]
        cache.digest_functions[:] = common
    cache.action_cache_update_capabilities.CopyFrom(told.action_cache_update_capabilities)
    if told.HasField("cache_priority_capabilities"):
        cache.cache_priority_capabilities.CopyFrom(told.cache_priority_capabilities)
    if told.max_batch_total_size_bytes > 0:
        cache.max_batch_total_size_bytes = min(BATCH_LIMIT, told.max_batch_total_size_bytes)
    cache.max_cas_blob_size_bytes = told.max_cas_blob_size_bytes
    if told.symlink_absolute_path_strategy == reapi.SymlinkAbsolutePathStrategy.DISALLOWED:
        cache.symlink_absolute_path_strategy = told.symlink_absolute_path_strategy
    cache.fast_cdc_2020_params.CopyFrom(_parameters(chunking_of(theirs)))
    if theirs.HasField("execution_capabilities"):
        execution = ours.execution_capabilities
        execution.CopyFrom(theirs.execution_capabilities)
        execution.digest_functions[:] = [
            function for function in execution.digest_functions if function in known
        ]
    low = (theirs.low_api_version.major, theirs.low_api_version.minor)
    high = (theirs.high_api_version.major, theirs.high_api_version.minor)
    # Unset versions read as 0.
    if low[0]:
        ours.low_api_version.CopyFrom(_version(max(LOW_API_VERSION, low)))
    if high[0]:
        ours.high_api_version.CopyFrom(_version(min(HIGH_API_VERSION, high)))
    return ours


def _parameters(chunking: FastCdc) -> reapi.FastCdc2020Params:
    return reapi.FastCdc2020Params(avg_chunk_size_bytes=chunking.average, seed=chunking.seed)


def _version(version: tuple[int, int]) -> semver.SemVer:
    return semver.SemVer(major=version[0], minor=version[1])
