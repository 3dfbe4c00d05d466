from __future__ import annotations

from collections.abc import Awaitable, Callable

import grpc
import pytest
import uvloop

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest, DigestFunction, empty_digest
from outputd.errors import Corrupt, Exhausted, Invalid, NotFound, OutputdError, Unavailable
from outputd.rpc import directory_pages as paging
from outputd.rpc.capabilities import RemoteCapabilities
from outputd.rpc.cas import ContentAddressableStorage
from outputd.rpc.chunks import Chunks
from outputd.rpc.client import Stub
from outputd.rpc.digests import digest_message
from outputd.rpc.limits import BATCH_LIMIT, ITEM_LIMIT, MESSAGE_LIMIT
from outputd.rpc.passing import Passing
from outputd.rpc.services import service_handler
from outputd.store.zstd import compressed, decompressed
from tests.unit.rpc.fakes import SHA256, FakeStore
from tests.unit.rpc.loopback import served

CAS = reapi.DESCRIPTOR.services_by_name["ContentAddressableStorage"]
EMPTY = empty_digest(SHA256)


def code(status_code: grpc.StatusCode) -> int:
    number: int = status_code.value[0]
    return number


def with_cas(store: FakeStore, use: Callable[[Stub], Awaitable[None]]) -> None:
    async def main() -> None:
        chunks = Chunks(store, Passing(None), RemoteCapabilities(Passing(None)))
        async with served(service_handler(CAS, ContentAddressableStorage(store, chunks))) as channel:
            await use(Stub(channel, CAS))

    uvloop.run(main())


async def find(
    stub: Stub, *digests: reapi.Digest, function: int = 0, instance: str = ""
) -> list[reapi.Digest]:
    request = reapi.FindMissingBlobsRequest(
        instance_name=instance,
        blob_digests=digests,
        digest_function=reapi.DigestFunction.Value.ValueType(function),
    )
    reply = await stub.call("FindMissingBlobs", request, reapi.FindMissingBlobsResponse, timeout=10)
    return list(reply.missing_blob_digests)


async def update(
    stub: Stub, *items: tuple[reapi.Digest, bytes]
) -> list[reapi.BatchUpdateBlobsResponse.Response]:
    request = reapi.BatchUpdateBlobsRequest()
    for digest, data in items:
        request.requests.add(digest=digest, data=data)
    reply = await stub.call("BatchUpdateBlobs", request, reapi.BatchUpdateBlobsResponse, timeout=10)
    return list(reply.responses)


async def read(stub: Stub, *digests: reapi.Digest) -> list[reapi.BatchReadBlobsResponse.Response]:
    request = reapi.BatchReadBlobsRequest(digests=digests)
    reply = await stub.call("BatchReadBlobs", request, reapi.BatchReadBlobsResponse, timeout=10)
    return list(reply.responses)


async def tree(stub: Stub, root: Digest, size: int = 0, token: str = "") -> list[reapi.GetTreeResponse]:
    request = reapi.GetTreeRequest(root_digest=digest_message(root), page_size=size, page_token=token)
    return [page async for page in stub.stream("GetTree", request, reapi.GetTreeResponse, timeout=10)]


def absent(data: bytes) -> reapi.Digest:
    return digest_message(Digest.of(SHA256, data))


def test_find_missing_names_each_absent_blob_once_in_order_and_never_the_empty_one() -> None:
    async def use(stub: Stub) -> None:
        assert await find(stub) == []
        a, b, here = absent(b"a"), absent(b"b"), digest_message(present)
        assert await find(stub, b, here, digest_message(EMPTY), a, b, instance="any/name") == [b, a]
        assert await find(stub, here, digest_message(EMPTY), function=SHA256) == []
        assert all(EMPTY not in asked for asked in store.asked)

    store = FakeStore()
    present = store.add(b"here")
    with_cas(store, use)


def test_find_missing_refuses_what_is_no_digest_by_its_place_in_the_request() -> None:
    async def use(stub: Stub) -> None:
        with pytest.raises(Invalid, match=r"blob_digests\[2\]"):
            await find(stub, absent(b"a"), absent(b"a"), reapi.Digest(hash="a" * 40))
        with pytest.raises(Invalid, match="instance_name"):
            await find(stub, absent(b"a"), instance="a//b")
        with pytest.raises(Invalid, match="digest_function"):
            await find(stub, absent(b"a"), function=reapi.DigestFunction.VSO)

    with_cas(FakeStore(), use)


