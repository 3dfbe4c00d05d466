"""REv2 digests: parse, format, hash bytes, a file, a stream. Never touches a store or a protocol message.

Source of the rules: REv2 `Digest` and `DigestFunction` (remote_execution.proto): the hash is lowercase hex of full length and
the size is part of the identity.
"""

from __future__ import annotations

import enum
import hashlib
import os
from collections.abc import Callable
from struct import Struct
from typing import Final, Protocol

from outputd.errors import Invalid

_MAX_SIZE: Final = (1 << 63) - 1
_SIZE: Final[Callable[[bytes, int], tuple[int]]] = Struct(">Q").unpack_from  # half the time of int.from_bytes


class Hasher(Protocol):
    """The part of hashlib's interface that we rely on."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object: ...
    def digest(self) -> bytes: ...


class DigestFunction(enum.IntEnum):
    """REv2 DigestFunction.Value, by its standard numbers."""

    SHA256 = 1
    SHA1 = 2
    MD5 = 3
    VSO = 4
    SHA384 = 5
    SHA512 = 6
    MURMUR3 = 7
    SHA256TREE = 8
    BLAKE3 = 9
    GITSHA1 = 10

    @property
    def supported(self) -> bool:
        """Whether outputd can hash with it; VSO, MURMUR3 and GITSHA1 are refused."""
        return self in _HASHERS

    @property
    def hash_length(self) -> int:
        """Bytes of a raw hash (half the hex length)."""
        return _LENGTHS[self]

    @property
    def lower(self) -> str:
        """The lowercase name used in resource names and directory names."""
        return self.name.lower()

    def hasher(self) -> Hasher:
        """A fresh incremental hasher. Raises Invalid for a function we do not offer."""
        make = _HASHERS.get(self)
        if make is None:
            raise Invalid(f"digest function {self.name} is not supported; use one of {supported_names()}")
        return make()


def _blake3() -> Hasher:
    import blake3

    return blake3.blake3()


def _sha256tree() -> Hasher:
    from outputd.sha256tree import Sha256Tree

    return Sha256Tree()


_LENGTHS: Final = {
    DigestFunction.SHA256: 32,
    DigestFunction.SHA1: 20,
    DigestFunction.MD5: 16,
    DigestFunction.VSO: 33,
    DigestFunction.SHA384: 48,
    DigestFunction.SHA512: 64,
    DigestFunction.MURMUR3: 16,
    DigestFunction.SHA256TREE: 32,
    DigestFunction.BLAKE3: 32,
    DigestFunction.GITSHA1: 20,
}

_HASHERS: Final[dict[DigestFunction, Callable[[], Hasher]]] = {
    DigestFunction.SHA256: hashlib.sha256,
    DigestFunction.SHA1: lambda: hashlib.sha1(usedforsecurity=False),
    DigestFunction.MD5: lambda: hashlib.md5(usedforsecurity=False),
    DigestFunction.SHA384: hashlib.sha384,
    DigestFunction.SHA512: hashlib.sha512,
    DigestFunction.SHA256TREE: _sha256tree,
    DigestFunction.BLAKE3: _blake3,
}


def supported_names() -> str:
    """The functions we offer, for error messages and `--help`."""
    return ", ".join(f.name for f in _HASHERS)


class Digest(bytes):
    """A blob's identity: function, size and hash in one immutable bytes object.

    Layout: one byte function, eight bytes big-endian size, the raw hash. One object of 80 bytes instead of three of 160 in
    all, hashable and comparable at C speed; a tree holds one for each file.
    """

    __slots__ = ()

    @classmethod
    def make(cls, function: DigestFunction, raw_hash: bytes, size: int) -> Digest:
        """From a raw hash of the function's length and a size in bytes; trusts both."""
        return cls(function.to_bytes() + size.to_bytes(8) + raw_hash)

    @classmethod
    def parse(cls, function: DigestFunction, hex_hash: str, size: int) -> Digest:
        """From the REv2 fields. Raises Invalid, naming the field, unless the hash is lowercase hex of full length."""
        try:
            raw = bytes.fromhex(hex_hash)
        except ValueError:
            raw = b""
        if len(raw) != _LENGTHS[function] or raw.hex() != hex_hash:
            shown = hex_hash if len(hex_hash) <= 140 else hex_hash[:140] + "…"
            raise Invalid(
                f"digest.hash {shown!r}: expected {2 * _LENGTHS[function]} lowercase hex digits for {function.name}"
            )
        if not 0 <= size <= _MAX_SIZE:
            raise Invalid(f"digest.size_bytes {size}: expected a size of 0 or more")
        return cls(function.to_bytes() + size.to_bytes(8) + raw)

    @classmethod
    def of(cls, function: DigestFunction, data: bytes | bytearray | memoryview) -> Digest:
        """The digest of these bytes."""
        hasher = function.hasher()
        hasher.update(data)
        return cls.make(function, hasher.digest(), len(data))

    @classmethod
    def of_descriptor(
        cls, function: DigestFunction, fd: int, go_on: Callable[[], object] = lambda: None
    ) -> Digest:
        """The digest of what an open file holds from its first byte; moves no file offset. Raises OSError.

        `go_on` is called before each piece of 256 KiB, and may raise to end it.
        """
        hasher = function.hasher()
        buffer = bytearray(1 << 18)
        view = memoryview(buffer)
        offset = 0
        while True:
            go_on()
            count = os.preadv(fd, [buffer], offset)
            if not count:
                break
            hasher.update(view[:count])
            offset += count
        return cls.make(function, hasher.digest(), offset)

    @property
    def function(self) -> DigestFunction:
        return DigestFunction(self[0])

    @property
    def size(self) -> int:
        """Bytes of the blob."""
        (size,) = _SIZE(self, 1)
        return size

    @property
    def hash(self) -> bytes:
        """The raw hash."""
        return self[9:]

    @property
    def hash_hex(self) -> str:
        """The hash as lowercase hex, as every protocol shows it."""
        return self[9:].hex()

    def __str__(self) -> str:
        return f"{self.hash_hex}/{self.size}"

    def __repr__(self) -> str:
        return f"<Digest {self.function.lower}:{self}>"


def empty_digest(function: DigestFunction) -> Digest:
    """The digest of the empty blob, which every store holds without being told (REv2)."""
    return Digest.of(function, b"")
