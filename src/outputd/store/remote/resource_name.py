"""ByteStream resource names of REv2, as a client writes them; pure text. Never parses one: that is a server's part."""

from __future__ import annotations

import uuid
from typing import Final

from outputd.digest import Digest, DigestFunction

# REv2 (remote_execution.proto, ContentAddressableStorage): functions numbered above 7 are named, the others must not be: their
# hash length tells them.
_LAST_UNNAMED: Final = DigestFunction.MURMUR3


def blob_name(instance_name: str, digest: Digest, compressor: str = "") -> str:
    """To read a blob, packed by a compressor unless that is empty."""
    return _within(instance_name, _blob(digest, compressor))


def upload_name(instance_name: str, digest: Digest, compressor: str = "") -> str:
    """To write a blob; another name each time, for each is an upload of its own."""
    return _within(instance_name, f"uploads/{uuid.uuid4()}/{_blob(digest, compressor)}")


def _blob(digest: Digest, compressor: str) -> str:
    function = digest.function
    blobs = f"compressed-blobs/{compressor}" if compressor else "blobs"
    named = f"{function.lower}/" if function > _LAST_UNNAMED else ""
    return f"{blobs}/{named}{digest}"


def _within(instance_name: str, name: str) -> str:
    return f"{instance_name}/{name}" if instance_name else name