def test_find_missing_never_says_that_a_blob_is_here_because_an_answer_got_long() -> None:
    async def use(stub: Stub) -> None:
        many = [reapi.Digest(hash=f"{number:0128x}", size_bytes=1) for number in range(32_000)]
        with pytest.raises(Invalid, match="ask for fewer"):
            await find(stub, *many)
        assert len(await find(stub, *many[:30_500])) == 30_500

    with_cas(FakeStore(), use)


def test_find_missing_says_unavailable_when_the_store_cannot_tell() -> None:
    async def use(stub: Stub) -> None:
        with pytest.raises(Unavailable, match="remote gone"):
            await find(stub, absent(b"a"))

    store = FakeStore()
    store.broken = Unavailable("remote gone")
    with_cas(store, use)


def test_updates_are_verified_one_by_one() -> None:
    async def use(stub: Stub) -> None:
        good, wrong, short = absent(b"good"), absent(b"wrong"), absent(b"short")
        full = absent(b"full")
        odd = reapi.Digest(hash="XYZ" * 1000, size_bytes=3)
        replies = await update(
            stub,
            (wrong, b"WRONG"),
            (good, b"good"),
            (short, b"sho"),
            (odd, b"odd"),
            (full, b"full"),
            (good, b"good"),
        )
        assert [reply.status.code for reply in replies] == [
            code(grpc.StatusCode.INVALID_ARGUMENT),
            0,
            code(grpc.StatusCode.INVALID_ARGUMENT),
            code(grpc.StatusCode.INVALID_ARGUMENT),
            code(grpc.StatusCode.RESOURCE_EXHAUSTED),
            0,
        ]
        assert [reply.digest for reply in replies] == [wrong, good, short, reapi.Digest(), full, good]
        assert "3 bytes came, expected 5" in replies[2].status.message
        assert set(store.blobs.values()) == {b"good"}

    store = FakeStore()
    store.failing[Digest.of(SHA256, b"full")] = Exhausted("disk full")
    with_cas(store, use)


def test_compressed_blobs_travel_in_batches_both_ways() -> None:
    zstd, identity = reapi.Compressor.ZSTD, reapi.Compressor.IDENTITY
    data, random = b"a" * 5000, Digest.of(SHA256, b"seed") * 100
    blobs = {Digest.of(SHA256, some): some for some in (data, random, b"tiny")}

    async def use(stub: Stub) -> None:
        request = reapi.BatchUpdateBlobsRequest()
        for digest, some in blobs.items():
            request.requests.add(digest=digest_message(digest), data=compressed(some), compressor=zstd)
        request.requests.add(digest=absent(b"b"), data=compressed(b"bb"), compressor=zstd)
        request.requests.add(digest=absent(b"c"), data=b"c", compressor=zstd)
        request.requests.add(digest=absent(b"d"), data=b"d", compressor=reapi.Compressor.DEFLATE)
        reply = await stub.call("BatchUpdateBlobs", request, reapi.BatchUpdateBlobsResponse, timeout=10)
        codes = {response.digest.hash: response.status.code for response in reply.responses}
        invalid, unimplemented = code(grpc.StatusCode.INVALID_ARGUMENT), code(grpc.StatusCode.UNIMPLEMENTED)
        assert [codes[item.digest.hash] for item in request.requests] == [
            *(0, 0, 0, invalid, invalid, unimplemented)
        ]
        assert store.blobs == blobs

        ask = reapi.BatchReadBlobsRequest(digests=map(digest_message, blobs), acceptable_compressors=[zstd])
        came = await stub.call("BatchReadBlobs", ask, reapi.BatchReadBlobsResponse, timeout=10)
        assert [response.compressor for response in came.responses] == [zstd, zstd, identity]
        for response, (digest, some) in zip(came.responses, blobs.items(), strict=True):
            whole = (
                response.data if response.compressor == identity else decompressed(response.data, digest.size)
            )
            assert whole == some

    store = FakeStore()
    with_cas(store, use)


def test_batches_over_the_limit_are_refused_as_a_whole() -> None:
    async def use(stub: Stub) -> None:
        data = bytes(BATCH_LIMIT + 1)
        with pytest.raises(Invalid, match=f"max_batch_total_size_bytes is {BATCH_LIMIT}"):
            await update(stub, (absent(data), data))
        with pytest.raises(Invalid, match=f"max_batch_total_size_bytes is {BATCH_LIMIT}"):
            await read(stub, reapi.Digest(hash="a" * 64, size_bytes=BATCH_LIMIT), absent(b"x"))
        with pytest.raises(Invalid, match=f"{ITEM_LIMIT} at most"):
            await read(stub, *[absent(b"x")] * (ITEM_LIMIT + 1))

    with_cas(FakeStore(), use)


