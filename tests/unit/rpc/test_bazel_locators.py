"""Locators: the fast way and the plain way mean the same, in both directions, and every error names its field."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outputd._proto import any_pb2
from outputd._proto import bazel_output_service_pb2 as bos
from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from outputd._proto import remote_execution_pb2 as reapi
from outputd.builds.staging import Artifact, TreeReference
from outputd.digest import Digest, DigestFunction
from outputd.errors import Invalid
from outputd.rpc.bazel_locators import LocatorCodec, unpack

SHA256 = DigestFunction.SHA256
SUPPORTED = [function for function in DigestFunction if function.supported]
CODECS = {function: LocatorCodec(function) for function in SUPPORTED}
FILE = "type.googleapis.com/bazel_output_service_rev2.FileArtifactLocator"
TREE = "type.googleapis.com/bazel_output_service_rev2.TreeArtifactLocator"
HASH = "0123456789abcdef" * 4
DIGEST = Digest.parse(SHA256, HASH, 5)

digests = st.sampled_from(SUPPORTED).flatmap(
    lambda function: st.builds(
        Digest.make,
        st.just(function),
        st.binary(min_size=function.hash_length, max_size=function.hash_length),
        st.integers(0, (1 << 63) - 1) | st.integers(0, 70).map(lambda bits: (1 << bits) % (1 << 63)),
    )
)


def _proto(digest: Digest) -> reapi.Digest:
    return reapi.Digest(hash=digest.hash_hex, size_bytes=digest.size)


def _file(digest: reapi.Digest | None, type_url: str = FILE) -> any_pb2.Any:
    return any_pb2.Any(type_url=type_url, value=rev2.FileArtifactLocator(digest=digest).SerializeToString())


def _artifact(path: str, locator: any_pb2.Any | None) -> bytes:
    return bos.StageArtifactsRequest.Artifact(path=path, locator=locator).SerializeToString()


def _taken(data: bytes, function: DigestFunction = SHA256) -> tuple[bytes, Artifact]:
    (taken,) = CODECS[function].artifacts([data], 3)
    return taken


def _error(locator: any_pb2.Any | None) -> str:
    path, content = _taken(_artifact("path", locator))
    assert path == b"path"
    assert isinstance(content, Invalid)
    return str(content)


@given(digests, st.text(max_size=300))
@example(Digest.make(SHA256, bytes(32), 0), "")
@example(Digest.make(SHA256, bytes(32), 127), "x" * 127)
@example(Digest.make(SHA256, bytes(32), 128), "x" * 128)
@example(Digest.make(SHA256, bytes(32), (1 << 63) - 1), "x" * 16384)
def test_a_file_as_protobuf_writes_it(digest: Digest, path: str) -> None:
    data = _artifact(path, _file(_proto(digest)))
    codec = CODECS[digest.function]
    assert codec.artifacts([data], 0) == [(path.encode(), digest)]
    assert codec._plain(data, 0) == (path.encode(), digest)
    if path.isascii() and path and len(path) < 16384:
        assert codec._fast(data) is not None  # else the fast way would be of no use


@given(digests, st.data())
def test_a_file_with_a_byte_changed_means_the_same_both_ways(digest: Digest, data: st.DataObject) -> None:
    message = bytearray(_artifact("some/path", _file(_proto(digest))))
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    changed = bytes(message)
    codec = CODECS[digest.function]
    fast = codec._fast(changed)
    if fast is not None:
        assert codec._plain(changed, 0) == fast


def test_fields_in_another_order_and_other_prefixes_of_the_type() -> None:
    value = rev2.FileArtifactLocator(digest=_proto(DIGEST)).SerializeToString()
    for type_url in (
        FILE,
        "/" + FILE,
        "example.com/x/bazel_output_service_rev2.FileArtifactLocator",
        FILE.partition("/")[2],
    ):
        packed = any_pb2.Any(type_url=type_url, value=value).SerializeToString()
        length = bytes((len(packed),)) if len(packed) < 128 else bytes((len(packed) | 0x80, 1))
        reversed_fields = b"\x12" + length + packed + b"\x0a\x04path"
        assert _taken(reversed_fields) == (b"path", DIGEST)


def test_a_tree() -> None:
    other = Digest.parse(SHA256, HASH[::-1], 7)
    for tree, root in ((DIGEST, other), (DIGEST, None), (None, other)):
        locator = rev2.TreeArtifactLocator(
            tree_digest=None if tree is None else _proto(tree),
            root_directory_digest=None if root is None else _proto(root),
        )
        packed = any_pb2.Any(type_url=TREE, value=locator.SerializeToString())
        assert _taken(_artifact("d", packed)) == (b"d", TreeReference(tree, root))


def test_errors_name_the_field() -> None:
    assert _error(None) == (
        "artifacts[3].locator: is missing, expected an Any with a bazel_output_service_rev2.FileArtifactLocator or a "
        "bazel_output_service_rev2.TreeArtifactLocator"
    )
    assert _error(_file(_proto(DIGEST), "type.googleapis.com/google.protobuf.Duration")).startswith(
        "artifacts[3].locator.type_url 'type.googleapis.com/google.protobuf.Duration': expected type.googleapis.com/bazel"
    )
    assert _error(any_pb2.Any(type_url=FILE, value=b"\x0a\x99")).startswith(
        "artifacts[3].locator.value: is no "
    )
    assert _error(_file(None)) == "artifacts[3].locator.digest: is missing"
    assert _error(_file(reapi.Digest(hash="abc", size_bytes=1))).startswith(
        "artifacts[3].locator.digest: digest.hash 'abc': expected 64 lowercase hex digits"
    )
    assert "expected 64 lowercase hex digits" in _error(_file(reapi.Digest(hash=HASH.upper(), size_bytes=1)))
    assert "expected 64 lowercase hex digits" in _error(_file(reapi.Digest(hash="g" * 64, size_bytes=1)))
    assert "digest.size_bytes -1: expected" in _error(_file(reapi.Digest(hash=HASH, size_bytes=-1)))
    assert _error(any_pb2.Any(type_url=TREE)) == (
        "artifacts[3].locator: has neither a tree_digest nor a root_directory_digest"
    )
    bad = rev2.TreeArtifactLocator(tree_digest=_proto(DIGEST), root_directory_digest=reapi.Digest(hash="x"))
    assert _error(any_pb2.Any(type_url=TREE, value=bad.SerializeToString())).startswith(
        "artifacts[3].locator.root_directory_digest: digest.hash 'x'"
    )


def test_a_digest_of_another_functions_length_is_refused() -> None:
    sha1 = Digest.make(DigestFunction.SHA1, bytes(20), 1)
    assert "expected 64 lowercase hex digits" in _error(_file(_proto(sha1)))


@pytest.mark.parametrize("data", [b"\x0a\x05ab", b"\x0a\x01\xff", b"\xff", b"\x12\x01\xff" * 30])
def test_what_is_no_artifact_fails_the_request(data: bytes) -> None:
    with pytest.raises(Invalid, match=r"artifacts\[3\]: is no Artifact message"):
        _taken(data)


@given(digests)
def test_a_stat_is_what_protobuf_would_write(digest: Digest) -> None:
    stat = bos.BatchStatResponse.Stat(file=bos.BatchStatResponse.Stat.File(locator=_file(_proto(digest))))
    response = bos.BatchStatResponse(responses=[bos.BatchStatResponse.StatResponse(stat=stat)])
    assert CODECS[digest.function].stat(digest) == response.SerializeToString()


def test_unpacking() -> None:
    args = rev2.StartBuildArgs(instance_name="main")
    name = "bazel_output_service_rev2.StartBuildArgs"
    for prefix in ("type.googleapis.com/", "a/b/", "/", ""):
        packed = any_pb2.Any(type_url=prefix + name, value=args.SerializeToString())
        assert unpack(rev2.StartBuildArgs, packed, "args") == args
    with pytest.raises(Invalid, match=r"args\.type_url 'x/y': expected type\.googleapis\.com/" + name):
        unpack(rev2.StartBuildArgs, any_pb2.Any(type_url="x/y"), "args")
    with pytest.raises(Invalid, match=r"args\.value: is no " + name):
        unpack(rev2.StartBuildArgs, any_pb2.Any(type_url=name, value=b"\x12\xff"), "args")
