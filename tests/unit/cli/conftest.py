"""A console to read back, and a daemon's Admin service without the daemon."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from outputd._proto.admin_pb2 import (
    CollectGarbageRequest,
    CollectGarbageResponse,
    GetStatusRequest,
    GetStatusResponse,
    ListOperationsRequest,
    ListOperationsResponse,
)
from outputd.cli.console import Console
from outputd.cli.main import run


@dataclass
class Spoken:
    """One command's exit code and what it said."""

    code: int
    out: str
    err: str


@dataclass
class Commands:
    """Runs command lines in a home of their own."""

    home: Path
    environ: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str) -> Spoken:
        out, err = io.StringIO(), io.StringIO()
        environ = {"HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.home), "PATH": "/usr/bin:/bin"}
        code = run(arguments, Console(environ | self.environ, out, err))
        return Spoken(code, out.getvalue(), err.getvalue())


@pytest.fixture
def outputd(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


@dataclass
class Operations:
    """A daemon that is asked what is under way."""

    reply: ListOperationsResponse = field(default_factory=ListOperationsResponse)
    asked: list[float] = field(default_factory=list)
    """The ages it was asked for, in seconds."""

    def answer(self, request: ListOperationsRequest, _context: object) -> ListOperationsResponse:
        self.asked.append(request.older_than.seconds + request.older_than.nanos / 1e9)
        return self.reply


@pytest.fixture
def operations(tmp_path: Path) -> Iterator[Operations]:
    """Served at the usual socket of `outputd`'s home."""
    served = Operations()
    server = grpc.server(ThreadPoolExecutor(2))
    method = grpc.unary_unary_rpc_method_handler(
        served.answer, ListOperationsRequest.FromString, ListOperationsResponse.SerializeToString
    )
    _serve(server, tmp_path, {"ListOperations": method})
    yield served
    server.stop(None).wait()


def _serve(server: grpc.Server, home: Path, methods: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
    handler = grpc.method_handlers_generic_handler("outputd.v1.Admin", methods)
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix:{home}/outputd.sock")
    server.start()


Answer = Callable[[GetStatusRequest, grpc.ServicerContext], GetStatusResponse]
Collect = Callable[[CollectGarbageRequest], Iterator[CollectGarbageResponse]]


@pytest.fixture
def serve_admin(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Serves the given answer at the usual socket of `outputd`'s home, and what `outputd gc` asks for."""
    server = grpc.server(ThreadPoolExecutor(2))

    def serve(answer: Answer, collect: Collect | None = None) -> None:
        method = grpc.unary_unary_rpc_method_handler(
            answer, GetStatusRequest.FromString, GetStatusResponse.SerializeToString
        )
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {"GetStatus": method}
        if collect is not None:
            methods["CollectGarbage"] = grpc.unary_stream_rpc_method_handler(
                lambda request, context: collect(request),
                CollectGarbageRequest.FromString,
                CollectGarbageResponse.SerializeToString,
            )
        _serve(server, tmp_path, methods)

    yield serve
    server.stop(None).wait()


@pytest.fixture
def daemon(serve_admin: Callable[..., None]) -> GetStatusResponse:
    """A running daemon; what it answers may still be changed."""
    status = GetStatusResponse(version="9.9", pid=321, listen_addresses=["unix:/s", "127.0.0.1:1"])
    status.uptime.FromSeconds(3725)
    status.mount.path, status.mount.abi = "/mnt/out", "7.45"
    status.store.path, status.store.blobs, status.store.blob_bytes = "/c", -1, -1
    status.store.total_bytes, status.store.available_bytes = 100 << 30, 30 << 30
    serve_admin(lambda request, context: status)
    return status
