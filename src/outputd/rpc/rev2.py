"""The services of a REv2 endpoint, put together: our store, and the remote behind it for what needs one. Has no behaviour."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.descriptor import ServiceDescriptor

from outputd._proto import (
    bytestream_pb2,
    operations_pb2,
    remote_asset_pb2,
    remote_execution_pb2,
    remote_logstream_pb2,
)
from outputd.builds.write_back import WriteBack
from outputd.rpc.action_cache import ActionCache, ActionResults
from outputd.rpc.assets import Fetch, Push
from outputd.rpc.byte_stream import ByteStream
from outputd.rpc.capabilities import Capabilities, RemoteCapabilities
from outputd.rpc.cas import ContentAddressableStorage
from outputd.rpc.chunks import Chunks
from outputd.rpc.execution import Execution, Operations
from outputd.rpc.inlined import Inlined
from outputd.rpc.log_streams import LogStreamService
from outputd.rpc.passing import Passing
from outputd.store.base import ServedBlobs


def rev2_services(
    store: ServedBlobs,
    results: ActionResults,
    byte_stream: ByteStream,
    passing: Passing,
    *,
    check_results: Callable[[str], bool],
    queue: WriteBack | None = None,
) -> list[tuple[ServiceDescriptor, object]]:
    """Each with its descriptor. Those that need a remote are there without one, too, and say so."""
    remote = RemoteCapabilities(passing) if queue is None else RemoteCapabilities(passing, queue.takes)
    inlined = Inlined(store.local)
    services: list[object] = [
        ContentAddressableStorage(store, Chunks(store, passing, remote)),
        byte_stream,
        ActionCache(results, store, passing, inlined, check_results=check_results, queue=queue),
        Capabilities(remote),
        Execution(passing, inlined),
        Operations(passing),
        Fetch(passing),
        Push(passing),
        LogStreamService(passing),
    ]
    descriptors = {
        name: service
        for module in (
            bytestream_pb2,
            operations_pb2,
            remote_asset_pb2,
            remote_execution_pb2,
            remote_logstream_pb2,
        )
        for name, service in module.DESCRIPTOR.services_by_name.items()
    }
    return [(descriptors[type(service).__name__], service) for service in services]
