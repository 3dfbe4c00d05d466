"""Where the mount does not do what a plain directory does: names of cases, as patterns, and why. Told in docs/reference/file-system.md.

An entry whose cases no longer differ fails the test.
"""

from __future__ import annotations

from typing import Final

DIFFERENCES: Final[dict[str, str]] = {}
