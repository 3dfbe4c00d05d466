"""A real gRPC server on a unix socket and a channel to it, for the tests of services; gone when the block ends."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from outputd.rpc.services import SERVER_OPTIONS


@asynccontextmanager
async def served(*handlers: grpc.GenericRpcHandler[bytes, bytes]) -> AsyncIterator[grpc.aio.Channel]:
    """A channel as Bazel has it: with gRPC's own limit of 4 MiB for what comes in."""
    # Not pytest's directory: the path of a socket has room for 107 bytes.
    with tempfile.TemporaryDirectory(prefix="outputd-rpc-") as directory:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers(handlers)
        server.add_insecure_port(f"unix:{directory}/socket")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"unix:{directory}/socket") as channel:
                yield channel
        finally:
            await server.stop(None)
