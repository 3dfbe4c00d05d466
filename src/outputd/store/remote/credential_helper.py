"""Bazel's credential-helper protocol: a program that tells the headers for a server. Never keeps anything.

Source: bazelbuild/proposals, designs/2022-06-07-bazel-credential-helpers.md: the program is called as `PROGRAM get`, reads
`{"uri": ...}` and prints `{"headers": {NAME: [VALUE, ...]}, "expires": RFC 3339}`; any exit code but 0 means that it failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from outputd.errors import Invalid, TimedOut, Unproven
from outputd.store.remote.credential_facts import Headers, guessed
from outputd.store.remote.endpoint import Endpoint, check_headers

_LONGEST_REPLY: Final = 1 << 20
_LONGEST_COMPLAINT: Final = 300
_END_SECONDS: Final = 1.0
"""For a program that was killed to be gone."""
# RFC 3339, of which datetime.fromisoformat takes less (fractions of any length) and more (dates alone).
_RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Told:
    """What a helper told."""

    headers: Headers = field(repr=False)
    expires: float | None
    """Seconds since 1970; None when it did not say."""


def helper_for(endpoint: Endpoint, helpers: Sequence[tuple[str, str]]) -> str | None:
    """The program whose pattern is closest to the server's host: its name, then the longest end of it, then none."""
    host = endpoint.host.lower()
    found: tuple[int, str] | None = None
    for pattern, program in helpers:
        if not pattern:
            rank = 0
        elif pattern == host:
            rank = 1 + 2 * len(host)
        elif pattern.startswith("*.") and f".{host}".endswith(pattern[1:]):
            rank = len(pattern)
        else:
            continue
        # Of two that fit equally well the later one counts, as with Bazel's repeated flags.
        if found is None or rank >= found[0]:
            found = rank, program
    return None if found is None else found[1]


async def ask(program: str, uri: str, seconds: float) -> Told:
    """Run it once. Raises Unproven for one that fails or talks nonsense, TimedOut; neither shows a secret."""
    name = f"credential helper {program}"
    # All of the request is in the pipe before anybody reads: a program that does not want to know it may end at any time.
    stdin, ours = os.pipe()
    try:
        os.write(ours, json.dumps({"uri": uri}).encode())
        # A session of its own: who kills it means its children, too, and it has no terminal to ask questions at.
        process = await asyncio.create_subprocess_exec(
            program,
            "get",
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise Unproven(f"{name} cannot be run: {error.strerror}") from error
    finally:
        os.close(stdin)
        os.close(ours)
    try:
        async with asyncio.timeout(seconds):
            reply, complaint = await _said(process)
            code = await process.wait()
    except TimeoutError as error:
        raise TimedOut(f"{name} did not end within {seconds:g} s") from error
    finally:
        await _end(process)
    if code:
        how = f"ended with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
        said = _shown(complaint)
        raise Unproven(f"{name} {how}" + (f" and said: {said}" if said else ""))
    return parse(reply, name)


async def _said(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    """Standard output and standard error."""
    assert process.stdout is not None and process.stderr is not None
    async with asyncio.TaskGroup() as group:
        reply = group.create_task(_begin_of(process.stdout))
        complaint = group.create_task(_begin_of(process.stderr))
    return reply.result(), complaint.result()


async def _begin_of(stream: asyncio.StreamReader) -> bytes:
    """What comes first; the rest is read, for the writer waits otherwise, and thrown away."""
    kept = bytearray()
    while piece := await stream.read(1 << 16):
        kept += piece[: _LONGEST_REPLY + 1 - len(kept)]
    return bytes(kept)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Leave no process behind, but for those that an orderly helper has started on purpose."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            await process.wait()


def _shown(complaint: bytes) -> str:
    lines = complaint.decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    printable = "".join(letter if letter.isprintable() else "?" for letter in last)
    return guessed(printable)[:_LONGEST_COMPLAINT]


def parse(reply: bytes, name: str) -> Told:
    """What a helper printed. Raises Unproven, and says what is wrong but not what is there: it may be a secret."""
    if len(reply) > _LONGEST_REPLY:
        raise Unproven(f"{name} printed more than {_LONGEST_REPLY} bytes")
    try:
        told = json.loads(reply)
    except ValueError:
        raise Unproven(f"{name} printed {len(reply)} bytes that are not JSON") from None
    except RecursionError:
        raise Unproven(f"{name} printed JSON that is nested too deep") from None
    if not isinstance(told, dict):
        raise Unproven(f"{name} printed JSON that is no object")
    named = told.get("headers", {})
    if not isinstance(named, dict) or not all(
        isinstance(values, list) and all(isinstance(value, str) for value in values)
        for values in named.values()
    ):
        raise Unproven(f'{name} printed "headers" that are not lists of text by name')
    headers: list[tuple[str, str]] = []
    try:
        for header, values in named.items():
            for value in values:
                headers += check_headers({header: value})
    except Invalid as error:
        raise Unproven(f"{name} told a header that cannot be sent: {error}") from error
    expires = told.get("expires")
    if expires is None or expires == "":
        return Told(tuple(headers), None)
    found = _RFC3339.fullmatch(expires) if isinstance(expires, str) else None
    try:
        if found is None:
            raise ValueError
        zone = "+00:00" if found[3] in "Zz" else found[3]
        return Told(
            tuple(headers), datetime.fromisoformat(f"{found[1]}T{found[2]}{zone}").astimezone(UTC).timestamp()
        )
    except (ValueError, OverflowError):
        raise Unproven(f'{name} printed an "expires" that is no time of RFC 3339') from None
