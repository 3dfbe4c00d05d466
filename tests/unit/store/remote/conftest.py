"""For all tests of the client."""

from __future__ import annotations

import pytest

from outputd.store.remote import retry


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries keep their order of events and lose their length."""
    monkeypatch.setattr(retry, "_FIRST_INTERVAL", 0.005)
