"""Which start of the machine this is: what was not synced counts only until the next one. Never changes anything."""

from __future__ import annotations

import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path


def boot_id() -> bytes:
    """16 bytes that are others after the machine was started anew; zeros where the system does not tell."""
    with suppress(OSError, ValueError):
        if sys.platform == "darwin":
            text = subprocess.check_output(
                ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], timeout=5
            ).decode()
        else:
            text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return uuid.UUID(text.strip()).bytes
    return bytes(16)
