"""The table of REv2 calls on our daemon, alone and in front of other servers, and on these as oracles."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from outputd._proto import remote_execution_pb2 as reapi
from outputd.store.fastcdc import FastCdc
from tests.daemon_fixture import connected, running
from tests.interop.rev2_client import Client, digest_of, outcome, pieces, read_name, write_name
from tests.interop.rev2_differences import DIFFERENCES, page
from tests.interop.rev2_table import CASES
from tests.interop.servers import buildbox_casd, buildgrid

OURS = ("outputd", "outputd before BuildGrid", "outputd before buildbox-casd")
THEIRS = ("BuildGrid", "buildbox-casd")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "rev2-conformance.md"


@pytest.fixture(scope="module")
def clients() -> Iterator[dict[str, Client]]:
    with ExitStack() as rooms:
        # A socket's path has to be short.
        place = Path(rooms.enter_context(tempfile.TemporaryDirectory(prefix="outputd-rev2-")))
        servers = [
            rooms.enter_context(buildgrid(place / "g")),
            rooms.enter_context(buildbox_casd(place / "c")),
        ]
        found = {"outputd": Client(rooms.enter_context(connected(rooms.enter_context(running()))))}
        for server in servers:
            target = server.url.removeprefix("grpc://")
            found[server.name] = Client(rooms.enter_context(grpc.insecure_channel(target)))
            daemon = rooms.enter_context(running("--remote", server.url))
            found[f"outputd before {server.name}"] = Client(rooms.enter_context(connected(daemon)))
        yield found


@pytest.mark.parametrize("server", [*OURS, *THEIRS])
@pytest.mark.parametrize("name", CASES)
def test_conformance(clients: dict[str, Client], server: str, name: str) -> None:
    case = CASES[name]
    difference = DIFFERENCES.get((server, name))
    expected = case.expected if difference is None else difference.observed
    assert outcome(lambda: case.does(clients[server])) == expected


def test_differences_are_of_cases_that_there_are() -> None:
    assert {name for _, name in DIFFERENCES} <= set(CASES)
    assert {server for server, _ in DIFFERENCES} <= {*OURS, *THEIRS}
    assert all(difference.observed != CASES[name].expected for (_, name), difference in DIFFERENCES.items())


def test_the_page_is_what_was_tested() -> None:
    assert PAGE.read_text() == page()


def test_a_proxy_that_works_in_chunks_works_with_us(tmp_path: Path) -> None:
    """buildbox-casd in front of us: it cuts what it uploads, by our parameters, and asks for the chunks of what it reads."""
    data = hashlib.shake_128(b"chunks").digest(6 << 20)
    down, up = data[: 5 << 20], data[1 << 20 :]
    with (
        tempfile.TemporaryDirectory(prefix="outputd-rev2-") as place,
        running() as daemon,
        connected(daemon) as channel,
        buildbox_casd(
            Path(place),
            f"--cas-remote={daemon.target}",
            "--proxy-instance=proxy",
            "--local-server-instance=local",
            "--enable-chunking-for-instance=proxy",
        ) as casd,
        grpc.insecure_channel(casd.url) as before,
    ):
        ours, theirs = Client(channel), Client(before)
        ours.write(pieces(write_name(digest_of(down)), *strides(down)))
        move(theirs, "FetchMissingBlobs", down)
        assert theirs.read("local/" + read_name(digest_of(down))) == down
        assert not ours.missing(*map(digest_of, fast_cdc(down)))  # so it has asked for them
        theirs.write(pieces("local/" + write_name(digest_of(up)), *strides(up)))
        move(theirs, "UploadMissingBlobs", up)
        assert ours.read(read_name(digest_of(up))) == up
        chunks = [digest_of(chunk) for chunk in fast_cdc(up)]
        assert len(chunks) > 3
        assert not ours.missing(*chunks)  # so it has cut where we would have


def move(casd: Client, method: str, blob: bytes) -> None:
    """A method of LocalCAS, whose messages have the fields of these two."""
    request = reapi.FindMissingBlobsRequest(instance_name="proxy", blob_digests=[digest_of(blob)])
    path = f"/build.buildgrid.LocalContentAddressableStorage/{method}"
    reply = casd.unary(path, request, reapi.BatchUpdateBlobsResponse)
    assert not any(response.status.code for response in reply.responses), reply


def strides(data: bytes) -> list[bytes]:
    return [data[start : start + (1 << 20)] for start in range(0, len(data), 1 << 20)]


def fast_cdc(data: bytes) -> Iterator[bytes]:
    while data:
        steps = FastCdc().cut(data)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                length: int = end.value
                break
        yield data[:length]
        data = data[length:]
