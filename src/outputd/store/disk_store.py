"""The local content-addressed store: one file a blob on a local disk; never goes to the network, never awaits.

Layout below the root, which one daemon owns:

    blobs/<function>/<two hex digits>/<the other digits>    the blobs, mode 0444, whole and verified before they get this name
                                                            a sticky one (01444) was made here, and may be nowhere else
    tmp/<one directory a process>/                          blobs on their way in; swept when their process is gone
    private/                                                files local actions write, taken over by `adopt`; not touched here
    damaged/                                                what was found under a blob's name with another size
    empty                                                   stands for the empty blob

A blob is found again by its name alone, so there is nothing to load at start. A blob gets its name by rename without being
synced first: after a power cut the file may be shorter than it was (the size then shows it, and the remote has it), but it
cannot hold other bytes of the right size, for the journalling file systems write data before they write the size. Who
promises more calls `flush`.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import secrets
import stat
import threading
from collections.abc import Collection, Iterator
from typing import Final

from outputd.digest import Digest, DigestFunction, empty_digest
from outputd.disk.atomic import make_directories
from outputd.disk.disk import Disk
from outputd.errors import Corrupt, Exhausted, OutputdError, Unavailable
from outputd.store.base import Usage

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_SIZE: Final = bytes(8)
_ONLY_HERE: Final = stat.S_ISVTX
"""Bit in the mode of a blob that was made here and is not known to be anywhere else. It means nothing to Linux on a plain file."""


class DiskStore:
    """A LocalStore on a local file system. Safe for any number of threads and processes."""

    def __init__(self, root: str, disk: Disk) -> None:
        """Make the layout where it is missing and sweep what dead processes left. Raises Exhausted or Unavailable."""
        self._root = os.path.abspath(root)
        self._disk = disk
        # By function number. A digest's path is made on every open of a file: two slices and one join.
        self._prefix = [""] + [f"{self._root}/blobs/{function.lower}/" for function in DigestFunction]
        self._empty = f"{self._root}/empty"
        self._damaged = f"{self._root}/damaged"
        self.private: Final = f"{self._root}/private"
        """Directory for files that become blobs by `adopt`; on the same file system, so that a rename is enough."""
        self._names = itertools.count()
        self._lock = threading.Lock()
        """Guards the fields below."""
        self._blobs = -1
        self._blob_bytes = -1
        self._unsynced = True
        """Something has arrived since the last `flush`, or may have."""
        self._arrivals: dict[str, int] | None = None
        """Path and size of the blobs that came while somebody counts; None when nobody does."""
        try:
            for name in ("blobs", "tmp", "private", "damaged"):
                make_directories(disk, f"{self._root}/{name}")
            os.close(disk.open(self._empty, os.O_RDONLY | os.O_CREAT, 0o444))
            self._sweep()
            self._tmp, self._claim = self._claim_directory()
        except OSError as error:
            raise self.failed(error, "prepare the store", self._root) from error

    def close(self) -> None:
        """Give up the directory for temporaries. No blob may be on its way in."""
        try:
            self._disk.remove_directory(self._tmp)
        except OSError:
            pass  # Not empty, or the disk is gone: the next start sweeps it.
        os.close(self._claim)

    def has(self, digest: Digest) -> bool:
        try:
            found = os.stat(self._path(digest)).st_size
        except FileNotFoundError:
            return _is_empty_blob(digest)
        except OSError as error:
            raise self.failed(error, "look up", self._path(digest)) from error
        # A file of another size may well be the true blob, and the size asked for the lie. It is absent for the one who
        # asks and stays where it is; the true blob displaces a damaged one when it arrives.
        return found == digest.size

    def open(self, digest: Digest) -> int | None:
        path = self._path(digest)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if not _is_empty_blob(digest):
                return None
            return self._open_empty()
        except OSError as error:
            raise self.failed(error, "open", path) from error
        if os.fstat(fd).st_size == digest.size:
            return fd
        os.close(fd)
        return None

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
            raise self.failed(error, "read", self._path(digest)) from error
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
                if os.stat(self._path(digest)).st_mode & _ONLY_HERE:
                    found.add(digest)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self.failed(error, "look up", self._path(digest)) from error
        return found

    def put(self, digest: Digest, data: bytes) -> None:
        with self.writer(digest) as writer:
            writer.write(data)
            writer.commit()

    def writer(self, digest: Digest) -> DiskWriter:
        return DiskWriter(self, self._disk, digest, f"{self._tmp}/{next(self._names)}")

    def adopt(self, path: str, digest: Digest) -> None:
        try:
            self._disk.chmod(path, 0o444 | _ONLY_HERE)
            self.publish(path, digest)
        except OSError as error:
            raise self.failed(error, "take over", path) from error

    def flush(self) -> None:
        """Make every blob stored so far outlive a power cut. Raises Exhausted or Unavailable. May take seconds."""
        if not self._unsynced:
            return
        self._unsynced = False
        try:
            self._disk.sync_file_system(self._claim)
        except OSError as error:
            self._unsynced = True
            raise self.failed(error, "sync the store", self._root) from error

    def usage(self) -> Usage:
        try:
            room = os.statvfs(self._root)
        except OSError as error:
            raise self.failed(error, "measure the store", self._root) from error
        with self._lock:
            blobs, blob_bytes = self._blobs, self._blob_bytes
        return Usage(
            total=room.f_blocks * room.f_frsize,
            free=room.f_bfree * room.f_frsize,
            available=room.f_bavail * room.f_frsize,
            files=room.f_files,
            files_free=room.f_ffree,
            blobs=blobs,
            blob_bytes=blob_bytes,
        )

    def count(self) -> None:
        """Walk the store once; from then on `usage` knows the number of blobs. For a thread: 100 000 blobs take a second.

        Exact whatever arrives meanwhile, but for the size of a damaged file that is displaced during the walk.
        """
        with self._lock:
            if self._arrivals is not None:
                return  # Somebody is at it.
            arrivals = self._arrivals = {}
        try:
            blobs = blob_bytes = 0
            for path in _fans(self._prefix[1:]):
                with os.scandir(path) as entries:
                    found = [(entry.path, entry.stat().st_size) for entry in entries]
                # What arrives meanwhile is counted from its own list, whether the walk meets it or not.
                with self._lock:
                    sizes = [size for path, size in found if path not in arrivals]
                blobs += len(sizes)
                blob_bytes += sum(sizes)
            with self._lock:
                self._blobs = blobs + len(arrivals)
                self._blob_bytes = blob_bytes + sum(arrivals.values())
                self._arrivals = None
        except OSError as error:
            with self._lock:
                self._arrivals = None
            raise self.failed(error, "count the blobs of", self._root) from error

    def _path(self, digest: Digest) -> str:
        digits = digest[9:].hex()
        return f"{self._prefix[digest[0]]}{digits[:2]}/{digits[2:]}"

    def _open_empty(self) -> int:
        try:
            return os.open(self._empty, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self.failed(error, "open the empty blob", self._empty) from error

    def failed(self, error: OSError, doing: str, path: str) -> OutputdError:
        """What a failed system call means to whoever uses the store."""
        reason = error.strerror or str(error)
        if error.errno not in _NO_ROOM:
            return Unavailable(f"cannot {doing} {path}: {reason}")
        try:
            room = os.statvfs(self._root)
            left = f"{room.f_bavail * room.f_frsize} bytes and {room.f_favail} files are left"
        except OSError:
            left = "the room left is not known"
        return Exhausted(
            f"cannot {doing} {path}: {reason}; {left} on the file system of {self._root}; free some"
        )

    def create(self, path: str) -> int:
        """A new file for a blob on its way in. Raises OSError."""
        # One at a time: threads that create files in one directory spin on the locks of the kernel. Six threads took 1.8 times
        # as long as one for the same files, and twice the CPU; with this lock 1.3 times (ext4, 20 000 files).
        with self._lock:
            return self._disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)

    def publish(self, source: str, digest: Digest) -> None:
        """Give a whole, verified, read-only file its blob's name. Raises OSError."""
        path = self._path(digest)
        # One at a time, so that the blob is counted once, whoever else brings it.
        with self._lock:
            try:
                before = os.stat(path).st_size
                if before != digest.size:
                    self._disk.rename(path, f"{self._damaged}/{digest.function.lower}-{digest.hash_hex}")
            except FileNotFoundError:
                before = -1
            try:
                self._disk.rename(source, path)
            except FileNotFoundError:
                # The first blob of this function with these two digits.
                make_directories(self._disk, os.path.dirname(path))
                self._disk.rename(source, path)
            self._unsynced = True
            if self._arrivals is not None:
                if before < 0:
                    self._arrivals[path] = digest.size
            elif self._blobs >= 0:
                self._blobs += before < 0
                self._blob_bytes += digest.size - max(before, 0)

    def _claim_directory(self) -> tuple[str, int]:
        """A directory for our temporaries, with a lock on it that shows others that we live. Raises OSError."""
        while True:
            path = f"{self._root}/tmp/{os.getpid()}-{secrets.token_hex(4)}"
            self._disk.make_directory(path)
            try:
                claim = self._disk.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue  # Somebody sweeps, and took it for a dead one's.
            fcntl.flock(claim, fcntl.LOCK_SH)
            # Or it was swept between open and flock; then the lock is on a directory without a name.
            if os.fstat(claim).st_nlink:
                return path, claim
            os.close(claim)

    def _sweep(self) -> None:
        """Remove the temporaries of processes that are gone; a lock tells, for a pid may be somebody else's by now."""
        for name in self._disk.list(f"{self._root}/tmp"):
            path = f"{self._root}/tmp/{name}"
            try:
                claim = self._disk.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except (FileNotFoundError, NotADirectoryError):
                continue  # Swept by another process at this moment, or not ours.
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for left in self._disk.list(path):
                    self._disk.unlink(f"{path}/{left}")
                self._disk.remove_directory(path)
            except (BlockingIOError, FileNotFoundError):
                pass  # Its process lives, or another one sweeps it too.
            finally:
                os.close(claim)


