"""Digests: known vectors of every function, what parse refuses, what identity is made of."""

from __future__ import annotations

import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outputd.digest import Digest, DigestFunction, empty_digest, supported_names
from outputd.errors import Invalid

F = DigestFunction

# "abc" (FIPS 180-4, RFC 1321, the BLAKE3 reference); SHA256TREE of up to 1024 bytes is SHA-256.
ABC = {
    F.SHA256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    F.SHA1: "a9993e364706816aba3e25717850c26c9cd0d89d",
    F.MD5: "900150983cd24fb0d6963f7d28e17f72",
    F.SHA384: "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
    F.SHA512: "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
    "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
    F.SHA256TREE: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    F.BLAKE3: "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
}

EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("function", ABC)
def test_known_vector(function: DigestFunction) -> None:
    digest = Digest.of(function, b"abc")
    assert str(digest) == f"{ABC[function]}/3"
    assert digest == Digest.parse(function, ABC[function], 3)
    assert (digest.function, digest.size, digest.hash.hex()) == (function, 3, ABC[function])
    assert len(digest.hash) == function.hash_length


def test_the_functions_we_hash_with_are_those_with_vectors() -> None:
    assert {function for function in F if function.supported} == set(ABC)
    assert supported_names().split(", ") == [function.name for function in ABC]


@pytest.mark.parametrize("function", [F.VSO, F.MURMUR3, F.GITSHA1])
def test_other_functions_are_refused_by_name(function: DigestFunction) -> None:
    with pytest.raises(Invalid, match=rf"{function.name} is not supported; use one of .*SHA256"):
        function.hasher()


@pytest.mark.parametrize(
    ("hex_hash", "size", "names"),
    [
        ("", 0, "digest.hash"),
        (EMPTY_SHA256.upper(), 0, "digest.hash"),
        (EMPTY_SHA256[:-1], 0, "digest.hash"),
        (EMPTY_SHA256 + "00", 0, "digest.hash"),
        (EMPTY_SHA256[:-1] + "g", 0, "digest.hash"),
        (" " + EMPTY_SHA256[:-1], 0, "digest.hash"),
        (EMPTY_SHA256[:32] + " " + EMPTY_SHA256[32:], 0, "digest.hash"),
        ("é" * 64, 0, "digest.hash"),
        ("../" * 21 + "a", 0, "digest.hash"),
        (EMPTY_SHA256, -1, "digest.size_bytes"),
        (EMPTY_SHA256, 1 << 63, "digest.size_bytes"),
    ],
)
def test_malformed_digests_name_the_field(hex_hash: str, size: int, names: str) -> None:
    with pytest.raises(Invalid, match=names):
        Digest.parse(F.SHA256, hex_hash, size)


def test_an_endless_hash_is_not_echoed() -> None:
    with pytest.raises(Invalid) as caught:
        Digest.parse(F.SHA256, "0" * 1_000_000, 1)
    assert len(str(caught.value)) < 400


def test_the_largest_size_is_kept() -> None:
    assert Digest.parse(F.SHA256, EMPTY_SHA256, (1 << 63) - 1).size == (1 << 63) - 1


def test_function_and_size_are_part_of_the_identity() -> None:
    assert Digest.of(F.SHA256, b"abc") != Digest.of(F.SHA256TREE, b"abc")
    assert Digest.parse(F.SHA256, EMPTY_SHA256, 0) != Digest.parse(F.SHA256, EMPTY_SHA256, 1)
    assert len({Digest.of(F.SHA256, b"abc"), Digest.of(F.SHA256, b"abc")}) == 1


def test_repr_names_the_function() -> None:
    assert repr(empty_digest(F.SHA256)) == f"<Digest sha256:{EMPTY_SHA256}/0>"


@pytest.mark.parametrize("function", ABC)
def test_a_descriptor_is_hashed_from_its_start_and_not_moved(function: DigestFunction) -> None:
    content = os.urandom((1 << 18) + 17)
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        file.seek(5)
        assert Digest.of_descriptor(function, file.fileno()) == Digest.of(function, content)
        assert file.tell() == 5


@given(st.sampled_from(list(ABC)), st.binary(max_size=300), st.integers(0, (1 << 63) - 1))
def test_what_is_made_is_read_back(function: DigestFunction, data: bytes, size: int) -> None:
    raw = Digest.of(function, data).hash
    digest = Digest.make(function, raw, size)
    assert Digest.parse(function, digest.hash_hex, digest.size) == digest
    assert (digest.function, digest.hash, digest.size) == (function, raw, size)
