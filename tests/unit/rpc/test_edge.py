from __future__ import annotations

import asyncio
import inspect
import logging

import grpc
import pytest

from outputd import errors
from outputd._proto import remote_execution_pb2 as reapi
from outputd.rpc import edge


def all_errors() -> list[type[errors.OutputdError]]:
    found = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    return [
        kind for kind in found if issubclass(kind, errors.OutputdError) and kind is not errors.OutputdError
    ]


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_has_a_code_of_its_own_that_no_client_takes_for_our_fault(
    kind: type[errors.OutputdError],
) -> None:
    assert kind in edge.CODES
    code, text = edge.verdict(kind("path 'a': say why"), "M")
    assert code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.OK)
    assert text == "path 'a': say why"


def test_a_subclass_nobody_listed_has_the_code_of_its_parent() -> None:
    class Gone(errors.TimedOut):
        pass

    assert edge.verdict(Gone("x"), "M")[0] is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_fault_of_ours_is_internal_and_the_log_has_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> None:
        raise ZeroDivisionError("secret detail")

    error = asyncio.run(edge.outcome(broken()))
    assert isinstance(error, ZeroDivisionError)
    status = edge.item_status(error, "Some.Method")
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert "secret" not in status.message
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    number = status.message.rsplit(" ", 1)[1]
    assert number in record.getMessage()
    assert "Some.Method" in record.getMessage()


def test_the_root_of_our_errors_says_too_little_to_be_more_than_a_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert edge.verdict(errors.OutputdError("x"), "M")[0] is grpc.StatusCode.INTERNAL
    assert len(caplog.records) == 1


def test_callers_faults_are_not_worth_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    edge.verdict(errors.Invalid("x"), "M")
    assert not caplog.records


def test_a_group_of_ours_answers_with_its_first_and_one_stranger_makes_it_a_fault() -> None:
    ours = ExceptionGroup("g", [ExceptionGroup("h", [errors.NotFound("first")]), errors.Invalid("second")])
    assert edge.verdict(ours, "M") == (grpc.StatusCode.NOT_FOUND, "first")
    mixed = ExceptionGroup("g", [errors.NotFound("first"), ValueError("x")])
    assert edge.verdict(mixed, "M")[0] is grpc.StatusCode.INTERNAL


def test_cancellation_passes_through() -> None:
    async def main() -> None:
        task = asyncio.create_task(edge.outcome(asyncio.Event().wait()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_texts_fit_into_a_header_whatever_is_in_them() -> None:
    _, text = edge.verdict(errors.Invalid("é" * 5000), "M")
    assert 1900 < len(text.encode()) <= 2010
    assert text.endswith("…")
    _, text = edge.verdict(errors.Invalid("name \udc80"), "M")
    assert text == "name \\udc80"


def test_bytes_that_are_no_message_are_the_callers_fault() -> None:
    assert edge.decode(reapi.Digest, b"\x0a\x01a").hash == "a"
    with pytest.raises(errors.Invalid, match=r"build\.bazel\.remote\.execution\.v2\.Digest"):
        edge.decode(reapi.Digest, b"\x0a\x7f")
    with pytest.raises(errors.Invalid):
        edge.decode(reapi.Digest, b"\x0a\x01\xff")  # a string that is not UTF-8
