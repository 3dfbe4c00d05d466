"""Finds the running daemon at the addresses of the settings. Never starts one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from outputd.cli.console import NoDaemon
from outputd.config import Address, Config, Places, UnixAddress
from outputd.errors import OutputdError, Unavailable
from outputd.rpc.admin_client import GetStatusResponse, fetch_status

Answer = TypeVar("Answer")

ANSWER_SECONDS: Final = 5.0


def status_of_daemon(settings: Config, environ: Mapping[str, str]) -> GetStatusResponse:
    """Its status, from the first address that answers. Raises as `ask_daemon`."""
    return answering(settings, environ)[1]


def answering(settings: Config, environ: Mapping[str, str]) -> tuple[str, GetStatusResponse]:
    """The gRPC target of the first address that answers, and the status from there. Raises as `ask_daemon`."""
    return ask_daemon(settings, environ, lambda target, seconds: (target, fetch_status(target, seconds)))


def find_daemon(settings: Config, environ: Mapping[str, str]) -> tuple[Address, GetStatusResponse]:
    """The first address that answers, and the daemon's status. Raises as `ask_daemon`."""
    return _first_answer(settings, environ, fetch_status)


def ask_daemon(
    settings: Config, environ: Mapping[str, str], question: Callable[[str, float], Answer]
) -> Answer:
    """What `question(target, seconds)` tells of the first address that answers.

    Raises what went wrong at the first address, as NoDaemon where it is that nobody answers.
    """
    return _first_answer(settings, environ, question)[1]


def _first_answer(
    settings: Config, environ: Mapping[str, str], question: Callable[[str, float], Answer]
) -> tuple[Address, Answer]:
    first: OutputdError | None = None
    for address in settings.listen.addresses:
        try:
            return address, _ask_at(address, environ, question)
        except OutputdError as wrong:
            first = first or wrong
    assert first is not None, "the settings hold at least one address"
    if isinstance(first, Unavailable):
        raise NoDaemon(str(first)) from first
    raise first


def status_at(address: Address, environ: Mapping[str, str]) -> GetStatusResponse:
    """The status of the daemon at one address. Raises Unavailable, TimedOut, Denied or Invalid."""
    return _ask_at(address, environ, fetch_status)


def _ask_at(address: Address, environ: Mapping[str, str], question: Callable[[str, float], Answer]) -> Answer:
    if isinstance(address, UnixAddress):
        if not os.path.lexists(address.path):
            raise Unavailable(f"no daemon answers at {address}: there is no such socket")
        places = Places.of(environ)
        if os.path.dirname(address.path) == places.private_fallback():
            places.check_private(places.private_fallback())
    return question(address.target, ANSWER_SECONDS)
