"""What a start and an end owe the local store, beside the work of others: blobs in doubt, counts. Called by the daemon alone."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Final

from outputd.errors import OutputdError
from outputd.store.disk_store import DiskStore

_log = logging.getLogger(__name__)

_DOUBT_SECONDS: Final = 20.0
"""Seconds for which a start waits, after a power cut, for the blobs that it may have damaged to be hashed."""


async def close_store(store: DiskStore) -> None:
    """At the end; what cannot be synced then is logged."""
    try:
        await asyncio.to_thread(store.close)
    except OutputdError as error:
        _log.error("blobs that came lately will be hashed at the next start: %s", error)


async def settle_doubt(store: DiskStore) -> None:
    """After a power cut: hash what it may have damaged, before anybody asks for it, but do not let the start wait for ever."""
    looking = threading.Thread(target=_look_through, args=(store,), name="doubt", daemon=True)
    looking.start()
    await asyncio.to_thread(looking.join, _DOUBT_SECONDS)
    if looking.is_alive():
        _log.info(
            "blobs are still being hashed, for a power cut may have damaged them; each is before it is served"
        )


def _look_through(store: DiskStore) -> None:
    try:
        damaged = store.settle_doubt()
    except OutputdError as error:
        _log.warning(
            "each blob that a power cut may have damaged will be hashed when somebody asks for it: %s", error
        )
    else:
        if damaged:
            _log.warning("%d blobs were damaged by a power cut, and set aside", damaged)


def begin_count(store: DiskStore) -> None:
    """Walk the store in a thread: a second for 100,000 blobs. Daemonic, for nobody should wait for it at the end."""

    def count() -> None:
        try:
            store.count()
        except OutputdError as error:
            _log.warning("the blobs of the store cannot be counted: %s", error)

    threading.Thread(target=count, name="count", daemon=True).start()
