"""Shares the directories in memory of the tests of builds."""

from __future__ import annotations

from tests.unit.builds.conftest import tmp_path

__all__ = ["tmp_path"]
