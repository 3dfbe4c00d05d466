"""Directories of these tests lie in memory where there is room: a durable commit on a busy disk takes a tenth of a second."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = "/dev/shm"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(
        prefix="outputd-test-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None
    ) as path:
        yield Path(path)
