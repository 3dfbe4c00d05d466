"""User and password of a server as the file .netrc has them, for who gives no other credentials. Never writes one down.

Source: Bazel's NetrcParser and NetrcCredentials: lines that begin with # say nothing, `macdef` goes on to the next empty line,
nothing counts behind `default`; a host's entry, else that of `default`, is sent as `authorization: Basic ...` (RFC 7617).
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from typing import Final

from outputd.store.remote.caller import AUTHORIZATION
from outputd.store.remote.credential_facts import Headers
from outputd.store.remote.watched import Watch

_log = logging.getLogger(__name__)

_DEFAULT: Final = b""
"""The machine of an entry for all others."""
_ENTRIES: Final = (b"machine", b"default", b"macdef")
_FIELDS: Final = (b"login", b"password", b"account")


class Netrc:
    """What one file says of one host. It need not exist."""

    def __init__(self, path: str, host: str) -> None:
        self.path: Final = path
        self.error = ""
        """Why what it holds now is not used."""
        self._host = host.encode()
        self._watch = Watch([path])
        self._headers: Headers = ()
        self._read()

    def headers(self) -> Headers:
        """One, or none where the file says nothing of the host."""
        return self._headers

    def look(self, *, at_once: bool = False) -> None:
        """Read it again if it has changed. What cannot be used is not: what it said before stays."""
        if self._watch.changed(at_once=at_once):
            self._read()

    def _read(self) -> None:
        error = ""
        try:
            with open(self.path, "rb") as file:
                entries = parse(file.read())
        except (FileNotFoundError, NotADirectoryError):
            self._headers = ()
        except OSError as failed:
            error = f"{self.path} cannot be read: {failed.strerror}"
        except ValueError as wrong:
            error = f"{self.path}: {wrong}"
        else:
            found = entries.get(self._host, entries.get(_DEFAULT))
            self._headers = () if found is None else ((AUTHORIZATION, basic(*found)),)
        if error and error != self.error:
            _log.warning("%s; what it said before, if anything, stays in use", error)
        self.error = error


def basic(login: bytes, password: bytes) -> str:
    """The value of the header (RFC 7617)."""
    return f"Basic {base64.b64encode(login + b':' + password).decode('ascii')}"


def parse(text: bytes) -> dict[bytes, tuple[bytes, bytes]]:
    """Login and password by machine. Raises ValueError, which quotes nothing of it."""
    words = _words(text)
    entries: dict[bytes, tuple[bytes, bytes]] = {}
    machine: bytes | None = None
    fields: dict[bytes, bytes] = {}
    for line, word in words:
        if word in _FIELDS and machine is not None:
            fields[word] = _next(words, line)
        elif word in _ENTRIES:
            _enter(entries, machine, fields)
            if machine == _DEFAULT:
                return entries
            machine = _DEFAULT if word == b"default" else _next(words, line) if word == b"machine" else None
            if word == b"macdef":
                _skip(words)
        elif word:
            raise ValueError(f"line {line} has what no .netrc has there")
    _enter(entries, machine, fields)
    return entries


def _enter(
    entries: dict[bytes, tuple[bytes, bytes]], machine: bytes | None, fields: dict[bytes, bytes]
) -> None:
    if machine is not None and (b"login" in fields or b"password" in fields):
        entries[machine] = fields.get(b"login", b""), fields.get(b"password", b"")
    fields.clear()


def _words(text: bytes) -> Iterator[tuple[int, bytes]]:
    """Each word with the number of its line; an empty one at the end of each line that has none."""
    for number, line in enumerate(text.splitlines(), 1):
        words = [] if line.startswith(b"#") else line.split()
        yield from ((number, word) for word in words or [b""])


def _next(words: Iterator[tuple[int, bytes]], line: int) -> bytes:
    for _, word in words:
        if word:
            return word
    raise ValueError(f"it ends before line {line} is complete")


def _skip(words: Iterator[tuple[int, bytes]]) -> None:
    """A macro, to the next empty line."""
    for _, word in words:
        if not word:
            return
