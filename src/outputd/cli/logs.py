"""The log: lines of text, or of JSON, on standard error, written by a thread. Never makes the caller wait.

The event loop serves the kernel; a terminal that is paused, or a pipe that nobody empties, must stop the log and nothing else.
Messages carry their facts as `extra={...}`; both forms show them.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TextIO

_QUEUE_LIMIT: Final = 10_000
_LAST_WORDS_SECONDS: Final = 2.0
_OWN_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@contextmanager
def logging_to(stream: TextIO, level: str, form: str) -> Iterator[None]:
    """Send everything that is logged to `stream` while this is open; what is queued at the end is still written."""
    handler = _LineHandler(stream)
    handler.setFormatter(JsonLine() if form == "json" else TextLine())
    root = logging.getLogger()
    before = root.level
    root.setLevel(level.upper())
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(before)
        handler.close()


def facts(record: logging.LogRecord) -> dict[str, object]:
    """What the caller gave as `extra`."""
    return {name: value for name, value in vars(record).items() if name not in _OWN_ATTRIBUTES}


def _instant(record: logging.LogRecord) -> str:
    # RFC 3339 in UTC.
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


class TextLine(logging.Formatter):
    """`2026-11-22T12:00:00.123Z INFO outputd.daemon: serving mount=/home/ed/outputd`, a traceback on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = "".join(f" {name}={self._word(value)}" for name, value in facts(record).items())
        message = record.getMessage().replace("\n", "\n  ")
        line = f"{_instant(record)} {record.levelname} {record.name}: {message}{pairs}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line

    @staticmethod
    def _word(value: object) -> str:
        text = str(value)
        return (
            text if text and text.isprintable() and " " not in text and '"' not in text else json.dumps(text)
        )


class JsonLine(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, the caller's facts, `exception` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": _instant(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in facts(record).items():
            fields.setdefault(name, value)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str, ensure_ascii=False)


class _LineHandler(logging.Handler):
    """Formats at once, for what a message speaks of may change, and leaves the writing to a thread of its own."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(_QUEUE_LIMIT)
        self._lost = 0
        # A daemon thread: if the stream is stuck for good, the process must still be able to end.
        self._writer = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # File names that are not UTF-8 are surrogates in a str, and no stream takes those.
            self._lines.put_nowait(self.format(record).encode("utf-8", "backslashreplace").decode())
        except queue.Full:
            self._lost += 1
        except (TypeError, ValueError):
            self.handleError(
                record
            )  # the message does not fit its arguments: our fault, but no reason to stop

    def close(self) -> None:
        try:
            self._lines.put(None, timeout=_LAST_WORDS_SECONDS)
        except queue.Full:
            pass  # the stream is stuck: there is nowhere left to say so
        self._writer.join(_LAST_WORDS_SECONDS)
        super().close()

    def _write_all(self) -> None:
        try:
            while (line := self._lines.get()) is not None:
                if self._lost:
                    self._stream.write(self._confession() + "\n")
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._stream.flush()
            self._stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads any more, or the stream is closed: the daemon goes on without a log

    def _confession(self) -> str:
        lost, self._lost = self._lost, 0
        message = f"{lost} log messages were lost, for nothing could be written here"
        fields = {"levelno": logging.WARNING, "levelname": "WARNING", "name": __name__, "msg": message}
        return self.format(logging.makeLogRecord(fields))
