"""Cases of the table: FindMissingBlobs, batches and streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from outputd._proto import bytestream_pb2 as bytestream
from outputd._proto import remote_execution_pb2 as reapi
from outputd.store.zstd import compressed, decompressed
from tests.interop.rev2_client import (
    CAS,
    Client,
    code_name,
    digest_of,
    outcome,
    pieces,
    read_name,
    write_name,
)
from tests.interop.rev2_table import BLOB, EMPTY, ZSTD, case, fresh, halves

# FindMissingBlobs


@case([True, False])
def find_missing_names_what_is_absent(client: Client) -> object:
    (here,), absent = client.put(fresh()), digest_of(fresh())
    named = client.missing(here, absent)
    return [absent in named, here in named]


@case([])
def find_missing_never_names_the_empty_blob(client: Client) -> object:
    return client.missing(EMPTY)


@case([])
def find_missing_of_nothing_is_nothing(client: Client) -> object:
    return client.missing()


@case(1)
def find_missing_names_a_digest_once_though_asked_twice(client: Client) -> object:
    absent = digest_of(fresh())
    return len(client.missing(absent, absent))


@case(True)
def find_missing_a_right_hash_with_a_wrong_size_is_absent(client: Client) -> object:
    data = fresh()
    client.put(data)
    return len(client.missing(digest_of(data, 7))) == 1


@case("INVALID_ARGUMENT")
def find_missing_refuses_a_hash_in_capitals(client: Client) -> object:
    return len(client.missing(reapi.Digest(hash="A" * 64, size_bytes=1)))


@case("INVALID_ARGUMENT")
def find_missing_refuses_a_hash_that_is_too_short(client: Client) -> object:
    return len(client.missing(reapi.Digest(hash="a" * 63, size_bytes=1)))


@case("INVALID_ARGUMENT")
def find_missing_refuses_a_size_below_zero(client: Client) -> object:
    return len(client.missing(reapi.Digest(hash="a" * 64, size_bytes=-1)))


@case("INVALID_ARGUMENT")
def find_missing_refuses_an_unknown_digest_function(client: Client) -> object:
    return len(client.missing(digest_of(fresh()), function=99))


@case("INVALID_ARGUMENT")
def find_missing_refuses_an_instance_name_with_an_empty_part(client: Client) -> object:
    request = reapi.FindMissingBlobsRequest(instance_name="a//b", blob_digests=[digest_of(b"x")])
    return client.unary(CAS + "FindMissingBlobs", request, reapi.FindMissingBlobsResponse)


@case("INVALID_ARGUMENT")
def a_request_that_is_no_message_is_refused(client: Client) -> object:
    return client.unary(CAS + "FindMissingBlobs", b"\xff\xff\xff", reapi.FindMissingBlobsResponse)


# batches


@case([b"one", b"two", b""])
def a_batch_goes_in_and_comes_out(client: Client) -> object:
    digests = client.put(b"one", b"two")
    return [answer.data for answer in client.batch_read(*digests, EMPTY)]


@case(["OK", "INVALID_ARGUMENT", "INVALID_ARGUMENT", False, True])
def a_batch_keeps_what_is_right_and_refuses_the_rest(client: Client) -> object:
    good, wrong, size = fresh(), fresh(), fresh()
    codes = client.update((digest_of(good), good), (digest_of(wrong), good), (digest_of(size, 7), size))
    return [*codes, client.has(wrong), client.has(good)]


@case(["NOT_FOUND", "OK"])
def a_batch_answers_for_each_blob(client: Client) -> object:
    here = client.put(fresh())
    answers = client.batch_read(digest_of(fresh()), *here)
    return [code_name(answer.status.code) for answer in answers]


@case("INVALID_ARGUMENT")
def a_batch_to_be_read_has_a_limit(client: Client) -> object:
    return client.batch_read(*(digest_of(fresh(), 1 << 20) for _ in range(64)))


@case("INVALID_ARGUMENT")
def a_batch_to_be_kept_has_a_limit(client: Client) -> object:
    return client.update(*((digest_of(data), data) for data in (fresh(800_000) for _ in range(5))))


@case(["OK", True])
def a_compressed_batch_is_kept(client: Client) -> object:
    data = b"compressible " * 1000 + fresh()
    codes = client.update((digest_of(data), compressed(data)), compressor=ZSTD)
    return [*codes, client.has(data)]


@case(["INVALID_ARGUMENT", False])
def a_compressed_batch_that_is_no_zstandard_is_refused(client: Client) -> object:
    data = fresh()
    codes = client.update((digest_of(data), data), compressor=ZSTD)
    return [*codes, client.has(data)]


@case(True)
def a_batch_may_be_read_compressed(client: Client) -> object:
    data = b"compressible " * 1000 + fresh()
    (answer,) = client.batch_read(*client.put(data), compressors=[ZSTD])
    return (decompressed(answer.data, len(data)) if answer.compressor == ZSTD else answer.data) == data


@case(["UNIMPLEMENTED"])
def a_batch_with_a_compressor_that_is_not_offered_is_refused(client: Client) -> object:
    data = fresh()
    return client.update((digest_of(data), data), compressor=2)


# ByteStream.Read


@case([True, True, True, True])
def a_stream_begins_and_ends_where_it_is_told(client: Client) -> object:
    data = fresh(BLOB)
    (digest,) = client.put(data)
    name = read_name(digest)
    return [
        client.read(name) == data,
        client.read(name, 1000) == data[1000:],
        client.read(name, 1000, 10) == data[1000:1010],
        client.read(name, BLOB - 5, 5) == data[-5:],
    ]


@case(b"last")
def a_limit_beyond_the_end_is_no_error(client: Client) -> object:
    data = fresh() + b"last"
    (digest,) = client.put(data)
    return client.read(read_name(digest), 100, 1000)


@case(b"")
def at_the_end_there_is_nothing_to_read(client: Client) -> object:
    (digest,) = client.put(fresh())
    return client.read(read_name(digest), 100)


@case(b"")
def the_empty_blob_can_be_read(client: Client) -> object:
    return client.read(read_name(EMPTY))


@case("OUT_OF_RANGE")
def reading_beyond_the_end_is_out_of_range(client: Client) -> object:
    (digest,) = client.put(fresh())
    return client.read(read_name(digest), 101)


@case("OUT_OF_RANGE")
def reading_before_the_beginning_is_out_of_range(client: Client) -> object:
    (digest,) = client.put(fresh())
    return client.read(read_name(digest), -1)


@case("INVALID_ARGUMENT")
def reading_less_than_nothing_is_refused(client: Client) -> object:
    (digest,) = client.put(fresh())
    return client.read(read_name(digest), 0, -1)


@case("NOT_FOUND")
def reading_what_is_absent_is_not_found(client: Client) -> object:
    return client.read(read_name(digest_of(fresh())))


@case({"INVALID_ARGUMENT"})
def reading_by_a_name_that_is_none_is_refused(client: Client) -> object:
    digest = digest_of(fresh())
    names = (
        "",
        "blobs",
        f"blobs/{digest.hash}",
        f"blobs/{digest.hash}/-1",
        f"blobs/{digest.hash}/x",
        "blobs/xyz/1",
    )
    return {outcome(lambda name=name: client.read(name)) for name in names}  # type: ignore[misc]


@case([True, True])
def a_stream_may_come_compressed_from_any_offset(client: Client) -> object:
    data = b"compressible " * 20_000 + fresh()
    (digest,) = client.put(data)
    name = read_name(digest, "zstd")
    return [
        decompressed(client.read(name, offset), len(data) - offset) == data[offset:]
        for offset in (0, 100_001)
    ]


@case("INVALID_ARGUMENT")
def a_compressed_stream_has_no_limit(client: Client) -> object:
    (digest,) = client.put(fresh())
    return client.read(read_name(digest, "zstd"), 0, 10)


@case("UNIMPLEMENTED")
def a_compressor_that_is_not_offered_is_unimplemented(client: Client) -> object:
    (digest,) = client.put(fresh())
    return client.read(read_name(digest, "brotli"))


# ByteStream.Write


@case([BLOB, True])
def a_blob_is_written_in_pieces(client: Client) -> object:
    data = fresh(BLOB)
    name = write_name(digest_of(data)) + "/trailing/words"
    return [client.write(pieces(name, *halves(data))), client.has(data)]


@case(["INVALID_ARGUMENT", False])
def writing_other_bytes_is_refused(client: Client) -> object:
    data, other = fresh(BLOB), fresh(BLOB)
    code = outcome(lambda: client.write(pieces(write_name(digest_of(data)), *halves(other))))
    return [code, client.has(data)]


@case(["INVALID_ARGUMENT", "INVALID_ARGUMENT", False])
def writing_too_much_or_too_little_is_refused(client: Client) -> object:
    data = fresh(BLOB)
    more = outcome(lambda: client.write(pieces(write_name(digest_of(data)), *halves(data), b"more")))
    less = outcome(lambda: client.write(pieces(write_name(digest_of(data)), *halves(data[:-1]))))
    return [more, less, client.has(data)]


@case(["INVALID_ARGUMENT", False])
def a_write_that_does_not_say_it_is_finished_is_refused(client: Client) -> object:
    data = fresh(BLOB)
    first, _ = halves(data)
    code = outcome(lambda: client.write(pieces(write_name(digest_of(data)), first, finish=False)))
    return [code, client.has(data)]


@case("INVALID_ARGUMENT")
def writing_at_a_wrong_offset_is_refused(client: Client) -> object:
    data = fresh(BLOB)
    first, second = halves(data)
    requests = pieces(write_name(digest_of(data)), first, second)
    requests[1].write_offset += 1
    return client.write(requests)


@case("INVALID_ARGUMENT")
def writing_to_another_name_midway_is_refused(client: Client) -> object:
    data = fresh(BLOB)
    requests = pieces(write_name(digest_of(data)), *halves(data))
    requests[1].resource_name = write_name(digest_of(data))
    return client.write(requests)


@case("INVALID_ARGUMENT")
def writing_by_a_name_without_an_upload_is_refused(client: Client) -> object:
    data = fresh()
    return client.write(pieces(read_name(digest_of(data)), data))


@case(100)
def writing_what_is_there_succeeds_at_once(client: Client) -> object:
    data = fresh()
    client.put(data)
    return client.write(pieces(write_name(digest_of(data)), data[:1], finish=False))


@case([True, True])
def a_compressed_blob_is_written(client: Client) -> object:
    data = b"compressible " * 20_000 + fresh()
    packed = compressed(data)
    committed = client.write(pieces(write_name(digest_of(data), "zstd"), *halves(packed)))
    return [committed in (len(packed), -1), client.has(data)]


@case(-1)
def writing_what_is_there_compressed_gives_minus_one(client: Client) -> object:
    data = fresh()
    client.put(data)
    packed = compressed(data)
    return client.write(pieces(write_name(digest_of(data), "zstd"), packed[:5], finish=False))


@case(["INVALID_ARGUMENT", False])
def compressed_bytes_that_stand_for_others_are_refused(client: Client) -> object:
    data, other = fresh(BLOB), fresh(BLOB)
    requests = pieces(write_name(digest_of(data), "zstd"), *halves(compressed(other)))
    return [outcome(lambda: client.write(requests)), client.has(data)]


@case(False)
def a_write_that_is_cancelled_leaves_nothing(client: Client) -> object:
    data = fresh(BLOB)
    call = client.begin_write(_hesitating(pieces(write_name(digest_of(data)), *halves(data)), 1.0))
    time.sleep(0.2)
    call.cancel()
    return client.has(data)


@case([True, True])
def a_broken_write_goes_on_where_the_server_says(client: Client) -> object:
    data = fresh(BLOB)
    name = write_name(digest_of(data))
    first, second = halves(data)
    call = client.begin_write(_hesitating(pieces(name, first, second), 30.0))
    end = time.monotonic() + 10
    while (known := outcome(lambda: client.write_status(name))) != (len(first), False):
        if known == "UNIMPLEMENTED":
            call.cancel()
            return known
        assert time.monotonic() < end, f"QueryWriteStatus says {known}"
        time.sleep(0.05)
    call.cancel()
    committed = client.write(pieces(name, second, offset=len(first)))
    return [committed == BLOB, client.has(data)]


@case((100, True))
def the_status_of_what_is_there_is_complete(client: Client) -> object:
    data = fresh()
    client.put(data)
    return client.write_status(write_name(digest_of(data)))


@case("NOT_FOUND")
def the_status_of_a_write_that_nobody_began_is_not_found(client: Client) -> object:
    return client.write_status(write_name(digest_of(fresh())))


@case([BLOB, BLOB])
def two_clients_may_write_the_same_blob_at_once(client: Client) -> object:
    data = fresh(BLOB)
    requests = [pieces(write_name(digest_of(data)), *halves(data)) for _ in range(2)]
    calls = [client.begin_write(_hesitating(some, 0.2)) for some in requests]
    return [call.result().committed_size for call in calls]


@case([True, True])
def two_clients_of_one_upload_do_no_harm(client: Client) -> object:
    data = fresh(BLOB)
    name = write_name(digest_of(data))
    results: list[object] = []

    def write() -> None:
        results.append(outcome(lambda: client.write(_hesitating(pieces(name, *halves(data)), 0.2))))

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    return [BLOB in results, client.has(data)]


def _hesitating(requests: list[bytestream.WriteRequest], seconds: float) -> Iterator[bytestream.WriteRequest]:
    for number, request in enumerate(requests):
        if number:
            time.sleep(seconds)
        yield request
