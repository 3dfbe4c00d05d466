"""REv2 SplitBlob as a client: asks a server of which chunks a blob is made. Believes what it is told, and fetches nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from google.protobuf.message import DecodeError

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest
from outputd.errors import Corrupt, Invalid, NotFound
from outputd.store.waiting import in_thread

_SPLIT: Final = "/build.bazel.remote.execution.v2.ContentAddressableStorage/SplitBlob"
_READ_HERE: Final = 16 << 10


async def split(
    call: Callable[[str, bytes, str], Awaitable[bytes]], instance_name: str, digest: Digest, url: str
) -> Sequence[Digest] | None:
    """The chunks in order; None when the server knows none of this blob. `call` makes one call of a method, with the words for what
    it is about. Raises what that raises, and Corrupt for a reply that is none."""
    doing = f"split blob {digest}"
    request = reapi.SplitBlobRequest(
        instance_name=instance_name,
        blob_digest=reapi.Digest(hash=digest.hash_hex, size_bytes=digest.size),
        digest_function=reapi.DigestFunction.Value.Value(digest.function.name),
    )
    try:
        reply = await call(_SPLIT, request.SerializeToString(), doing)
    except NotFound:
        return None
    try:
        # A digest takes 2 us to read, and a blob may have many thousands of chunks.
        return _read(digest, reply) if len(reply) <= _READ_HERE else await in_thread(_read, digest, reply)
    except DecodeError as error:
        raise Corrupt(f"cannot {doing} at {url}: the reply is no SplitBlobResponse") from error
    except Invalid as error:
        raise Corrupt(f"cannot {doing} at {url}: the reply holds a malformed {error}") from error


def _read(digest: Digest, reply: bytes) -> Sequence[Digest]:
    return [
        Digest.parse(digest.function, message.hash, message.size_bytes)
        for message in reapi.SplitBlobResponse.FromString(reply).chunk_digests
    ]
