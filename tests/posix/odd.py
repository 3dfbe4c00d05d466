"""A tree of files of every kind, and what must be the same of it wherever it was copied or kept."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def odd_files(at: Path) -> None:
    """Of every kind, with modes, times, links, holes, and names that are hard to say."""
    at.mkdir()
    (at / "plain").write_bytes(b"bytes\n" * 1000)
    (at / "the same bytes").write_bytes(b"bytes\n" * 1000)
    os.link(at / "plain", at / "hard link")
    (at / "soft link").symlink_to("odd//path/./../to/")
    os.mkfifo(at / "fifo", 0o640)
    (at / "empty").mkdir(mode=0o750)
    (at / "sticky").mkdir()
    (at / "sticky").chmod(0o1777)
    (at / os.fsdecode(b"not \xff UTF-8")).write_bytes(b"")
    (at / ("n" * 255)).write_bytes(b"n")
    (at / " blank\nnewline\\").write_bytes(b"n")
    (at / "read-only").write_bytes(b"r")
    (at / "read-only").chmod(0o400)
    deep = at / "/".join(["deep"] * 30)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"at the end")
    with open(at / "holes", "wb") as file:
        file.truncate(8 << 20)
        file.seek(5 << 20)
        file.write(b"data between holes")
    for number in range(200):
        (at / "empty" / f"{number}").write_bytes(b"%d" % number)
    for time, path in enumerate(sorted(at.rglob("*"), reverse=True)):
        os.utime(
            path,
            ns=(1_000_000_000_123_456_789 + time, 1_500_000_000_987_654_321 + time),
            follow_symlinks=False,
        )


def facts(at: Path) -> dict[str, object]:
    """What must be the same after a copy, by path; hard links by the first of their names."""
    found: dict[str, object] = {}
    inodes: dict[int, str] = {}
    for path in sorted(at.rglob("*")):
        seen = path.lstat()
        name = os.fsencode(path.relative_to(at)).hex()
        content: object = None
        if stat.S_ISREG(seen.st_mode):
            content = path.read_bytes(), inodes.setdefault(seen.st_ino, name), seen.st_nlink
        elif stat.S_ISLNK(seen.st_mode):
            content = os.readlink(path)
        found[name] = stat.S_IFMT(seen.st_mode), stat.S_IMODE(seen.st_mode), seen.st_mtime_ns, content
    return found
