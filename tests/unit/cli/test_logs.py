"""outputd.cli.logs: both forms, facts, tracebacks; a stream that is stuck or gone never stops who logs."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
from contextlib import suppress

import pytest

from outputd.cli.logs import JsonLine, TextLine, logging_to

LOG = logging.getLogger("outputd.test")


def logged(form: str, level: str = "info") -> str:
    stream = io.StringIO()
    with logging_to(stream, level, form):
        LOG.debug("quiet")
        LOG.info("serving %s", "here", extra={"mount": "/a b", "pid": 3, "empty": ""})
        try:
            raise ValueError("deep")
        except ValueError:
            LOG.exception("two\nlines")
    return stream.getvalue()


def test_text() -> None:
    first, *rest = logged("text").splitlines()
    assert re.fullmatch(
        r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO outputd\.test: serving here mount="/a b" pid=3 empty=""',
        first,
    )
    assert rest[0].endswith("ERROR outputd.test: two")
    assert rest[1:3] == ["  lines", "Traceback (most recent call last):"]
    assert rest[-1] == "ValueError: deep"


def test_json() -> None:
    first, second = map(json.loads, logged("json").splitlines())
    assert first["time"].endswith("Z")
    del first["time"]
    assert first == {
        "level": "info",
        "logger": "outputd.test",
        "message": "serving here",
        "mount": "/a b",
        "pid": 3,
        "empty": "",
    }
    assert second["exception"].endswith("ValueError: deep")


def test_level() -> None:
    assert "quiet" in logged("text", "debug")
    assert "serving" not in logged("text", "error")


def test_all_is_as_before_afterwards() -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    logged("text")
    assert (root.level, list(root.handlers)) == before


def test_facts_do_not_hide_what_every_line_has() -> None:
    record = logging.makeLogRecord({"msg": "real", "levelname": "INFO", "time": "false", "logger": "false"})
    line = json.loads(JsonLine().format(record))
    assert line["message"] == "real"
    assert line["time"] != "false"


def test_a_fact_that_json_does_not_know() -> None:
    record = logging.makeLogRecord({"msg": "m", "path": b"\xff"})
    assert json.loads(JsonLine().format(record))["path"] == "b'\\xff'"


def test_a_newline_in_a_fact_does_not_make_a_line() -> None:
    record = logging.makeLogRecord({"msg": "m", "path": "a\nb"})
    assert TextLine().format(record).endswith('path="a\\nb"')


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_name_that_is_not_utf8(form: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "utf-8")
    with logging_to(stream, "info", form):
        LOG.info("lost %s", os.fsdecode(b"\xff"))
        LOG.info("and on")
    assert rb"lost \udcff" in raw.getvalue()
    assert b"and on" in raw.getvalue()


class Stuck(io.StringIO):
    """Takes no line before it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.released = threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        self.released.wait()
        return super().write(text)


def test_a_stream_that_is_stuck_loses_lines_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outputd.cli.logs._QUEUE_LIMIT", 10)
    stream = Stuck()
    with logging_to(stream, "info", "text"):
        LOG.info("first")
        stream.reached.wait()  # the writer holds `first`, so the queue is empty
        for number in range(25):
            LOG.info("message %d", number)  # returns at once
        stream.released.set()
    text = stream.getvalue()
    assert "message 9\n" in text
    assert "message 10\n" not in text
    assert "15 log messages were lost" in text


def test_a_reader_that_is_gone() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    with logging_to(stream, "info", "text"):
        for _ in range(100):
            LOG.info("nobody reads this")
    with suppress(BrokenPipeError):
        stream.close()


def test_a_message_that_does_not_fit_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own would raise
    stream = io.StringIO()
    with logging_to(stream, "info", "text"):
        LOG.info("%d", "no number")
        LOG.info("and on")
    assert "no number" in told.getvalue()
    assert "and on" in stream.getvalue()
