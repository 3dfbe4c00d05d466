"""Where a mount does not do what a plain directory does: names of cases, as patterns, and why.

docs/reference/file-system.md tells the same to users. An entry whose cases no longer differ fails the test.
"""

from __future__ import annotations

from typing import Final

DIFFERENCES: Final[dict[str, str]] = {
    "attributes: atime after: *": "reading does not change the atime; until it is set it is the mtime",
    "blob: written while somebody reads (large, here)": "passed through to the kernel, a blob that is open to read cannot be "
    "exchanged for its copy: the reader keeps the old bytes, the writer gets another node, as on overlayfs",
    "content: fallocate: collapse*": "FUSE has no FALLOC_FL_COLLAPSE_RANGE (fuse_file_fallocate)",
    "content: fallocate: insert*": "FUSE has no FALLOC_FL_INSERT_RANGE",
    "open: opened: device, *": "the mount is nodev: a device node can be made, not opened",
    "rename: flags that make no sense: 4": "no RENAME_WHITEOUT, which only overlayfs asks for",
    "xattr: set on: security, *": "only the namespace `user.` is kept",
    "xattr: set on: trusted, *": "only the namespace `user.` is kept",
    "xattr: of access lists": "no access control lists",
}