def test_a_batch_at_the_limit_passes_both_ways() -> None:
    async def use(stub: Stub) -> None:
        data = bytes(BATCH_LIMIT)
        [reply] = await update(stub, (absent(data), data))
        assert reply.status.code == 0
        [answer] = await read(stub, absent(data))
        assert answer.data == data

    with_cas(FakeStore(), use)


def test_reads_answer_each_blob_for_itself() -> None:
    async def use(stub: Stub) -> None:
        wanted = [digest_message(here), absent(b"a"), digest_message(EMPTY), digest_message(rotten)]
        replies = await read(stub, *wanted, reapi.Digest(hash="a" * 40))
        assert [reply.digest for reply in replies[:4]] == wanted
        assert [reply.data for reply in replies] == [b"here", b"", b"", b"", b""]
        assert [reply.status.code for reply in replies] == [
            0,
            code(grpc.StatusCode.NOT_FOUND),
            0,
            code(grpc.StatusCode.DATA_LOSS),
            code(grpc.StatusCode.INVALID_ARGUMENT),
        ]

    store = FakeStore()
    here, rotten = store.add(b"here"), store.add(b"rotten")
    store.failing[rotten] = Corrupt("other bytes came")
    with_cas(store, use)


def test_a_reply_of_many_blobs_fits_into_a_message_and_the_rest_can_be_asked_for_again() -> None:
    async def use(stub: Stub) -> None:
        replies = await read(stub, *map(digest_message, digests))
        served_blobs = [reply for reply in replies if reply.status.code == 0]
        left = [reply for reply in replies if reply.status.code == code(grpc.StatusCode.RESOURCE_EXHAUSTED)]
        assert len(served_blobs) + len(left) == len(digests)
        assert left
        assert all(reply.data for reply in served_blobs)
        again = await read(stub, *(reply.digest for reply in left))
        assert {reply.status.code for reply in again} == {0}

    store = FakeStore()
    digests = [store.add(number.to_bytes(200)) for number in range(12_000)]
    with_cas(store, use)


def test_texts_give_way_before_a_reply_gets_too_long() -> None:
    async def use(stub: Stub) -> None:
        replies = await read(stub, *[absent(b"x")] * ITEM_LIMIT)
        assert {reply.status.code for reply in replies} == {code(grpc.StatusCode.NOT_FOUND)}
        assert not any(reply.status.message for reply in replies)

    store = FakeStore()
    store.failing[Digest.of(SHA256, b"x")] = NotFound("x" * 400)
    with_cas(store, use)


def directory(store: FakeStore, *children: Digest, extra: bytes = b"") -> Digest:
    """Stores a Directory with these subdirectories; `extra` is appended to its bytes."""
    message = reapi.Directory()
    for number, child in enumerate(children):
        message.directories.add(name=f"d{number:05}", digest=digest_message(child))
    return store.add(message.SerializeToString(deterministic=True) + extra)


def leaf(store: FakeStore, name: str) -> Digest:
    message = reapi.Directory()
    message.files.add(name=name, digest=digest_message(EMPTY))
    return store.add(message.SerializeToString())


def test_a_tree_comes_parents_first_each_directory_once_and_without_what_is_absent() -> None:
    async def use(stub: Stub) -> None:
        pages = await tree(stub, root)
        assert [page.next_page_token for page in pages] == [""]
        got = [Digest.of(SHA256, entry.SerializeToString()) for entry in pages[0].directories]
        assert got == [root, a, b, EMPTY]

    store = FakeStore()
    b = directory(store, EMPTY)
    a = directory(store, b)
    gone = Digest.of(SHA256, b"gone")
    root = directory(store, a, gone, b, a)
    with_cas(store, use)


def test_directories_travel_byte_for_byte() -> None:
    async def use(stub: Stub) -> None:
        raw = stub._channel.unary_stream(f"/{CAS.full_name}/GetTree", None, None)
        request = reapi.GetTreeRequest(root_digest=digest_message(root))
        page = await raw(request.SerializeToString(), timeout=10).read()
        assert isinstance(page, bytes)
        assert store.blobs[root] in page
        assert store.blobs[child] in page

    store = FakeStore()
    child = directory(store, extra=b"\xfa\x3f\x01x")  # a field nobody knows yet
    root = directory(store, child, extra=b"\x0a\x00")  # a list out of order
    with_cas(store, use)


