"""Blobs one by one, by ByteStream: resumed reads, repeated writes, as they are or as Zstandard. Never asks what a server can."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Final

from outputd._proto import bytestream_pb2 as bytestream
from outputd.digest import Digest
from outputd.errors import Corrupt, Invalid, Unsupported
from outputd.store.base import Piece
from outputd.store.remote import packing
from outputd.store.remote.connection import Connection
from outputd.store.remote.replies import parse, piece_of
from outputd.store.remote.resource_name import blob_name, upload_name
from outputd.store.remote.retry import Failure, Tries
from outputd.store.zstd import Decompressing

_READ: Final = "/google.bytestream.ByteStream/Read"
_WRITE: Final = "/google.bytestream.ByteStream/Write"

_UPLOAD_PIECE: Final = 1 << 20
# Stream pieces without a byte are legal and, without a limit, a way to keep us for ever.
_EMPTY_PIECES: Final = 1_000
# Bytes of a stream that count as progress: a server that gives one a try would be tried for ever.
_PROGRESS: Final = 4096
# Bytes that are unpacked sooner than a thread has started.
_UNPACK_HERE: Final = 64 << 10


class Streams:
    """The streams of one instance of one server."""

    def __init__(self, connection: Connection, instance_name: str, retry_seconds: float) -> None:
        self._connection = connection
        self._instance_name = instance_name
        self._retry_seconds = retry_seconds

    async def read(self, digest: Digest, offset: int, limit: int, *, packed: bool) -> AsyncGenerator[Piece]:
        """As RemoteBlobs.read_stream. `packed`: the server offers Zstandard.

        What comes packed and cannot be unpacked is asked for as it is; so it is a matter of the server's, not of the blob.
        """
        doing = f"read blob {digest}"
        tries = Tries(self._retry_seconds)
        size = min(digest.size, offset + limit) if limit else digest.size
        packed = packed and size - offset >= (packing.FROM if size == digest.size else packing.RANGE)
        progressed = offset
        empty = 0
        while offset < size:
            failure: Failure | None = None
            async with aclosing(self._replies(digest, offset, size, doing, packed=packed)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Failure):
                        failure = piece
                        break
                    if not piece:
                        empty += 1
                        if empty > _EMPTY_PIECES:
                            raise self._corrupt(digest, "pieces come without a byte in them")
                        continue
                    if limit and offset + len(piece) > size:
                        piece = piece[: size - offset]  # of a server that knows no limits, or was told none
                    offset += len(piece)
                    if offset > size:
                        raise self._corrupt(digest, f"more than {size} bytes came")
                    yield piece
                    if offset - progressed >= _PROGRESS:
                        tries.progress()  # only now: the time that the receiver takes is not the server's
                        progressed = offset
                        empty = 0
                    if limit and offset == size:
                        return
            if offset < size:
                if failure is None:
                    error = self._corrupt(digest, f"the stream ended after {offset} of {digest.size} bytes")
                    failure = Failure(error, transient=True)
                if packed and isinstance(failure.error, (Unsupported, Invalid)):
                    packed = False
                    continue
                await tries.again(failure)

    async def write(self, digest: Digest, data: Callable[[], AsyncGenerator[bytes]], *, packed: bool) -> None:
        """As RemoteBlobs.write. `packed`: the server takes Zstandard; the blob's beginning decides whether it gets it."""
        doing = f"write blob {digest}"
        tries = Tries(self._retry_seconds)
        packed = packed and digest.size >= packing.FROM
        while True:
            async with aclosing(data()) as pieces:
                first = await anext(pieces, b"")
                packed = packed and await packing.gains_from(first)
                name = upload_name(self._instance_name, digest, packing.ZSTD if packed else "")
                upload = _Upload(name)
                whole = packing.packed(first, pieces) if packed else _chained(first, pieces)
                async with aclosing(whole) as sent, aclosing(upload.requests(sent)) as requests:
                    reply = await self._connection.send(_WRITE, requests, name, doing)
            if not isinstance(reply, Failure):
                committed = parse(bytestream.WriteResponse, reply, doing).committed_size
                # -1 is how servers say that they had the blob already; of a packed one they count what came, or what it stands for.
                if committed in (digest.size, -1) or (packed and committed == upload.size):
                    return
                error = Corrupt(
                    f"cannot {doing} at {self._connection.endpoint}: the server kept {committed} bytes of {digest.size}"
                )
                reply = Failure(error, transient=True)
            elif packed and isinstance(reply.error, (Unsupported, Invalid)):
                packed = False
                continue
            await tries.again(reply)

    async def _replies(
        self, digest: Digest, offset: int, end: int, doing: str, *, packed: bool
    ) -> AsyncGenerator[Piece | Failure]:
        """What one call gives; it may be more than up to `end`. When it breaks, the last item is a Failure.

        The failure is Invalid for what is no Zstandard.
        """
        name = blob_name(self._instance_name, digest, packing.ZSTD if packed else "")
        bounded = end < digest.size and not packed
        request = bytestream.ReadRequest(
            resource_name=name, read_offset=offset, read_limit=end - offset if bounded else 0
        ).SerializeToString()
        frames = Decompressing(digest.size - offset)
        few = digest.size - offset <= _UNPACK_HERE
        async with aclosing(self._connection.receive(_READ, request, name, doing)) as replies:
            async for reply in replies:
                if isinstance(reply, Failure):
                    yield reply
                    return
                piece = piece_of(reply, doing)
                if not packed or not piece:
                    yield piece
                    continue
                nothing = True
                try:
                    async with aclosing(packing.unpacked(frames, piece, few=few)) as pieces:
                        async for some in pieces:
                            nothing = False
                            yield some
                except Invalid as error:
                    text = f"cannot {doing} from {self._connection.endpoint}: {error}"
                    yield Failure(Invalid(text), transient=True)
                    return
                if nothing:
                    yield b""

    def _corrupt(self, digest: Digest, what: str) -> Corrupt:
        return Corrupt(f"blob {digest} from {self._connection.endpoint}: {what}")


class _Upload:
    """A blob as ByteStream.Write wants it: the name first, offsets that grow by the bytes sent, an end that says so."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.size = 0
        """Bytes sent so far."""

    async def requests(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        async for piece in pieces:
            for start in range(0, len(piece), _UPLOAD_PIECE):
                data = piece[start : start + _UPLOAD_PIECE]
                name = self._name if self.size == 0 else ""
                request = bytestream.WriteRequest(resource_name=name, write_offset=self.size, data=data)
                yield request.SerializeToString()
                self.size += len(data)
        yield bytestream.WriteRequest(write_offset=self.size, finish_write=True).SerializeToString()


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    yield first
    async for piece in rest:
        yield piece
