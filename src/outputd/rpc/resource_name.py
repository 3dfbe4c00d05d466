"""ByteStream resource names and REv2 instance names: parse and format; pure, never asks whether a blob exists.

Source: REv2, comments of ContentAddressableStorage. `[x/]` is left out when empty:

    read    [{instance}/]blobs/[{function}/]{hash}/{size}
    write   [{instance}/]uploads/{uuid}/blobs/[{function}/]{hash}/{size}[/{anything}]

and the same with `compressed-blobs/{compressor}` for `blobs`. Hash and size are those of the blob before compression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction
from outputd.errors import Invalid, Unsupported
from outputd.rpc.digests import inferred_function, parse_digest, told_function

_RESERVED: Final = frozenset(
    ("blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs")
)
_COMPRESSORS: Final = frozenset(name.lower() for name, number in reapi.Compressor.Value.items() if number)

# Only functions newer than resource names are named in them (REv2); the older ones are told by the length of the hash.
_NAMED: Final[Mapping[str, DigestFunction]] = {
    function.lower: function for function in DigestFunction if function > DigestFunction.MURMUR3
}
_SIZE_DIGITS: Final = 19
_READ_FORM: Final = "[{instance}/]blobs/[{function}/]{hash}/{size}"
_WRITE_FORM: Final = "[{instance}/]uploads/{uuid}/blobs/[{function}/]{hash}/{size}"


@dataclass(frozen=True, slots=True)
class BlobName:
    """A blob to read, in an instance. `compressor` is a lowercase name, empty for the blob as it is."""

    instance: str
    digest: Digest
    compressor: str = ""

    def __str__(self) -> str:
        return _joined(self.instance, _blob_parts(self.digest, self.compressor))


@dataclass(frozen=True, slots=True)
class UploadName:
    """A blob to write. `upload` tells one attempt from another, that is to say, it is what a resumed one repeats."""

    instance: str
    upload: str
    digest: Digest
    compressor: str = ""

    def __str__(self) -> str:
        return _joined(self.instance, ["uploads", self.upload, *_blob_parts(self.digest, self.compressor)])


def check_instance_name(name: str) -> None:
    """Raises Invalid for an instance name that could not be told from the rest of a resource name."""
    if not name:
        return
    for component in name.split("/"):
        if not component:
            raise Invalid(f"instance_name {name!r}: expected no leading, trailing or double slash")
        if component in _RESERVED:
            raise Invalid(f"instance_name {name!r}: {component!r} is a reserved word of resource names")
        if "\0" in component:
            raise Invalid(f"instance_name {name!r}: expected no NUL")


def parse_blob_name(name: str) -> BlobName:
    """Raises Invalid, or Unsupported for a compressor nobody knows."""
    parts = name.split("/")
    for index, part in enumerate(parts):
        if part in ("blobs", "compressed-blobs"):
            instance = "/".join(parts[:index])
            _check_instance(instance, index, name)
            digest, compressor = _parse_blob(parts[index:], name, _READ_FORM)
            return BlobName(instance, digest, compressor)
    raise Invalid(f"resource_name {_shown(name)}: expected {_READ_FORM}")


def parse_upload_name(name: str) -> UploadName:
    """Raises Invalid, or Unsupported for a compressor nobody knows."""
    parts = name.split("/")
    if "uploads" not in parts:
        raise Invalid(f"resource_name {_shown(name)}: expected {_WRITE_FORM}")
    index = parts.index("uploads")
    instance = "/".join(parts[:index])
    _check_instance(instance, index, name)
    upload = parts[index + 1] if index + 1 < len(parts) else ""
    if not upload:
        raise Invalid(f"resource_name {_shown(name)}: expected a uuid after 'uploads'")
    digest, compressor = _parse_blob(parts[index + 2 :], name, _WRITE_FORM)
    return UploadName(instance, upload, digest, compressor)


def operation_name(instance: str, name: str) -> str:
    """What clients are told of the operation that a remote calls `name`."""
    return _joined(instance, ["operations", name])


def parse_operation_name(name: str) -> tuple[str, str] | None:
    """Instance and the remote's name out of such a name; None for any other."""
    parts = name.split("/")
    if "operations" not in parts:
        return None
    # No instance name has this component (check_instance_name), while a remote's name may have.
    index = parts.index("operations")
    return "/".join(parts[:index]), "/".join(parts[index + 1 :])


def names_no_blob(name: str) -> bool:
    """Whether a name for ByteStream is for something else than a blob: a log stream, for instance."""
    return not {"blobs", "compressed-blobs", "uploads"}.intersection(name.split("/"))


def _parse_blob(parts: Sequence[str], name: str, form: str) -> tuple[Digest, str]:
    """Digest and compressor of `blobs/...` or `compressed-blobs/...`; what follows the size is for others to read."""
    rest = list(parts)
    kind = rest.pop(0) if rest else ""
    compressor = ""
    if kind == "compressed-blobs":
        compressor = rest.pop(0) if rest else ""
        if compressor not in _COMPRESSORS:
            raise Unsupported(f"resource_name {_shown(name)}: {_shown(compressor)} is no compressor we know")
    elif kind != "blobs":
        raise Invalid(f"resource_name {_shown(name)}: expected {form}")
    named = _NAMED.get(rest[0]) if rest else None
    if named is not None:
        rest.pop(0)
    if len(rest) < 2:
        raise Invalid(f"resource_name {_shown(name)}: expected {form}")
    hash_hex = rest[0]
    try:
        function = told_function(named) if named is not None else inferred_function(hash_hex)
    except Invalid as error:
        raise Invalid(f"resource_name {_shown(name)}: {error}") from error
    if function is None:
        raise Invalid(
            f"resource_name {_shown(name)}: {_shown(hash_hex)} has the length of no hash; expected {form}"
        )
    message = reapi.Digest(hash=hash_hex, size_bytes=_parse_size(rest[1], name))
    return parse_digest(message, function, f"resource_name {_shown(name)}"), compressor


def _parse_size(text: str, name: str) -> int:
    # As `str` writes it: int() would also take '+1', '1_0' and the digits of other scripts.
    if text.isascii() and text.isdigit() and len(text) <= _SIZE_DIGITS and str(int(text)) == text:
        size = int(text)
        if size < 1 << 63:
            return size
    raise Invalid(f"resource_name {_shown(name)}: size {_shown(text)} is no decimal 64-bit number of bytes")


def _check_instance(instance: str, parts: int, name: str) -> None:
    # A name that begins with a slash has one part in front of `blobs`, an empty one: no instance, and no empty instance.
    if parts and not instance:
        raise Invalid(f"resource_name {_shown(name)}: expected no leading slash")
    check_instance_name(instance)


def _blob_parts(digest: Digest, compressor: str) -> list[str]:
    parts = ["compressed-blobs", compressor] if compressor else ["blobs"]
    if digest.function.lower in _NAMED:
        parts.append(digest.function.lower)
    return [*parts, digest.hash_hex, str(digest.size)]


def _joined(instance: str, parts: Sequence[str]) -> str:
    return "/".join([instance, *parts] if instance else parts)


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 300 else repr(text[:300]) + "…"