def test_pages_go_on_behind_any_token() -> None:
    async def use(stub: Stub) -> None:
        pages = await tree(stub, root, size=3)
        assert [len(page.directories) for page in pages] == [3, 3, 3, 2]
        everything = [entry for page in pages for entry in page.directories]
        for number, page in enumerate(pages[:-1], 1):
            rest = await tree(stub, root, size=3, token=page.next_page_token)
            assert [entry for page in rest for entry in page.directories] == everything[3 * number :]
            assert rest[-1].next_page_token == ""

    store = FakeStore()
    leaves = [leaf(store, f"f{number}") for number in range(10)]
    root = directory(store, *leaves[:5], Digest.of(SHA256, b"gone"), *leaves[5:])
    with_cas(store, use)


def test_large_directories_are_spread_over_pages_of_bytes() -> None:
    async def use(stub: Stub) -> None:
        pages = await tree(stub, root)
        assert [len(page.directories) for page in pages] == [2, 1, 1]

    store = FakeStore()
    big = [leaf(store, str(number) * 700_000) for number in range(3)]
    root = directory(store, *big)
    with_cas(store, use)


@pytest.mark.parametrize("token", ["x", "0:", "-1:x", "2", "2:elsewhere", "99:x", "9999999999:x", "٣:x"])
def test_tokens_that_no_answer_gave_are_refused(token: str) -> None:
    async def use(stub: Stub) -> None:
        with pytest.raises(Invalid, match="page_token"):
            await tree(stub, root, token=token)

    store = FakeStore()
    root = directory(store, leaf(store, "a"), leaf(store, "b"))
    with_cas(store, use)


def tree_faults() -> list[tuple[str, Callable[[FakeStore], Digest], type[OutputdError], str]]:
    def too_large(store: FakeStore) -> Digest:
        return directory(store, Digest.make(SHA256, bytes(32), MESSAGE_LIMIT))

    def unreachable(store: FakeStore) -> Digest:
        child = leaf(store, "a")
        store.failing[child] = Unavailable("remote gone")
        return directory(store, child)

    def lies(store: FakeStore) -> Digest:
        message = reapi.Directory()
        message.directories.add(name="odd", digest=reapi.Digest(hash="abc"))
        return store.add(message.SerializeToString())

    return [
        ("absent root", lambda store: Digest.of(SHA256, b"gone"), NotFound, "nowhere"),
        ("no directory", lambda store: store.add(b"\xff\xff"), Corrupt, "no Directory"),
        (
            "no directory below",
            lambda store: directory(store, store.add(b"\xff\xff")),
            Corrupt,
            "no Directory",
        ),
        ("malformed child", lies, Corrupt, "entry 'odd'"),
        ("too large", too_large, Exhausted, "larger than"),
        ("unreachable", unreachable, Unavailable, "remote gone"),
    ]


@pytest.mark.parametrize(("name", "make", "error", "says"), tree_faults())
def test_trees_that_cannot_be_told(
    name: str, make: Callable[[FakeStore], Digest], error: type[OutputdError], says: str
) -> None:
    async def use(stub: Stub) -> None:
        with pytest.raises(error, match=says):
            await tree(stub, make(store))

    store = FakeStore()
    with_cas(store, use)


def test_a_page_size_below_zero_is_refused() -> None:
    async def use(stub: Stub) -> None:
        with pytest.raises(Invalid, match="page_size -1"):
            await tree(stub, EMPTY, size=-1)

    with_cas(FakeStore(), use)


@pytest.mark.parametrize("length", [0, 1, 127, 128, 300, 1 << 21])
def test_pages_are_what_protobuf_would_have_written(length: int) -> None:
    message = reapi.Directory()
    message.files.add(name="x" * length)
    data = message.SerializeToString()
    page = reapi.GetTreeResponse(directories=[message, message], next_page_token="t" * length)
    assert paging._page([data, data], "t" * length) == page.SerializeToString()


def test_blake3_must_be_told_and_is_obeyed() -> None:
    async def use(stub: Stub) -> None:
        blake3 = store.add(b"x", DigestFunction.BLAKE3)
        message = digest_message(blake3)
        assert await find(stub, message) == [message]  # 64 digits untold are SHA256
        assert await find(stub, message, function=reapi.DigestFunction.BLAKE3) == []

    store = FakeStore()
    with_cas(store, use)
