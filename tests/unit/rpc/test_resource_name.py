from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outputd.digest import Digest, DigestFunction
from outputd.errors import Invalid, Unsupported
from outputd.rpc.resource_name import (
    BlobName,
    UploadName,
    check_instance_name,
    parse_blob_name,
    parse_upload_name,
)

RESERVED = ["blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs"]
HASH = "a" * 64
DIGEST = Digest.parse(DigestFunction.SHA256, HASH, 12)
BLAKE3 = Digest.parse(DigestFunction.BLAKE3, HASH, 12)

functions = st.sampled_from([function for function in DigestFunction if function.supported])
digests = functions.flatmap(
    lambda function: st.builds(
        Digest.make,
        st.just(function),
        st.binary(min_size=function.hash_length, max_size=function.hash_length),
        st.integers(0, (1 << 63) - 1),
    )
)
components = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1).filter(
    lambda text: text not in RESERVED
)
instances = st.lists(components, max_size=3).map("/".join)
compressors = st.sampled_from(["", "zstd", "deflate", "brotli"])


@given(instances, digests, compressors)
def test_what_is_written_is_read_again(instance: str, digest: Digest, compressor: str) -> None:
    name = BlobName(instance, digest, compressor)
    assert parse_blob_name(str(name)) == name


@given(instances, components, digests, compressors, st.sampled_from(["", "/", "/meta/data", "/blobs/x"]))
def test_uploads_too_whatever_follows_the_size(
    instance: str, upload: str, digest: Digest, compressor: str, metadata: str
) -> None:
    name = UploadName(instance, upload, digest, compressor)
    assert parse_upload_name(str(name) + metadata) == name


words = st.sampled_from(
    [*RESERVED, "", "x", "zstd", "gzip", "identity", "blake3", "gitsha1", "sha256", HASH, "a" * 40, "a" * 66]
)
scraps = st.lists(st.one_of(words, st.sampled_from(["0", "12", "-1", "+1", "1_0", "01", "٣", str(1 << 63)])))


@given(st.one_of(scraps.map("/".join), st.text()))
@example("blobs/gitsha1/blobs/blobs")
def test_any_text_is_read_or_refused_in_our_words(text: str) -> None:
    for parse in (parse_blob_name, parse_upload_name):
        try:
            name = parse(text)
        except (Invalid, Unsupported) as error:
            assert "resource_name" in str(error) or "instance_name" in str(error)
        else:
            assert text.startswith(str(name))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"blobs/{HASH}/12", BlobName("", DIGEST)),
        (f"a/b/blobs/{HASH}/12", BlobName("a/b", DIGEST)),
        (f"blobs/{HASH}/12/trailing/parts", BlobName("", DIGEST)),
        (f"blobs/blake3/{HASH}/12", BlobName("", BLAKE3)),
        (f"main/compressed-blobs/zstd/blake3/{HASH}/12", BlobName("main", BLAKE3, "zstd")),
    ],
)
def test_names_of_the_standard(text: str, name: BlobName) -> None:
    assert parse_blob_name(text) == name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected"),
        (f"{HASH}/12", "expected"),
        (f"/blobs/{HASH}/12", "leading slash"),
        (f"a//blobs/{HASH}/12", "slash"),
        (f"uploads/u/blobs/{HASH}/12", "reserved"),
        (f"blobs/{HASH}", "expected"),
        (f"blobs/{HASH}/", "size ''"),
        (f"blobs/{HASH}/x", "size 'x'"),
        (f"blobs/{HASH}/+1", "size"),
        (f"blobs/{HASH}/012", "size"),
        (f"blobs/{HASH}/9223372036854775808", "64-bit"),
        (f"blobs/{HASH}/{'1' * 5000}", "64-bit"),
        (f"blobs/{HASH.upper()}/12", "lowercase"),
        (f"blobs/sha256/{HASH}/12", "'sha256' has the length of no hash"),
        (f"blobs/gitsha1/{'a' * 40}/12", "not supported"),
        (f"blobs/{'a' * 66}/12", "length of no hash"),
    ],
)
def test_names_that_are_refused(text: str, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        parse_blob_name(text)


def test_names_of_uploads_that_are_refused() -> None:
    for text in (
        "",
        f"blobs/{HASH}/12",
        "uploads",
        "uploads/u",
        f"uploads//blobs/{HASH}/12",
        f"uploads/u/{HASH}/12",
    ):
        with pytest.raises(Invalid, match="expected"):
            parse_upload_name(text)


def test_compressors_nobody_knows_are_unsupported() -> None:
    for compressor in ("gzip", "identity", ""):
        with pytest.raises(Unsupported, match="compressor"):
            parse_blob_name(f"compressed-blobs/{compressor}/{HASH}/12")


def test_instance_names() -> None:
    for good in ("", "main", "a/b", "блок"):
        check_instance_name(good)
    for bad in ("/", "/a", "a/", "a//b", "a\0b", *RESERVED, "a/blobs/b"):
        with pytest.raises(Invalid, match="instance_name"):
            check_instance_name(bad)
