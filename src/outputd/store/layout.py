"""Where the files of a local store lie, and whose they are; knows names, never a blob's bytes.

Below the root, which one user's daemons own, one at a time:

    cache.lock                                              held by the daemon that works here
    format                                                  the number of this layout; a newer one is refused
    synced                                                  what a power cut cannot have damaged (doubt.py)
    blobs/<function>/<two hex digits>/<the other digits>    the blobs: mode 0444, or 01444 while no remote is known to have them
    tmp/<one directory a process>/                          blobs on their way in; swept when their process is gone
    private/, owners/                                       files local actions write, taken over by `adopt`; whose (owners.py)
    partial/                                                blobs of which some bytes are here (partials.py)
    damaged/                                                what was found under a blob's name with other bytes
    empty                                                   stands for the empty blob
    CACHEDIR.TAG                                            tells backup programs to leave all of this out; a blob as well
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from outputd.digest import Digest, DigestFunction, empty_digest
from outputd.disk.atomic import make_directories, replace_file
from outputd.disk.disk import Disk
from outputd.errors import Precondition
from outputd.store.room import is_full

_log = logging.getLogger(__name__)

FORMAT: Final = 2
_WITHOUT_OWNERS: Final = 1
"""The format in which private files lay in `private` itself."""
BLOB_MODE: Final = 0o444
LOCAL_ONLY: Final = stat.S_ISVTX
"""The bit in a blob's mode that says: no remote is known to have it. On a regular file it means nothing to Linux."""

TAG_NAME: Final = "CACHEDIR.TAG"
TAG: Final = b"""\
Signature: 8a477f597d28d172789f06886806bc55
# Backup programs leave out the directory with this file: its contents can be had again (https://bford.info/cachedir/).
# It belongs to outputd.
"""
"""The first 43 bytes are what makes it one."""
TAG_DIGEST: Final = Digest.of(DigestFunction.SHA256, TAG)
_NO_SIZE: Final = bytes(8)


class Found(NamedTuple):
    """A blob's file as a walk through the store met it."""

    digest: Digest
    """Its size is the file's: where that is not the blob's, this digest is nobody's."""
    path: str
    status: os.stat_result

    @property
    def local_only(self) -> bool:
        return bool(self.status.st_mode & LOCAL_ONLY)

    @property
    def room(self) -> int:
        """Bytes it takes on the disk."""
        return self.status.st_blocks * 512


class Layout:
    """The names below one root."""

    def __init__(self, root: str) -> None:
        self.root: Final = os.path.abspath(root)
        self.private: Final = f"{self.root}/private"
        self.owners: Final = f"{self.root}/owners"
        self.damaged: Final = f"{self.root}/damaged"
        self.partial: Final = f"{self.root}/partial"
        self.tmp: Final = f"{self.root}/tmp"
        self.empty: Final = f"{self.root}/empty"
        self.tag: Final = f"{self.root}/{TAG_NAME}"
        self.synced: Final = f"{self.root}/synced"
        # By function number. A digest's path is made on every open of a file: two slices and one join.
        self._prefix = [""] + [f"{self.root}/blobs/{function.lower}/" for function in DigestFunction]

    def path(self, digest: Digest) -> str:
        """Where a blob lies, or would."""
        digits = digest[9:].hex()
        return f"{self._prefix[digest[0]]}{digits[:2]}/{digits[2:]}"

    def standing(self, digest: Digest) -> str | None:
        """The file of a blob that is always here, and never evicted; None of all others."""
        if digest[1:9] == _NO_SIZE:
            function = digest.function
            return self.empty if function.supported and digest == empty_digest(function) else None
        return self.tag if digest == TAG_DIGEST else None

    def prepare(self, disk: Disk) -> None:
        """Make what is missing. Raises OSError, and Precondition when the root is not ours or has a newer format."""
        make_directories(disk, self.root)
        owner = os.stat(self.root).st_uid
        if owner != os.geteuid():
            raise Precondition(
                f"{self.root}: belongs to uid {owner}, and this is uid {os.geteuid()}; `chown -R` it, or choose another "
                "directory (--cache-dir)"
            )
        path = f"{self.root}/format"
        try:
            with open(path, "rb") as file:
                found = file.read(20).strip()
        except FileNotFoundError:
            replace_file(disk, path, b"%d\n" % FORMAT)
        else:
            if found == b"%d" % _WITHOUT_OWNERS:
                _log.info("%s: from format %d to %d", path, _WITHOUT_OWNERS, FORMAT)
                replace_file(disk, path, b"%d\n" % FORMAT)
            elif found != b"%d" % FORMAT:
                raise Precondition(
                    f"{self.root}: the store has format {found.decode('ascii', 'replace')!r}, and this outputd reads {FORMAT}; "
                    "use the outputd that wrote it, or choose another directory (--cache-dir)"
                )
        for name in ("blobs", "tmp", "private", "partial", "damaged"):
            make_directories(disk, f"{self.root}/{name}")
        os.close(disk.open(self.empty, os.O_RDONLY | os.O_CREAT, BLOB_MODE))
        self._tag(disk)

    def _tag(self, disk: Disk) -> None:
        try:
            with open(self.tag, "rb") as file:
                if file.read() == TAG:
                    return
        except FileNotFoundError:
            pass
        try:
            replace_file(disk, self.tag, TAG, BLOB_MODE)
        except OSError as error:
            if not is_full(error):
                raise
            _log.warning("%s cannot be written, backups take the cache in: %s", self.tag, error.strerror)

    def fans(self) -> list[str]:
        """The directories that hold blobs. Raises OSError."""
        found: list[str] = []
        for top in self._prefix[1:]:
            try:
                found += [top + name for name in os.listdir(top) if len(name) == 2]
            except FileNotFoundError:
                continue  # No blob of this function ever came.
        return found

    def blobs(self, fan: str) -> Iterator[Found]:
        """What lies in one of `fans`, but for what has no blob's name. Raises OSError."""
        top, digits = fan.rsplit("/", 1)
        function = DigestFunction[top.rsplit("/", 1)[1].upper()]
        with os.scandir(fan) as entries:
            for entry in entries:
                try:
                    hash_ = bytes.fromhex(digits + entry.name)
                    status = entry.stat(follow_symlinks=False)
                except ValueError:
                    continue
                except FileNotFoundError:
                    continue  # Evicted since it was listed.
                if len(hash_) == function.hash_length and stat.S_ISREG(status.st_mode):
                    yield Found(Digest.make(function, hash_, status.st_size), entry.path, status)
