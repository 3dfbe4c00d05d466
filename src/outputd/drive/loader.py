"""Brings the children of collapsed directories: REv2 Directory and Tree messages to nodes. Alone in drive to decode them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Generator, Iterator, Mapping
from typing import Final, Protocol, TypeVar

from google.protobuf.message import DecodeError

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest
from outputd.drive.flights import Flights
from outputd.drive.slices import in_slices
from outputd.errors import Corrupt, Invalid, NotFound, TimedOut
from outputd.store.base import BlobStore
from outputd.tree.expand import Listing, expanding
from outputd.tree.node import NO_RECORD, Child, Directory, Volume

_log = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_DIRECTORY_BYTES: Final = 64 << 20
"""Largest Directory message that is read; 16 MiB is what others take (bb_clientd), a directory of 100k files has about 11 MiB."""
_PIECE: Final = 16 << 10
"""Bytes of a message that are decoded in one step: half a millisecond."""
_LISTS: Final = (0x0A, 0x12, 0x1A)
"""Tags of the files, directories and symlinks of a Directory."""
_THREAD_BYTES: Final = 256 << 10
"""Messages from this size on are taken apart in a thread."""


class Objects(Protocol):
    """The local home of Directory messages and attribute records."""

    def directory(self, digest: Digest) -> bytes | None: ...
    def record(self, digest: bytes) -> bytes | None: ...
    def keep_directories(self, messages: Mapping[Digest, bytes]) -> None: ...


class Loader:
    """Loads each directory once, whoever asks. Every wait ends within `timeout` seconds."""

    def __init__(
        self,
        objects: Objects,
        blobs: BlobStore,
        tasks: asyncio.TaskGroup,
        *,
        max_tree_bytes: int,
        timeout: float,
    ) -> None:
        self._objects = objects
        self._blobs = blobs
        self._flights: Flights[Directory] = Flights(tasks)
        self._max_tree_bytes = max_tree_bytes
        self._timeout = timeout

    async def load(self, directory: Directory) -> None:
        """Expand a collapsed directory. Raises NotFound, Corrupt, Exhausted, Unavailable or Denied; then it is as before."""
        if directory.children is None:
            await self._in_time(directory, self._flights.join(directory, lambda: self._load(directory)))

    async def _message(self, digest: Digest, blobs: BlobStore) -> bytes:
        """The bytes of one Directory message, from here or the store. Raises as `load`."""
        message = self._objects.directory(digest)
        if message is not None:
            return message
        if digest.size > _MAX_DIRECTORY_BYTES:
            raise Corrupt(
                f"Directory {digest}: larger than {_MAX_DIRECTORY_BYTES} bytes, which no message may be"
            )
        message = await blobs.read(digest)
        self._objects.keep_directories({digest: message})
        return message

    async def _resolve_tree(self, tree: Digest, blobs: BlobStore) -> Digest:
        """Read a Tree message, keep all its Directory messages, and return the digest of its root. Raises as `load`."""
        if tree.size > self._max_tree_bytes:
            raise Corrupt(
                f"Tree {tree}: larger than outputs.max_tree_bytes allows, {self._max_tree_bytes} bytes"
            )
        data = await blobs.read(tree)
        if len(data) >= _THREAD_BYTES:
            root, messages = await asyncio.to_thread(decode_tree, tree, data)
            await asyncio.to_thread(self._objects.keep_directories, messages)
        else:
            root, messages = decode_tree(tree, data)
            self._objects.keep_directories(messages)
        return root

    async def peek(self, directory: Directory) -> Mapping[bytes, Child]:
        """The entries of a directory without expanding it; those of a collapsed one lie in no tree. As `load`."""
        if directory.children is not None:
            return directory.children
        brought = await self._in_time(directory, self._bring(directory))
        if brought is None:
            return await self.peek(directory)
        aside = _beside(directory)
        await _expand(aside, *brought)
        assert aside.children is not None
        return aside.children

    async def _load(self, directory: Directory) -> None:
        brought = await self._bring(directory)
        if brought is not None and directory.digest == brought[0]:
            await _expand(directory, *brought)

    async def _bring(self, directory: Directory) -> tuple[Digest, Listing, bytes | None] | None:
        """What a collapsed directory holds: its digest, listing and attribute record. None if it was expanded meanwhile."""
        blobs = self._blobs.of_instance(directory.volume.instance_name)
        if directory.digest is None:
            assert directory.tree is not None
            root = await self._resolve_tree(directory.tree, blobs)
            if directory.children is None and directory.digest is None:
                directory.digest = root
                directory.record = directory.record or NO_RECORD
        digest = directory.digest
        if digest is None:
            return None  # expanded or replaced while its Tree was on the way
        try:
            message = await self._message(digest, blobs)
        except NotFound:
            if directory.tree is None:
                raise
            # A Tree and its root digest were both given: the Directory may exist inside the Tree only.
            root = await self._resolve_tree(directory.tree, blobs)
            if root != digest:
                raise Corrupt(
                    f"Tree {directory.tree}: its root is {root}, but root_directory_digest says {digest}"
                ) from None
            message = await self._message(digest, blobs)
        listing = await in_slices(decoding_directory(digest, message))
        return digest, listing, self._record(directory, digest)

    def _record(self, directory: Directory, digest: Digest) -> bytes | None:
        if not directory.record:
            return None
        record = self._objects.record(directory.record)
        if record is None:
            _log.error(
                "attribute record %s of directory %s is lost: its entries get default attributes",
                directory.record.hex(),
                digest,
            )
        return record

    async def _in_time(self, directory: Directory, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._timeout):
                return await work
        except TimeoutError:
            what = f"Directory {directory.digest}" if directory.digest else f"Tree {directory.tree}"
            raise TimedOut(f"{what}: not here after {self._timeout:g} s") from None


def _beside(directory: Directory) -> Directory:
    """A collapsed directory that lies in no tree, with the times of `directory`."""
    made = Directory(directory.mode, directory.mtime, Volume(0, directory.mtime, writable=False))
    made.children = None
    return made


async def _expand(directory: Directory, digest: Digest, listing: Listing, record: bytes | None) -> None:
    try:
        await in_slices(expanding(directory, listing, record))
    except Corrupt as error:
        raise Corrupt(f"Directory {digest}: {error}") from error


def decoding_directory(digest: Digest, message: bytes) -> Generator[None, None, Listing]:
    """The entries of a Directory message whose bytes match `digest`, in steps. Raises Corrupt on what is no such message."""
    function = digest.function
    parse = Digest.parse
    listing = Listing([], [], [])
    try:
        for piece in _pieces(message):
            decoded = reapi.Directory.FromString(piece)
            listing.files.extend(
                (f.name.encode(), parse(function, f.digest.hash, f.digest.size_bytes), f.is_executable)
                for f in decoded.files
            )
            listing.directories.extend(
                (d.name.encode(), parse(function, d.digest.hash, d.digest.size_bytes))
                for d in decoded.directories
            )
            listing.symlinks.extend((s.name.encode(), s.target.encode()) for s in decoded.symlinks)
            yield
    except (DecodeError, Invalid) as error:
        raise Corrupt(f"Directory {digest}: {error}") from error
    return listing


def _pieces(message: bytes) -> Iterator[bytes]:
    """A Directory message in parts that are Directory messages, of about _PIECE bytes: its fields one after the other (protobuf:
    to parse a concatenation is to merge). What does not look like its lists stays together, for protobuf to judge.
    """
    start = at = 0
    end = len(message)
    while end - start > _PIECE:
        while at < end and at - start < _PIECE and message[at] in _LISTS:
            length = shift = 0
            at += 1
            while at < end and shift < 64:
                byte = message[at]
                at += 1
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            at += length
        if at - start < _PIECE or at > end:
            break
        yield message[start:at]
        start = at
    yield message[start:]


def decode_tree(tree: Digest, data: bytes) -> tuple[Digest, dict[Digest, bytes]]:
    """The root's digest and every Directory message of a Tree, as the very bytes that came (REv2: never reserialize).

    Raises Corrupt on what is no such message.
    """
    root: Digest | None = None
    messages: dict[Digest, bytes] = {}
    for number, message in _tree_fields(tree, data):
        digest = Digest.of(tree.function, message)
        messages[digest] = message
        if number == 1:
            if root is not None and root != digest:
                raise Corrupt(f"Tree {tree}: has two roots")
            root = digest
    if root is None:
        raise Corrupt(f"Tree {tree}: has no root Directory")
    return root, messages


def _tree_fields(tree: Digest, data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields 1 (root) and 2 (children) of a Tree message; REv2 has no others."""
    at = 0
    end = len(data)
    while at < end:
        tag = data[at]
        at += 1
        length = shift = 0
        while True:
            if at >= end or shift > 28:
                raise Corrupt(f"Tree {tree}: broken at byte {at}")
            byte = data[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if tag not in (0x0A, 0x12) or at + length > end:
            raise Corrupt(f"Tree {tree}: broken at byte {at}, it is no REv2 Tree message")
        yield tag >> 3, data[at : at + length]
        at += length
