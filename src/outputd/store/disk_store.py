"""The local content-addressed store: one file a blob on a local disk; never goes to the network, never awaits.

A blob is found again by its name alone (layout.py), so there is nothing to load at start, and what else is known of it lies in
its inode: the bit LOCAL_ONLY of its mode says that no remote is known to have it, its atime when it was last used. A blob gets its
name by rename without being synced first; what a power cut may have damaged is hashed before it is served (doubt.py). Who
promises more calls `flush`.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Final

from outputd.digest import Digest
from outputd.disk.atomic import make_directories
from outputd.disk.disk import Disk
from outputd.errors import Exhausted, OutputdError, Unavailable
from outputd.store.base import Usage
from outputd.store.disk_writer import DiskWriter
from outputd.store.doubt import Doubt
from outputd.store.layout import BLOB_MODE, LOCAL_ONLY, Found, Layout
from outputd.store.owners import SOLE, Owner, Owners
from outputd.store.partials import Partials
from outputd.store.room import Relief, is_full, who_holds_it
from outputd.store.tally import Entry, Tally
from outputd.store.temporaries import Temporaries

_log = logging.getLogger(__name__)

_GROWTH: Final = 64 << 20
"""Bytes of arrivals after which somebody looks whether there is room left, on a large disk."""
_USE_STEP: Final = 3600.0
"""Seconds by which the time of the last use may lag: each note of it is a write to the inode."""


class DiskStore:
    """A LocalStore on a local file system. Safe for any number of threads and processes."""

    def __init__(
        self,
        root: str,
        disk: Disk,
        *,
        owner: Owner = SOLE,
        grace: float = 3 * _USE_STEP,
        boot: str | None = None,
    ) -> None:
        """Make the layout where it is missing and sweep what dead processes left.

        `owner`: whose private files are meant, and whose trees. `grace`: seconds for which a blob that only we have is kept after
        its last use, referenced or not. `boot` stands for the kernel's boot id, in hex. Raises Precondition when the store is not
        ours or of a newer format, Exhausted or Unavailable.
        """
        self.layout: Final = Layout(root)
        self._disk = disk
        self.grace: Final = grace
        self._use_step = min(_USE_STEP, grace / 3)
        self._lock = threading.RLock()
        """Held while a blob gets its name, loses it, or is kept from losing it."""
        self.tally: Final = Tally(self._lock)
        self._flushing = threading.Lock()
        self.partials: Final = Partials(self.layout.partial, disk, self)
        self._unsynced = True
        """Blobs came since the last flush, or may have: nobody knows what the last run left unsynced."""
        try:
            fresh = not os.path.lexists(f"{self.layout.root}/blobs")
            self.layout.prepare(disk)
            self._owners = Owners(self.layout.owners, self.layout.private, owner, disk)
            self._temporaries = Temporaries(self.layout.tmp, disk)
            self._doubt = Doubt(self.layout.synced, disk, fresh=fresh, boot=boot)
            self.relief: Final = Relief(self._growth_step())
            self.partials.load()
        except OSError as error:
            raise self.failed(error, "prepare the store", self.layout.root) from error
        self.private: Final = self._owners.private
        """Directory for files that become blobs by `adopt`; on the same file system, so that a rename is enough."""

    def close(self) -> None:
        """Sync, and give up the directory for temporaries. No blob may be on its way in. Raises Exhausted or Unavailable."""
        try:
            self.flush()
            self._doubt.closed()
        except OSError as error:
            raise self.failed(error, "close the store", self.layout.root) from error
        finally:
            self._temporaries.close()

    # LocalStore

    def has(self, digest: Digest) -> bool:
        path = self.layout.path(digest)
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return self.layout.standing(digest) is not None
        except OSError as error:
            raise self.failed(error, "look up", path) from error
        # A file of another size may well be the true blob, and the size asked for the lie. It is absent for the one who
        # asks and stays where it is; the true blob displaces a damaged one when it arrives.
        if found.st_size != digest.size:
            return False
        if found.st_ctime_ns > self._doubt.trusted_until and not self._verify(digest):
            return False
        if found.st_mode & LOCAL_ONLY and time.time() - found.st_atime > self._use_step:
            return self._keep(path)
        return True

    def open(self, digest: Digest) -> int | None:
        path = self.layout.path(digest)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return self._open_standing(digest)
        except OSError as error:
            raise self.failed(error, "open", path) from error
        found = os.fstat(fd)
        if found.st_size != digest.size or (
            found.st_ctime_ns > self._doubt.trusted_until and not self._verify(digest)
        ):
            os.close(fd)
            return None
        if time.time() - found.st_atime > self._use_step:
            _note_use(fd, found)
        return fd

    def read(self, digest: Digest) -> bytes | None:
        fd = self.open(digest)
        if fd is None:
            return None
        try:
            pieces = []
            left = digest.size
            while left and (piece := os.pread(fd, left, digest.size - left)):
                pieces.append(piece)
                left -= len(piece)
        except OSError as error:
            raise self.failed(error, "read", self.layout.path(digest)) from error
        finally:
            os.close(fd)
        return b"".join(pieces) if left == 0 else None

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        has = self.has
        return {digest for digest in digests if not has(digest)}

    def only_here(self, digests: Collection[Digest]) -> set[Digest]:
        found: set[Digest] = set()
        for digest in digests:
            try:
                if os.stat(self.layout.path(digest)).st_mode & LOCAL_ONLY:
                    found.add(digest)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self.failed(error, "look up", self.layout.path(digest)) from error
        return found

    def put(self, digest: Digest, data: bytes, *, local_only: bool = False) -> None:
        with self.writer(digest, local_only=local_only) as writer:
            writer.write(data)
            writer.commit()

    def writer(self, digest: Digest, *, local_only: bool = False) -> DiskWriter:
        return DiskWriter(self, self._disk, digest, self._temporaries.new_path(), local_only=local_only)

    def adopt(self, path: str, digest: Digest) -> None:
        try:
            self._disk.chmod(path, BLOB_MODE | LOCAL_ONLY)
            self.publish(path, digest, local_only=True)
        except OSError as error:
            raise self.failed(error, "take over", path) from error

    def confirm_remote(self, digests: Collection[Digest]) -> None:
        if self.tally.totals.local_only_blobs == 0:
            return
        for digest in digests:
            path = self.layout.path(digest)
            try:
                if os.stat(path).st_mode & LOCAL_ONLY:
                    with self._lock:
                        self._disk.chmod(path, BLOB_MODE)
                        self.tally.changed(path, Entry(digest.size, True), Entry(digest.size, False))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self.failed(error, "mark", path) from error

    def retain(self, digests: Collection[Digest]) -> set[Digest]:
        absent: set[Digest] = set()
        for digest in digests:
            if self.layout.standing(digest) is not None:
                continue
            if not self.has(digest):
                absent.add(digest)
                continue
            path = self.layout.path(digest)
            try:
                with self._lock:  # `evict` takes none whose mode has changed since it was looked at
                    if not os.stat(path).st_mode & LOCAL_ONLY:
                        self._disk.chmod(path, BLOB_MODE | LOCAL_ONLY)
                        self.tally.changed(path, Entry(digest.size, False), Entry(digest.size, True))
            except FileNotFoundError:
                absent.add(digest)
            except OSError as error:
                raise self.failed(error, "mark", path) from error
        return absent

    def usage(self) -> Usage:
        try:
            room = os.statvfs(self.layout.root)
        except OSError as error:
            raise self.failed(error, "measure the store", self.layout.root) from error
        partials = self.partials.list()
        return Usage(
            room.f_blocks * room.f_frsize,
            room.f_bfree * room.f_frsize,
            room.f_bavail * room.f_frsize,
            room.f_files,
            room.f_ffree,
            *self.tally.totals,
            partial_blobs=len(partials),
            partial_bytes=sum(part.room for part in partials),
        )

    # what outlives a power cut

    def flush(self) -> None:
        """Make every blob stored so far outlive a power cut. Raises Exhausted or Unavailable. May take seconds."""
        with self._flushing:
            if not self._unsynced:
                return
            began = time.time_ns()
            self._unsynced = False
            try:
                self._disk.sync_file_system(self._temporaries.claim)
                self._doubt.synced(began)
            except OSError as error:
                self._unsynced = True
                raise self.failed(error, "sync the store", self.layout.root) from error

    def settle_doubt(self) -> int:
        """Hash every blob that a power cut may have damaged; the number of those that were. For a thread: it may take long.

        Raises Exhausted or Unavailable; then what is in doubt is still hashed before it is served.
        """
        if not self._doubt.pending:
            return 0
        damaged = 0
        try:
            for fan in self.layout.fans():
                for found in self.layout.blobs(fan):
                    if found.status.st_ctime_ns > self._doubt.trusted_until:
                        damaged += not self._verify(found.digest)
            # What was in doubt and is right lies in the page cache for sure, on the disk not yet.
            self._unsynced = True
            self.flush()
            self._doubt.all_settled()
        except OSError as error:
            raise self.failed(error, "look through", self.layout.root) from error
        return damaged

    # counting and removing

    def count(self) -> None:
        """Walk the store once; from then on `usage` knows the number of blobs. For a thread: 100 000 blobs take a second.

        Exact whatever arrives meanwhile, but for the size of a damaged file that is displaced during the walk.
        """
        try:
            self.tally.count(
                (
                    fan,
                    [
                        (found.path, Entry(found.digest.size, found.local_only))
                        for found in self.layout.blobs(fan)
                    ],
                )
                for fan in self.layout.fans()
            )
        except OSError as error:
            raise self.failed(error, "count the blobs of", self.layout.root) from error

    def walk(
        self, rest: Callable[[float], object] | None = None, *, shuffled: bool = False
    ) -> Iterator[list[Found]]:
        """All blobs, a directory at a time. `rest` is called after each with the seconds it took. Raises Unavailable."""
        try:
            fans = self.layout.fans()
            if shuffled:
                random.shuffle(fans)
            for fan in fans:
                began = time.monotonic()
                yield list(self.layout.blobs(fan))
                if rest is not None:
                    rest(time.monotonic() - began)
        except OSError as error:
            raise self.failed(error, "look through", self.layout.root) from error

    def evict(self, found: Found, unchanged_since: float) -> bool:
        """Remove a blob, unless it was used, referenced anew, or replaced at or after a time (seconds since 1970), or it has become
        one that only we have.

        Who has it open keeps its bytes. Raises Unavailable.
        """
        try:
            with self._lock:
                # Whatever makes a blob needed anew moves its ctime: its arrival by rename, a use noted by utimensat. Under the
                # lock, or somebody is told that it is here while it goes.
                status = os.stat(found.path)
                if status.st_ctime >= unchanged_since or status.st_mode != found.status.st_mode:
                    return False
                self._disk.unlink(found.path)
                self.tally.changed(found.path, Entry(status.st_size, bool(status.st_mode & LOCAL_ONLY)), None)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self.failed(error, "evict", found.path) from error
        return True

    def forget(self, digest: Digest) -> bool:
        """Remove a blob that the remote has, unless it has become one that only we have; whether it was removed.

        Who has it open keeps its bytes. Raises Unavailable.
        """
        path = self.layout.path(digest)
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self.failed(error, "look at", path) from error
        return not status.st_mode & LOCAL_ONLY and self.evict(Found(digest, path, status), math.inf)

    def is_here(self, digest: Digest) -> bool:
        """As `has`, without counting as a use. What it says of a blob in doubt may be wrong."""
        return os.path.lexists(self.layout.path(digest)) or self.layout.standing(digest) is not None

    def others(self) -> list[str]:
        """The state directories of other owners, whose trees are not ours to judge. Raises Unavailable."""
        try:
            return self._owners.others()
        except OSError as error:
            raise self.failed(error, "look for other owners of", self.layout.root) from error

    # DiskWriter's Home

    def create(self, path: str, *, local_only: bool) -> int:
        # One at a time: threads that create files in one directory spin on the locks of the kernel. Six threads took 1.8 times
        # as long as one for the same files, and twice the CPU; with this lock 1.3 times (ext4, 20 000 files).
        with self._lock:
            return self._disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _mode(local_only))

    def publish(self, source: str, digest: Digest, *, local_only: bool) -> None:
        path = self.layout.path(digest)
        # One at a time, so that the blob is counted once, whoever else brings it.
        with self._lock:
            try:
                status = os.stat(path)
            except FileNotFoundError:
                before = None
            else:
                before = Entry(status.st_size, bool(status.st_mode & LOCAL_ONLY))
                if before.size != digest.size:
                    self._set_aside(path, digest)
                elif local_only and not before.local_only:
                    # It was fetched, or confirmed: the remote has it, whoever brings it now.
                    self._disk.chmod(source, BLOB_MODE)
                    local_only = False
            self._rename_in(source, path)
            self._unsynced = True
            self._doubt.settle(digest)
            self.tally.changed(path, before, Entry(digest.size, local_only))
        self.relief.grew(digest.size)

    def make_room(self, size: int) -> bool:
        """The disk is full, here or where private files lie: have something freed. Whether it is worth trying once more."""
        return self.relief.ask(size, self._who_holds_the_room)

    def grew(self, size: int) -> None:
        """Bytes came of a blob that is here in part."""
        self.relief.grew(size)

    def failed(self, error: OSError, doing: str, path: str) -> OutputdError:
        reason = error.strerror or str(error)
        if not is_full(error) and error.errno != errno.EFBIG:
            return Unavailable(f"cannot {doing} {path}: {reason}")
        return Exhausted(f"cannot {doing} {path}: {reason}; {self._who_holds_the_room()}")

    # within

    def _who_holds_the_room(self) -> str:
        partial = sum(part.room for part in self.partials.list())
        return who_holds_it(self.layout.root, self.layout.private, self.tally.totals, partial)

    def _growth_step(self) -> int:
        """Bytes of arrivals between two looks at the room that is left. Raises OSError."""
        room = os.statvfs(self.layout.root)
        return min(_GROWTH, room.f_blocks * room.f_frsize >> 6)

    def _rename_in(self, source: str, path: str) -> None:
        try:
            self._disk.rename(source, path)
        except FileNotFoundError:
            # The first blob of this function with these two digits.
            make_directories(self._disk, os.path.dirname(path))
            self._disk.rename(source, path)

    def _keep(self, path: str) -> bool:
        """Note the use of a blob that may be garbage by now; whether it is still here."""
        with self._lock:
            try:
                os.utime(path)
            except FileNotFoundError:
                return False
            except OSError:
                pass  # A disk that takes no writes loses no blobs either.
        return True

    def _verify(self, digest: Digest) -> bool:
        """Whether a blob in doubt has the bytes that its digest says, hashing it if nobody has; else it is set aside."""
        if self._doubt.settled(digest):
            return True
        path = self.layout.path(digest)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                right = Digest.of_descriptor(digest.function, fd) == digest
                status = os.fstat(fd)
            finally:
                os.close(fd)
            if right:
                self._doubt.settle(digest)
                return True
            with self._lock:
                if os.stat(path).st_ino != status.st_ino:
                    return True  # The true blob came meanwhile.
                self._set_aside(path, digest)
                self.tally.changed(path, Entry(status.st_size, bool(status.st_mode & LOCAL_ONLY)), None)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self.failed(error, "verify", path) from error
        _log.error(
            "blob %s was damaged by a power cut: it was set aside into %s", digest, self.layout.damaged
        )
        return False

    def _set_aside(self, path: str, digest: Digest) -> None:
        self._disk.rename(path, f"{self.layout.damaged}/{digest.function.lower}-{digest.hash_hex}")

    def _open_standing(self, digest: Digest) -> int | None:
        path = self.layout.standing(digest)
        if path is None:
            return None
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self.failed(error, "open", path) from error


def _mode(local_only: bool) -> int:
    return BLOB_MODE | LOCAL_ONLY if local_only else BLOB_MODE


def _note_use(fd: int, found: os.stat_result) -> None:
    # Directly and not by Disk: nobody is promised that it outlives a crash.
    try:
        os.utime(fd, ns=(time.time_ns(), found.st_mtime_ns))
    except OSError:
        pass  # A disk that takes no writes evicts nothing either.
