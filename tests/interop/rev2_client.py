"""REv2 calls as a client of no particular kind makes them, good and bad; every answer becomes a word or a value to be compared."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message

from outputd._proto import bytestream_pb2 as bytestream
from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction

M = TypeVar("M", bound=Message)
SECONDS: Final = 60.0
REV2: Final = "/build.bazel.remote.execution.v2."
CAS: Final = REV2 + "ContentAddressableStorage/"
BYTE_STREAM: Final = "/google.bytestream.ByteStream/"


class Client:
    """Of one server."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def unary(self, method: str, request: Message | bytes, reply: type[M]) -> M:
        data = request if isinstance(request, bytes) else request.SerializeToString()
        answer: M = self._channel.unary_unary(method, None, reply.FromString)(data, timeout=SECONDS)
        return answer

    def stream(self, method: str, request: Message, reply: type[M]) -> Iterator[M]:
        invoke = self._channel.unary_stream(method, None, reply.FromString)
        return iter(invoke(request.SerializeToString(), timeout=SECONDS))

    # blobs

    def put(self, *blobs: bytes) -> list[reapi.Digest]:
        """For sure."""
        request = reapi.BatchUpdateBlobsRequest()
        for blob in blobs:
            request.requests.add(digest=digest_of(blob), data=blob)
        reply = self.unary(CAS + "BatchUpdateBlobs", request, reapi.BatchUpdateBlobsResponse)
        assert not any(response.status.code for response in reply.responses), reply
        return [digest_of(blob) for blob in blobs]

    def missing(self, *digests: reapi.Digest, function: int = 0) -> list[reapi.Digest]:
        request = reapi.FindMissingBlobsRequest(blob_digests=digests)
        request.digest_function = function  # type: ignore[assignment]
        reply = self.unary(CAS + "FindMissingBlobs", request, reapi.FindMissingBlobsResponse)
        return list(reply.missing_blob_digests)

    def has(self, blob: bytes) -> bool:
        return not self.missing(digest_of(blob))

    def update(self, *items: tuple[reapi.Digest, bytes], compressor: int = 0) -> list[str]:
        """The code of each, in the order of the request."""
        request = reapi.BatchUpdateBlobsRequest()
        for digest, data in items:
            item = request.requests.add(digest=digest, data=data)
            item.compressor = compressor  # type: ignore[assignment]
        reply = self.unary(CAS + "BatchUpdateBlobs", request, reapi.BatchUpdateBlobsResponse)
        codes = {
            (answer.digest.hash, answer.digest.size_bytes): answer.status.code for answer in reply.responses
        }
        return [code_name(codes[digest.hash, digest.size_bytes]) for digest, _ in items]

    def batch_read(self, *digests: reapi.Digest, compressors: Sequence[int] = ()) -> list[Any]:
        """Each one's response, in the order of the request."""
        request = reapi.BatchReadBlobsRequest(digests=digests, acceptable_compressors=compressors)  # type: ignore[arg-type]
        reply = self.unary(CAS + "BatchReadBlobs", request, reapi.BatchReadBlobsResponse)
        found = {(answer.digest.hash, answer.digest.size_bytes): answer for answer in reply.responses}
        return [found[digest.hash, digest.size_bytes] for digest in digests]

    def read(self, name: str, offset: int = 0, limit: int = 0) -> bytes:
        request = bytestream.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit)
        return b"".join(
            reply.data for reply in self.stream(BYTE_STREAM + "Read", request, bytestream.ReadResponse)
        )

    def write(self, requests: Iterable[bytestream.WriteRequest]) -> int:
        """committed_size."""
        invoke = self._channel.stream_unary(
            BYTE_STREAM + "Write",
            bytestream.WriteRequest.SerializeToString,
            bytestream.WriteResponse.FromString,
        )
        size: int = invoke(iter(requests), timeout=SECONDS).committed_size
        return size

    def begin_write(self, requests: Iterable[bytestream.WriteRequest]) -> Any:
        """The call, while it goes on."""
        invoke = self._channel.stream_unary(BYTE_STREAM + "Write", None, bytestream.WriteResponse.FromString)
        return invoke.future((request.SerializeToString() for request in requests), timeout=SECONDS)

    def write_status(self, name: str) -> tuple[int, bool]:
        request = bytestream.QueryWriteStatusRequest(resource_name=name)
        reply = self.unary(BYTE_STREAM + "QueryWriteStatus", request, bytestream.QueryWriteStatusResponse)
        return reply.committed_size, reply.complete


def digest_of(blob: bytes, size: int | None = None) -> reapi.Digest:
    digest = Digest.of(DigestFunction.SHA256, blob)
    return reapi.Digest(hash=digest.hash_hex, size_bytes=digest.size if size is None else size)


def read_name(digest: reapi.Digest, compressor: str = "") -> str:
    kind = f"compressed-blobs/{compressor}" if compressor else "blobs"
    return f"{kind}/{digest.hash}/{digest.size_bytes}"


def write_name(digest: reapi.Digest, compressor: str = "") -> str:
    return f"uploads/{uuid.uuid4()}/{read_name(digest, compressor)}"


def pieces(name: str, *parts: bytes, offset: int = 0, finish: bool = True) -> list[bytestream.WriteRequest]:
    """The requests of a Write."""
    requests = []
    for number, part in enumerate(parts):
        last = finish and number == len(parts) - 1
        requests.append(
            bytestream.WriteRequest(
                resource_name="" if number else name, write_offset=offset, data=part, finish_write=last
            )
        )
        offset += len(part)
    return requests


def code_name(number: int) -> str:
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)


def outcome(work: Callable[[], object]) -> object:
    """What it gives, or the name of the code with which it ends."""
    try:
        return work()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code.name
