"""Extended attributes."""

from __future__ import annotations

import os

from tests.posix.at import NOBODY, At, Cases, libc, told

CASES = Cases("xattr")

_NAMES = {
    "short": "user.x",
    "255 bytes": "user." + "n" * 250,
    "256 bytes": "user." + "n" * 251,
    "UTF-8": "user.größe",
    "only the prefix": "user.",
    "no namespace": "plain",
    "unknown namespace": "other.x",
    "trusted": "trusted.x",
    "security": "security.x",
    "empty": "",
}


def _names(path: str) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


@CASES.each(_NAMES, ("file", "directory", "symlink", "fifo"))
def set_on(at: At, name: str, what: str) -> object:
    path = at.make(what, "x")
    return [
        told(os.setxattr, path, name, b"value\0with all", follow_symlinks=False),
        told(os.getxattr, path, name, follow_symlinks=False),
        told(_names, path),
        told(os.removexattr, path, name, follow_symlinks=False),
        told(os.removexattr, path, name, follow_symlinks=False),
    ]


@CASES.each(
    (0, os.XATTR_CREATE, os.XATTR_REPLACE, os.XATTR_CREATE | os.XATTR_REPLACE, 4), ("there", "absent")
)
def set_with_flags(at: At, flags: int, before: str) -> object:
    at.file("f")
    if before == "there":
        os.setxattr(at / "f", "user.x", b"old")
    return told(os.setxattr, at / "f", "user.x", b"new", flags), told(os.getxattr, at / "f", "user.x")


@CASES.each((0, 1, 1000, 3000, 3900, 5000, 65536, 65537))
def value_of(at: At, size: int) -> object:
    at.file("f")
    return told(os.setxattr, at / "f", "user.x", b"v" * size), told(
        lambda: len(os.getxattr(at / "f", "user.x"))
    )


@CASES.add
def many(at: At) -> object:
    at.file("f")
    for number in range(50):
        os.setxattr(at / "f", f"user.number {number}", b"v%d" % number)
    listed = _names(at / "f")
    os.removexattr(at / "f", "user.number 7")
    return len(listed), len(_names(at / "f")), told(os.getxattr, at / "f", "user.number 8")


@CASES.add
def too_many(at: At) -> object:
    at.file("f")
    outcomes = [told(os.setxattr, at / "f", f"user.{number}", b"v" * 1000) for number in range(8)]
    return outcomes[:3], outcomes[-3:]


@CASES.add
def into_a_buffer_too_small(at: At) -> object:
    at.file("f")
    os.setxattr(at / "f", "user.x", b"twelve bytes")
    path = os.fsencode(at / "f")
    buffer = bytes(4)
    return [
        told(libc, "getxattr", path, b"user.x", buffer, 4),
        told(libc, "getxattr", path, b"user.x", buffer, 0),
        told(libc, "listxattr", path, buffer, 4),
        told(libc, "listxattr", path, buffer, 0),
    ]


@CASES.add
def stays_with_the_inode(at: At) -> object:
    at.file("f")
    os.setxattr(at / "f", "user.x", b"mine")
    os.link(at / "f", at / "g")
    os.rename(at / "f", at / "h")
    with at.opened("g", os.O_RDWR | os.O_TRUNC) as fd:
        os.write(fd, b"other bytes")
        through = os.getxattr(fd, "user.x")
    at.file("f")
    return through, told(os.getxattr, at / "h", "user.x"), told(os.getxattr, at / "f", "user.x")


@CASES.each((0o644, 0o444, 0o600, 0o666, 0o200), ("mine", "root's"))
def by_a_user(at: At, mode: int, whose: str) -> object:
    at.file("f")
    os.setxattr(at / "f", "user.old", b"there")
    if whose == "mine":
        os.chown(at / "f", NOBODY, NOBODY)
    os.chmod(at / "f", mode)
    path = at / "f"
    return at.in_child(
        lambda: [
            told(os.setxattr, path, "user.new", b"1"),
            told(os.getxattr, path, "user.old"),
            told(os.listxattr, path),
            told(os.removexattr, path, "user.old"),
        ],
        user=NOBODY,
    )


@CASES.add
def of_access_lists(at: At) -> object:
    at.file("f")
    return told(os.getxattr, at / "f", "system.posix_acl_access"), told(
        os.getxattr, at / "f", "security.capability"
    )
