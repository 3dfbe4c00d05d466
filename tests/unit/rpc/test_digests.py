from __future__ import annotations

import pytest

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction
from outputd.errors import Invalid
from outputd.rpc.digests import digest_message, parse_digest, request_function, told_function

UNKNOWN = reapi.DigestFunction.UNKNOWN


def test_our_numbers_are_those_of_rev2() -> None:
    ours = {function.name: function.value for function in DigestFunction}
    assert ours == {name: number for name, number in reapi.DigestFunction.Value.items() if number}


@pytest.mark.parametrize("function", [function for function in DigestFunction if function.supported])
def test_messages_and_digests_go_both_ways(function: DigestFunction) -> None:
    digest = Digest.of(function, b"abc")
    assert parse_digest(digest_message(digest), function, "d") == digest
    assert told_function(function.value) is function


@pytest.mark.parametrize(
    ("length", "function"),
    [
        (32, DigestFunction.MD5),
        (40, DigestFunction.SHA1),
        (64, DigestFunction.SHA256),
        (96, DigestFunction.SHA384),
        (128, DigestFunction.SHA512),
    ],
)
def test_a_function_that_is_left_out_is_told_by_the_length_of_the_hash(
    length: int, function: DigestFunction
) -> None:
    odd = reapi.Digest(hash="not a hash")
    assert request_function(UNKNOWN, [odd, reapi.Digest(hash="0" * length)]) is function


@pytest.mark.parametrize("length", [0, 63, 66])
def test_other_lengths_tell_nothing(length: int) -> None:
    with pytest.raises(Invalid, match="digest_function is not set"):
        request_function(UNKNOWN, [reapi.Digest(hash="0" * length)])


@pytest.mark.parametrize("value", [reapi.DigestFunction.VSO, reapi.DigestFunction.GITSHA1, 77, -1])
def test_functions_we_do_not_offer_are_named_with_those_we_do(value: int) -> None:
    with pytest.raises(Invalid, match=r"digest_function .*SHA256"):
        told_function(value)


def test_a_malformed_digest_is_refused_by_the_name_of_its_field() -> None:
    for message in (
        reapi.Digest(hash="A" * 64, size_bytes=1),
        reapi.Digest(hash="a" * 40, size_bytes=1),
        reapi.Digest(hash="a" * 64, size_bytes=-1),
    ):
        with pytest.raises(Invalid, match=r"^blob_digests\[7\]: digest\."):
            parse_digest(message, DigestFunction.SHA256, "blob_digests[7]")
