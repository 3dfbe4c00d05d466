"""Small file systems that a test may fill or break. For root only."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes at `path`."""
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True, timeout=60)
    try:
        yield path
    finally:
        # Lazily: the daemon that a failed test leaves running is ended later.
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=60)


def fill(disk: Path) -> Path:
    """Take all the room there is, to the last page; the file that does."""
    filler = disk / "filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    os.write(fd, bytes(size))
    finally:
        os.close(fd)
    return filler


@contextmanager
def fragile_disk(path: Path, image: Path, size: int) -> Iterator[Callable[[], None]]:
    """An ext4 file system at `path` in the file `image`, and what makes it read-only at once, as a fault of the disk does."""
    path.mkdir(parents=True, exist_ok=True)
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, timeout=60)
    mounting = ["mount", "-o", "loop,errors=remount-ro", str(image), str(path)]
    if subprocess.run(mounting, capture_output=True, timeout=60, check=False).returncode:
        pytest.skip("this machine has no loop devices")
    try:
        found = subprocess.run(
            ["findmnt", "-no", "SOURCE", str(path)], check=True, capture_output=True, text=True, timeout=60
        )
        fault = Path("/sys/fs/ext4", os.path.basename(found.stdout.strip()), "trigger_fs_error")

        def break_it() -> None:
            fault.write_text("1")

        yield break_it
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=60)
