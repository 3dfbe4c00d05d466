from __future__ import annotations

import pytest
import uvloop

from outputd._proto import remote_execution_pb2 as reapi
from outputd.errors import Invalid
from outputd.rpc.capabilities import Capabilities
from outputd.rpc.client import Stub
from outputd.rpc.limits import BATCH_LIMIT
from outputd.rpc.services import service_handler
from tests.unit.rpc.loopback import served

SERVICE = reapi.DESCRIPTOR.services_by_name["Capabilities"]


def ask(*, instance: str = "", update_enabled: bool = True) -> reapi.ServerCapabilities:
    async def main() -> reapi.ServerCapabilities:
        async with served(service_handler(SERVICE, Capabilities(update_enabled=update_enabled))) as channel:
            request = reapi.GetCapabilitiesRequest(instance_name=instance)
            return await Stub(channel, SERVICE).call(
                "GetCapabilities", request, reapi.ServerCapabilities, timeout=10
            )

    return uvloop.run(main())


def test_a_cache_without_execution() -> None:
    answer = ask(instance="any/name")
    assert not answer.HasField("execution_capabilities")
    cache = answer.cache_capabilities
    names = {reapi.DigestFunction.Value.Name(value) for value in cache.digest_functions}
    assert names == {"SHA256", "SHA1", "SHA384", "SHA512", "MD5", "BLAKE3", "SHA256TREE"}
    assert cache.max_batch_total_size_bytes == BATCH_LIMIT
    assert cache.symlink_absolute_path_strategy == reapi.SymlinkAbsolutePathStrategy.ALLOWED
    assert cache.action_cache_update_capabilities.update_enabled
    assert not cache.supported_compressors
    assert not cache.supported_batch_update_compressors
    assert not cache.split_blob_support
    assert not cache.splice_blob_support
    assert (answer.low_api_version.major, answer.low_api_version.minor) == (2, 0)
    assert (answer.high_api_version.major, answer.high_api_version.minor) == (2, 12)


def test_what_it_says_of_updates_is_what_it_was_told() -> None:
    answer = ask(update_enabled=False)
    assert not answer.cache_capabilities.action_cache_update_capabilities.update_enabled


def test_an_impossible_instance_is_refused() -> None:
    with pytest.raises(Invalid, match="instance_name"):
        ask(instance="a//b")
