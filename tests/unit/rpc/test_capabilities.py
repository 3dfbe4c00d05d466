from __future__ import annotations

import grpc
import pytest
import uvloop

from outputd._proto import remote_execution_pb2 as reapi
from outputd.errors import Denied, Invalid, Unavailable
from outputd.rpc import capabilities
from outputd.rpc.capabilities import Capabilities, RemoteCapabilities
from outputd.rpc.client import Stub
from outputd.rpc.limits import BATCH_LIMIT
from outputd.rpc.services import service_handler
from tests.unit.rpc.loopback import served
from tests.unit.rpc.played_remote import PlayedRemote, Refused, passing_to, plain_cache

SERVICE = reapi.DESCRIPTOR.services_by_name["Capabilities"]


def ask(*, instance: str = "", played: PlayedRemote | None = None) -> reapi.ServerCapabilities:
    async def main() -> reapi.ServerCapabilities:
        async with passing_to(played) as passing:
            return await asked(RemoteCapabilities(passing), instance)

    return uvloop.run(main())


async def asked(remote: RemoteCapabilities, instance: str = "") -> reapi.ServerCapabilities:
    async with served(service_handler(SERVICE, Capabilities(remote))) as channel:
        request = reapi.GetCapabilitiesRequest(instance_name=instance)
        return await Stub(channel, SERVICE).call(
            "GetCapabilities", request, reapi.ServerCapabilities, timeout=10
        )


def test_a_cache_without_execution() -> None:
    answer = ask(instance="any/name")
    assert not answer.HasField("execution_capabilities")
    cache = answer.cache_capabilities
    names = {reapi.DigestFunction.Value.Name(value) for value in cache.digest_functions}
    assert names == {"SHA256", "SHA1", "SHA384", "SHA512", "MD5", "BLAKE3", "SHA256TREE"}
    assert cache.max_batch_total_size_bytes == BATCH_LIMIT
    assert cache.symlink_absolute_path_strategy == reapi.SymlinkAbsolutePathStrategy.ALLOWED
    assert cache.action_cache_update_capabilities.update_enabled
    assert cache.supported_compressors == [reapi.Compressor.ZSTD]
    assert cache.supported_batch_update_compressors == [reapi.Compressor.ZSTD]
    assert cache.split_blob_support
    assert cache.splice_blob_support
    assert cache.fast_cdc_2020_params.avg_chunk_size_bytes == 512 << 10
    assert (answer.low_api_version.major, answer.low_api_version.minor) == (2, 0)
    assert (answer.high_api_version.major, answer.high_api_version.minor) == (2, 12)


def test_with_a_remote_no_more_than_both_can() -> None:
    told = plain_cache()
    cache = told.cache_capabilities
    cache.digest_functions.extend([reapi.DigestFunction.VSO, reapi.DigestFunction.BLAKE3])
    cache.max_batch_total_size_bytes = 1000
    cache.max_cas_blob_size_bytes = 1 << 40
    cache.symlink_absolute_path_strategy = reapi.SymlinkAbsolutePathStrategy.DISALLOWED
    cache.supported_compressors.append(reapi.Compressor.BROTLI)
    cache.fast_cdc_2020_params.avg_chunk_size_bytes = 1 << 16
    cache.rep_max_cdc_params.min_chunk_size_bytes = 1 << 16
    cache.cache_priority_capabilities.priorities.add(max_priority=5)
    told.execution_capabilities.exec_enabled = True
    told.execution_capabilities.digest_functions.extend(
        [reapi.DigestFunction.SHA256, reapi.DigestFunction.VSO]
    )
    told.low_api_version.minor = 1
    told.high_api_version.minor = 3
    answer = ask(played=telling(told))
    both = answer.cache_capabilities
    assert both.digest_functions == [reapi.DigestFunction.SHA256, reapi.DigestFunction.BLAKE3]
    assert not both.action_cache_update_capabilities.update_enabled
    assert both.max_batch_total_size_bytes == 1000
    assert both.max_cas_blob_size_bytes == 1 << 40
    assert both.symlink_absolute_path_strategy == reapi.SymlinkAbsolutePathStrategy.DISALLOWED
    assert both.supported_compressors == [reapi.Compressor.ZSTD]
    assert both.fast_cdc_2020_params.avg_chunk_size_bytes == 1 << 16
    assert not both.HasField("rep_max_cdc_params")
    assert both.cache_priority_capabilities.priorities[0].max_priority == 5
    assert answer.execution_capabilities.exec_enabled
    assert answer.execution_capabilities.digest_functions == [reapi.DigestFunction.SHA256]
    versions = [answer.low_api_version, answer.high_api_version]
    assert [(version.major, version.minor) for version in versions] == [(2, 1), (2, 3)]


def test_a_plain_cas_behind_changes_nothing() -> None:
    played = PlayedRemote()
    played.answers["BatchReadBlobs"] = reapi.BatchReadBlobsResponse()
    assert ask(played=played) == ask()


def test_the_last_answer_holds_while_the_remote_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    played = telling(plain_cache())

    async def main() -> None:
        async with passing_to(played, "settings") as passing:
            remote = RemoteCapabilities(passing)
            first = await asked(remote)
            assert await asked(remote) == first
            assert len(played.requests) == 1
            monkeypatch.setattr(capabilities, "_FRESH", 0.0)
            played.answers["GetCapabilities"] = Refused(grpc.StatusCode.UNAVAILABLE, "away")
            assert await asked(remote) == first
            assert len(played.requests) == 2
            with pytest.raises(Unavailable, match="away"):
                await asked(remote, "other")
            played.answers["GetCapabilities"] = Refused(grpc.StatusCode.PERMISSION_DENIED, "not you")
            with pytest.raises(Denied, match="not you"):
                await asked(remote)

    uvloop.run(main())


def test_where_uploads_are_queued_a_remote_that_never_answered_is_a_plain_cas() -> None:
    played = PlayedRemote()
    played.answers["GetCapabilities"] = Refused(grpc.StatusCode.UNAVAILABLE, "away")

    async def main() -> None:
        async with passing_to(played) as passing:
            remote = RemoteCapabilities(passing, lambda name: name == "main")
            assert await asked(remote, "main") == ours
            with pytest.raises(Unavailable, match="away"):
                await asked(remote, "other")
            played.answers["GetCapabilities"] = plain_cache()
            assert await asked(remote, "main") != ours

    ours = ask()
    uvloop.run(main())


def telling(told: reapi.ServerCapabilities) -> PlayedRemote:
    played = PlayedRemote()
    played.answers["GetCapabilities"] = told
    return played


def test_an_impossible_instance_is_refused() -> None:
    with pytest.raises(Invalid, match="instance_name"):
        ask(instance="a//b")
