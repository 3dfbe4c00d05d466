"""What outputd asks of a place that keeps blobs; declarations only, no behaviour.

Every implementation passes `tests/unit/store/conformance.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from outputd.digest import Digest, DigestFunction
from outputd.errors import OutputdError

Piece: TypeAlias = bytes | memoryview
"""Some bytes of a blob on its way. A view is of bytes that nobody changes."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Room on the file system that holds a store. All figures in bytes, as statvfs(3) tells them, but `blobs` and `files`."""

    total: int
    free: int
    available: int
    """Free for us, that is without what is reserved for root."""
    files: int
    files_free: int
    blobs: int
    """Blobs in the store, or -1 while nobody counted them."""
    blob_bytes: int
    """Bytes of these blobs, or -1 while nobody counted them."""
    local_only_blobs: int
    """Those that no remote is known to have, or -1 while nobody counted them."""
    local_only_bytes: int
    partial_blobs: int
    """Large blobs of which only some bytes are here; not among `blobs`."""
    partial_bytes: int
    """Room that these take on the disk."""


@dataclass(frozen=True, slots=True)
class RemoteAbilities:
    """What a REv2 server says of itself (GetCapabilities), in our words."""

    digest_functions: frozenset[DigestFunction]
    """Empty when the server does not say."""
    max_batch_bytes: int
    """Largest sum of blob sizes in one batch call; never 0, our own limit applied."""
    compressors: frozenset[str]
    """Lowercase names usable on ByteStream, for instance `zstd`."""
    batch_compressors: frozenset[str]
    """The same for BatchUpdateBlobs."""
    api_version: str
    """`low-high` as the server tells it."""
    splits: bool
    """Whether it tells of which chunks a blob is made (SplitBlob)."""


class LocalStore(Protocol):
    """Blobs on a local disk. Synchronous: callers move long calls to a thread. Safe to call from several threads."""

    def has(self, digest: Digest) -> bool:
        """Whether the blob is here, whole. The empty blob always is."""

    def open(self, digest: Digest) -> int | None:
        """A new read-only descriptor of the blob's file, or None when it is not here. The caller closes it.

        A file of another size than the digest says is never served and counts as absent. It stays where it is, for the size
        asked for may be the lie; the true blob displaces a damaged file when it arrives.
        """

    def read(self, digest: Digest) -> bytes | None:
        """All bytes of a blob, or None when it is not here. For small blobs."""

    def put(self, digest: Digest, data: bytes, *, local_only: bool = False) -> None:
        """Keep these bytes; `local_only` as for `writer`. Raises Corrupt when they do not match, Exhausted on a full disk."""

    def writer(self, digest: Digest, *, local_only: bool = False) -> BlobWriter:
        """Receive a blob piece by piece. `local_only`: no remote is known to have it."""

    def adopt(self, path: str, digest: Digest) -> None:
        """Take over a file by rename, without a copy; the caller vouches that `path` has this digest, that no writable
        descriptor of it is left, and that it lies on the store's file system. It counts as local-only until `confirm_remote`.
        Raises Exhausted or Unavailable."""

    def confirm_remote(self, digests: Collection[Digest]) -> None:
        """A remote was seen to have these blobs: those that are here may be evicted, they can be fetched. Raises Unavailable."""

    def retain(self, digests: Collection[Digest]) -> set[Digest]:
        """No remote is relied on to have these until `confirm_remote`: they count as local-only. Returns those that are not here;
        the empty blob always is. Raises Unavailable."""

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Those of `digests` that are not here. What is here is not evicted for as long as the store keeps what is unreferenced."""

    def flush(self) -> None:
        """Return when everything that is here outlives a power cut. Raises Exhausted or Unavailable. May take seconds."""

    def only_here(self, digests: Collection[Digest]) -> set[Digest]:
        """Those of `digests` that are here, were made here and are not known to be anywhere else."""

    def usage(self) -> Usage:
        """True numbers for statfs and `status`."""


class BlobWriter(Protocol):
    """One blob on its way in. Use as a context manager: leaving without `commit` leaves nothing behind."""

    def write(self, data: Piece) -> None: ...

    def commit(self) -> None:
        """Make the blob visible. Raises Corrupt when the bytes do not match the digest; then nothing is kept."""

    def __enter__(self) -> BlobWriter: ...
    def __exit__(self, *exc: object) -> None: ...


class RemoteBlobs(Protocol):
    """A REv2 CAS seen by us. Raises NotFound, Corrupt, Unreachable, TimedOut, Denied, Throttled, Unsupported, and Invalid or
    Precondition when the server finds fault with a request.

    Every call ends: each wait has a deadline. Transient failures were retried before anything is raised.
    """

    async def abilities(self) -> RemoteAbilities: ...

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        """FindMissingBlobs, in batches of any number the server takes."""

    async def read_batch(
        self, digests: Collection[Digest], *, part_of: Digest | None = None
    ) -> Mapping[Digest, bytes | OutputdError]:
        """Small blobs, each verified. Every digest asked for has an entry: its bytes, or the error that befell it alone.

        `part_of` is the blob whose chunks they are, for whoever counts.
        """

    def read_stream(self, digest: Digest, offset: int = 0, limit: int = 0) -> AsyncGenerator[Piece]:
        """The bytes of one blob from `offset`, at most `limit` unless that is 0, resumed over broken streams. Never more than the
        digest's size. Not verified here: the receiver hashes."""

    async def split(self, digest: Digest) -> Sequence[Digest] | None:
        """The chunks of which a blob is made, in order, as the server says, which nobody has checked; None when it knows none.

        Raises Unsupported when it had offered to tell, and once only: from then on it counts as one that does not.
        """

    async def write(self, digest: Digest, data: Callable[[], AsyncGenerator[bytes]]) -> None:
        """Upload one blob. `data` gives its bytes from the start, again for each try."""

    async def write_batch(self, blobs: Mapping[Digest, bytes]) -> Mapping[Digest, OutputdError]:
        """Upload small blobs, in as few calls as the server takes; the failures, if any, by digest."""

    def of_instance(self, name: str) -> RemoteBlobs:
        """The same server, asked for another instance name. Shares what is expensive; closing it closes nothing."""

    async def close(self) -> None: ...