class DiskWriter:
    """One blob on its way into a DiskStore. For one thread at a time."""

    __slots__ = ("_digest", "_disk", "_fd", "_hasher", "_path", "_size", "_store")

    def __init__(self, store: DiskStore, disk: Disk, digest: Digest, path: str) -> None:
        self._store = store
        self._disk = disk
        self._digest = digest
        self._path = path
        self._hasher = digest.function.hasher()
        self._size = 0
        try:
            self._fd = store.create(path)
        except OSError as error:
            raise self._store.failed(error, f"store blob {digest} in", path) from error

    def write(self, data: bytes | memoryview) -> None:
        """Append. Raises Corrupt as soon as there are more bytes than the digest says, Exhausted when the disk is full."""
        self._size += len(data)
        if self._size > self._digest.size:
            raise Corrupt(
                f"blob {self._digest}: got {self._size} bytes or more; the digest says {self._digest.size}"
            )
        self._hasher.update(data)
        try:
            self._disk.write(self._fd, data)
        except OSError as error:
            raise self._store.failed(error, f"store blob {self._digest} in", self._path) from error

    def commit(self) -> None:
        digest = self._digest
        if self._size != digest.size:
            raise Corrupt(f"blob {digest}: got {self._size} bytes; the digest says {digest.size}")
        if (found := self._hasher.digest()) != digest.hash:
            raise Corrupt(f"blob {digest}: the bytes have the {digest.function.name} hash {found.hex()}")
        try:
            self._store.publish(self._path, digest)
        except OSError as error:
            raise self._store.failed(error, f"store blob {digest} in", self._path) from error
        self._path = ""

    def __enter__(self) -> DiskWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)
        if self._path:
            try:
                self._disk.unlink(self._path)
            except OSError:
                pass  # It must not hide why we are here; the sweep at the next start finds it.


def _is_empty_blob(digest: Digest) -> bool:
    if digest[1:9] != _NO_SIZE:
        return False
    function = digest.function
    return function.supported and digest == empty_digest(function)


def _fans(tops: list[str]) -> Iterator[str]:
    """The directories that hold blobs."""
    for top in tops:
        try:
            names = os.listdir(top)
        except FileNotFoundError:
            continue  # No blob of this function ever came.
        for name in names:
            yield top + name
