"""Locators of BazelOutputService to our words and back: the fast way for what Bazel sends, the plain way for everything else.

The fast way compares with the bytes that protobuf itself writes for a locator, all of which are known but for path, hash and size.
What looks different goes the plain way, through protobuf, and means the same. Never decides what is done with an artifact.
"""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Sequence
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from outputd._proto import any_pb2
from outputd._proto import bazel_output_service_pb2 as bos
from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from outputd._proto import remote_execution_pb2 as reapi
from outputd.builds.staging import Artifact, TreeReference
from outputd.digest import Digest, DigestFunction
from outputd.errors import Invalid
from outputd.rpc.digests import parse_digest

_FILE_TYPE: Final = rev2.FileArtifactLocator.DESCRIPTOR.full_name
_TREE_TYPE: Final = rev2.TreeArtifactLocator.DESCRIPTOR.full_name
Packed = TypeVar("Packed", bound=Message)

_SIZE_TAG: Final = 0x10
_LONGEST_SIZE: Final = 9
"""Bytes of the longest size as a varint: 63 bits."""


def unpack(expected: type[Packed], packed: any_pb2.Any, field: str) -> Packed:
    """What is in an Any, whose type counts from the last slash on. Raises Invalid, naming the field."""
    name = expected.DESCRIPTOR.full_name
    if packed.type_url.rpartition("/")[2] != name:
        raise Invalid(f"{field}.type_url {packed.type_url!r}: expected type.googleapis.com/{name}")
    try:
        return expected.FromString(packed.value)
    except DecodeError as error:
        raise Invalid(f"{field}.value: is no {name}: {error}") from error


class LocatorCodec:
    """For the digests of one build."""

    def __init__(self, function: DigestFunction) -> None:
        self._function = function
        self._function_byte = function.to_bytes()
        self._hex = 2 * function.hash_length
        self._between: dict[int, bytes] = {}
        """What stands between a path and the hash of its locator, by the length of everything after the path."""
        self._before: dict[int, bytes] = {}
        """What stands before the hash in a reply of BatchStat, by the length of what comes after it."""
        for length in range(_LONGEST_SIZE + 1):
            tail = 1 + length if length else 0  # a size of 0 is not written at all
            after = self._hex + tail
            locator = self._locator("0" * self._hex, 1 << 7 * (length - 1) if length else 0)
            artifact = bos.StageArtifactsRequest.Artifact(locator=locator).SerializeToString()
            self._between[len(artifact)] = artifact[:-after]
            stat = bos.BatchStatResponse.Stat(file=bos.BatchStatResponse.Stat.File(locator=locator))
            reply = bos.BatchStatResponse(responses=[bos.BatchStatResponse.StatResponse(stat=stat)])
            self._before[tail] = reply.SerializeToString()[:-after]

    def artifacts(self, messages: Sequence[bytes], index: int) -> list[tuple[bytes, Artifact]]:
        """Path and content of each Artifact message; the first is `artifacts[index]` of StageArtifacts or FinalizeArtifacts.

        What is wrong with a locator comes in place of the content. Raises Invalid for what is no Artifact at all.
        """
        found: list[tuple[bytes, Artifact]] = []
        for message in messages:
            found.append(self._fast(message) or self._plain(message, index + len(found)))
        return found

    def stat(self, digest: Digest) -> bytes:
        """A file with its locator, as an entry of BatchStatResponse.responses."""
        size = digest.size
        if 0x80 <= size < 1 << 14:
            tail = bytes((_SIZE_TAG, size & 0x7F | 0x80, size >> 7))
        elif 1 << 14 <= size < 1 << 21:
            tail = bytes((_SIZE_TAG, size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14))
        else:
            tail = reapi.Digest(size_bytes=size).SerializeToString()
        return self._before[len(tail)] + digest[9:].hex().encode() + tail

    def _fast(self, data: bytes) -> tuple[bytes, Artifact] | None:
        end = len(data)
        hex_size = self._hex
        if end <= hex_size or data[0] != 0x0A:
            return None
        at = data[1]
        if at < 0x80:
            begin = 2
            at += 2
        else:
            more = data[2]
            if more >= 0x80:
                return None
            begin = 3
            at = (at & 0x7F | more << 7) + 3
        between = self._between.get(end - at)
        if between is None or not data.startswith(between, at):
            return None
        path = data[begin:at]
        at += len(between)
        hex_hash = data[at : at + hex_size]
        at += hex_size
        size = 0
        if at < end:
            last = data[-1]
            if data[at] != _SIZE_TAG or last >= 0x80:
                return None
            shift = 0
            for byte in data[at + 1 : -1]:
                if byte < 0x80:
                    return None
                size |= (byte & 0x7F) << shift
                shift += 7
            size |= last << shift
        if hex_hash.lower() != hex_hash or not path.isascii():
            return None
        try:
            return path, Digest(self._function_byte + size.to_bytes(8) + unhexlify(hex_hash))
        except ValueError:
            return None  # no hexadecimal digits

    def _plain(self, data: bytes, index: int) -> tuple[bytes, Artifact]:
        field = f"artifacts[{index}]"
        try:
            artifact = bos.StageArtifactsRequest.Artifact.FromString(data)
        except DecodeError as error:
            raise Invalid(f"{field}: is no Artifact message: {error}") from error
        content: Artifact
        try:
            content = self._content(artifact, f"{field}.locator")
        except Invalid as error:
            content = error
        return artifact.path.encode(), content

    def _content(self, artifact: bos.StageArtifactsRequest.Artifact, field: str) -> Artifact:
        if not artifact.HasField("locator"):
            raise Invalid(f"{field}: is missing, expected an Any with a {_FILE_TYPE} or a {_TREE_TYPE}")
        if artifact.locator.type_url.rpartition("/")[2] == _TREE_TYPE:
            return self._tree(unpack(rev2.TreeArtifactLocator, artifact.locator, field), field)
        file = unpack(rev2.FileArtifactLocator, artifact.locator, field)
        if not file.HasField("digest"):
            raise Invalid(f"{field}.digest: is missing")
        return parse_digest(file.digest, self._function, f"{field}.digest")

    def _tree(self, locator: rev2.TreeArtifactLocator, field: str) -> TreeReference:
        tree = root = None
        if locator.HasField("tree_digest"):
            tree = parse_digest(locator.tree_digest, self._function, f"{field}.tree_digest")
        if locator.HasField("root_directory_digest"):
            root = parse_digest(
                locator.root_directory_digest, self._function, f"{field}.root_directory_digest"
            )
        if tree is None and root is None:
            raise Invalid(f"{field}: has neither a tree_digest nor a root_directory_digest")
        return TreeReference(tree, root)

    def _locator(self, hex_hash: str, size: int) -> any_pb2.Any:
        value = rev2.FileArtifactLocator(digest=reapi.Digest(hash=hex_hash, size_bytes=size))
        return any_pb2.Any(type_url=f"type.googleapis.com/{_FILE_TYPE}", value=value.SerializeToString())