class Ranges(Protocol):
    """A large blob of which only what is read is fetched. Its bytes are verified when all of them have come, not before."""

    @property
    def fd(self) -> int:
        """To read from what `has` says is here, until `close`."""

    def has(self, offset: int, size: int) -> bool:
        """Whether these bytes are here; then they count as read, and what may be read next is fetched."""

    def lacks(self, offset: int, size: int) -> int:
        """How many of these bytes are not here; nothing counts as read."""

    async def need(self, offset: int, size: int, *, ahead: bool = True) -> None:
        """Return when these bytes are here; what may be read next is fetched too if `ahead`. Raises as `BlobStore.fetch`."""

    def close(self) -> None:
        """To be called once."""


class BlobStore(Protocol):
    """What the drive, the builds and the served CAS use: the local store before the remote one, if there is a remote.

    Raises what RemoteBlobs raises, plus Exhausted when the local disk is full.
    """

    @property
    def local(self) -> LocalStore: ...

    def of_instance(self, name: str) -> BlobStore:
        """This store, with the remote asked for another REv2 instance name; an empty name stands for the one of the settings.

        Cheap after the first time. The local store is one for all: whoever knows a digest may have what is here.
        """

    async def fetch(self, digest: Digest) -> None:
        """Return when the blob is in the local store, whole and verified. One flight per digest, whoever asks."""

    def ranges(self, digest: Digest) -> Ranges | None:
        """For a blob that is large and not here; None where it is to be fetched as a whole. Raises Exhausted or Unavailable."""

    async def fetch_many(self, digests: Collection[Digest]) -> dict[Digest, Exception]:
        """As `fetch` for many, small ones coalesced into batches; the failures, if any, by digest."""

    async def read(self, digest: Digest) -> bytes:
        """All bytes of a small blob, kept locally too."""

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Digests that neither the local store nor the remote holds.

        The remote is asked for all of them, held locally or not, for its answer prolongs lifetimes there (REv2). When it cannot
        be reached this raises Unavailable.
        """

    async def missing_remotely(self, digests: Collection[Digest]) -> set[Digest]:
        """As `find_missing`, but whatever the local store holds; all of them when there is no remote."""

    async def write(self, digest: Digest, data: AsyncIterator[bytes]) -> None:
        """Keep a blob: in the local store and, when there is a remote, there too before this returns.

        Corrupt means the bytes that were given, never what a remote answers.
        """

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, OutputdError]:
        """As `write` for many small blobs, sent to the remote in batches; the failures, if any, by digest."""


class ServedBlobs(BlobStore, Protocol):
    """What the served CAS needs beside that: clients believe that what it has, the remote has."""

    def of_instance(self, name: str) -> ServedBlobs: ...

    async def provide(self, digests: Collection[Digest]) -> set[Digest]:
        """Those of `digests` that a client must upload before it may rely on them, everywhere behind this store.

        The remote is asked for all. Small blobs that it lacks and the local store holds are given to it by this call, within a
        limit; a larger one stays in the answer, and `write` takes it from the local store without reading the client's bytes.
        """
