"""Directories of these tests lie in memory where there is room: images of disks are written by the hundred."""

from __future__ import annotations

from tests.unit.builds.conftest import tmp_path

__all__ = ["tmp_path"]
