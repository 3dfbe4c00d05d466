"""REv2 Digest messages to ours and back, with the rules for a digest function that is not told; never asks a store.

Source: REv2, `digest_function` fields. A client may leave the function out only where the length of the hash tells it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction, supported_names
from outputd.errors import Invalid

_BY_LENGTH: Final[Mapping[int, DigestFunction]] = {
    32: DigestFunction.MD5,
    40: DigestFunction.SHA1,
    64: DigestFunction.SHA256,
    96: DigestFunction.SHA384,
    128: DigestFunction.SHA512,
}


def told_function(value: int) -> DigestFunction | None:
    """The function a `digest_function` field names, None when it is left out. Raises Invalid for one we do not offer."""
    if value == reapi.DigestFunction.UNKNOWN:
        return None
    try:
        function = DigestFunction(value)
    except ValueError:
        raise Invalid(f"digest_function {value}: no such function; use one of {supported_names()}") from None
    if not function.supported:
        raise Invalid(f"digest_function {function.name}: not supported; use one of {supported_names()}")
    return function


def inferred_function(hash_hex: str) -> DigestFunction | None:
    """The function that hashes of this length belong to when none is told."""
    return _BY_LENGTH.get(len(hash_hex))


def request_function(value: int, digests: Iterable[reapi.Digest]) -> DigestFunction:
    """The one function of a request, told or inferred from its first digest whose length tells it. Raises Invalid."""
    function = told_function(value)
    if function is not None:
        return function
    for digest in digests:
        inferred = inferred_function(digest.hash)
        if inferred is not None:
            return inferred
    raise Invalid(
        "digest_function is not set and no digest of the request has a length to infer it from; set it"
    )


def parse_digest(message: reapi.Digest, function: DigestFunction, field: str) -> Digest:
    """Ours for theirs. Raises Invalid, naming the field."""
    try:
        return Digest.parse(function, message.hash, message.size_bytes)
    except Invalid as error:
        raise Invalid(f"{field}: {error}") from None


def digest_message(digest: Digest) -> reapi.Digest:
    """Theirs for ours."""
    return reapi.Digest(hash=digest.hash_hex, size_bytes=digest.size)
