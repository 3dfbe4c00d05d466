"""What the tests of the tree share."""

from __future__ import annotations

import pytest

from tests.unit.tree.world import World


@pytest.fixture
def w() -> World:
    return World()
