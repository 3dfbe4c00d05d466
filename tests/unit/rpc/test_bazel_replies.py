"""Replies stay below what clients take, say as much as fits, and have an entry for every item."""

from __future__ import annotations

import pytest

from outputd._proto import bazel_output_service_pb2 as bos
from outputd.builds.stats import Known, Stat, Target
from outputd.digest import Digest, DigestFunction
from outputd.errors import Invalid, NotFound, OutputdError
from outputd.rpc.bazel_locators import LocatorCodec
from outputd.rpc.bazel_replies import StageReply, StatReply
from outputd.rpc.limits import MESSAGE_LIMIT

CODEC = LocatorCodec(DigestFunction.SHA256)
DIGEST = Digest.of(DigestFunction.SHA256, b"a")


def _stats(*stats: Stat) -> bos.BatchStatResponse:
    reply = StatReply(len(stats), CODEC)
    reply.add(stats[:1])
    reply.add(stats[1:])
    message = reply.message()
    assert len(message) <= MESSAGE_LIMIT
    return bos.BatchStatResponse.FromString(message)


def test_every_kind() -> None:
    kinds: list[Stat] = [
        Known.ABSENT,
        Known.FILE,
        Known.DIRECTORY,
        Known.OTHER,
        DIGEST,
        Target("ä/b".encode()),
        Target(b"\xff"),
    ]
    responses = list(_stats(*kinds).responses)
    assert [response.HasField("stat") for response in responses] == [False, *[True] * 6]
    assert [response.stat.WhichOneof("type") for response in responses] == [
        None,
        "file",
        "directory",
        None,
        "file",
        "symlink",
        None,  # no protobuf string can say this target
    ]
    assert [response.stat.file.HasField("locator") for response in responses] == [
        *[False] * 4,
        True,
        False,
        False,
    ]
    assert responses[5].stat.symlink.target == "ä/b"


def test_the_first_files_have_locators_and_the_rest_are_files() -> None:
    count = 100_000
    responses = _stats(*[DIGEST] * count).responses
    assert len(responses) == count
    located = [response.stat.file.HasField("locator") for response in responses]
    first = located.index(False)
    assert first > 24_000
    assert not any(located[first:])
    assert all(response.stat.HasField("file") for response in responses)


def test_symlinks_that_do_not_fit_have_no_type() -> None:
    responses = _stats(*[Target(b"x" * 4000)] * 2000, *[DIGEST] * 2000, Target(b"short")).responses
    assert len(responses) == 4001
    assert responses[0].stat.symlink.target == "x" * 4000
    assert responses[1999].HasField("stat")
    assert responses[1999].stat.WhichOneof("type") is None
    assert all(response.stat.HasField("file") for response in responses[2000:4000])


def test_room_that_absent_paths_leave_is_used() -> None:
    responses = _stats(*[Known.ABSENT] * 600_000, *[DIGEST] * 10_000).responses
    assert all(response.stat.file.HasField("locator") for response in responses[600_000:])


def test_more_paths_than_a_reply_can_hold() -> None:
    most = MESSAGE_LIMIT // 6
    StatReply(most, CODEC)
    with pytest.raises(
        Invalid, match=f"paths: {most + 1} are too many for one reply of 4 MiB, which holds {most}"
    ):
        StatReply(most + 1, CODEC)


def _stages(*errors: OutputdError | None) -> bos.StageArtifactsResponse:
    reply = StageReply(len(errors), "StageArtifacts")
    reply.add(errors[:1])
    reply.add(errors[1:])
    message = reply.message()
    assert len(message) <= MESSAGE_LIMIT
    return bos.StageArtifactsResponse.FromString(message)


def test_each_artifact_has_its_status() -> None:
    responses = _stages(None, Invalid("path 'x': bad"), NotFound("blob"), None).responses
    assert [(response.status.code, response.status.message) for response in responses] == [
        (0, ""),
        (3, "path 'x': bad"),
        (5, "blob"),
        (0, ""),
    ]


def test_words_are_left_out_when_they_do_not_fit() -> None:
    responses = _stages(*[Invalid("x" * 1000)] * 10_000).responses
    assert len(responses) == 10_000
    assert {response.status.code for response in responses} == {3}
    assert responses[0].status.message == "x" * 1000
    assert responses[-1].status.message == ""


def test_more_artifacts_than_a_reply_can_hold() -> None:
    most = MESSAGE_LIMIT // 6
    with pytest.raises(Invalid, match=f"artifacts: {most + 1} are too many for one reply"):
        StageReply(most + 1, "StageArtifacts")
    worst = [Invalid("x")] * 1000
    assert len(_stages(*worst).responses) == 1000
