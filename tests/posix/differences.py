"""Where a mount does not do what a plain directory does: names of cases, as patterns, and what docs/reference/file-system.md says.

An entry whose cases no longer differ fails the test, and so does one that the page does not tell.
"""

from __future__ import annotations

from typing import Final

DIFFERENCES: Final[dict[str, str]] = {
    "attributes: atime after: *": "Reading does not change the atime; until it is set it is the mtime",
    "blob: written while somebody reads (large, here)": "While a large blob is open to read, another process that opens it to "
    "write gets another node: the reader keeps the old bytes",
    "content: fallocate: collapse*": "the kernel's FUSE does not know them (`fuse_file_fallocate`)",
    "content: fallocate: insert*": "the kernel's FUSE does not know them (`fuse_file_fallocate`)",
    "open: opened: device, *": "A device node can be made by those who may, but not opened (`EACCES`)",
    "rename: flags that make no sense: 4": "`renameat2` refuses `RENAME_WHITEOUT` with `EINVAL`",
    "xattr: set on: security, *": "Access control lists and extended attributes outside `user.` are refused with `EOPNOTSUPP`",
    "xattr: set on: trusted, *": "Access control lists and extended attributes outside `user.` are refused with `EOPNOTSUPP`",
    "xattr: of access lists": "Access control lists and extended attributes outside `user.` are refused with `EOPNOTSUPP`",
}
