"""Requests about open directories: OPENDIR, READDIR, READDIRPLUS, RELEASEDIR. A listing is taken when reading begins."""

from __future__ import annotations

import asyncio
import errno
from bisect import bisect_right
from collections.abc import Awaitable, Iterable, Iterator
from itertools import islice
from typing import Final

from outputd.digest import Digest
from outputd.front.fuse.answers import Answers
from outputd.front.fuse.handover import OpenDirectory
from outputd.tree.identity import identify_all, remember_all
from outputd.tree.node import SHARED, Child, Directory, File, Node, packed_attributes, packed_size
from outputd.tree.tree import Tree
from outputd.wire.fuse_abi import FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE
from outputd.wire.fuse_reply import (
    blob_attributes,
    data_reply,
    dirent,
    dirent_size,
    direntplus,
    direntplus_of_blob,
    direntplus_size,
    empty_reply,
    error_reply,
    open_reply,
)
from outputd.wire.fuse_request import decode_read, decode_release

_COOKIE_BITS: Final = 62
_DROPPED_BITS: Final = 64 - _COOKIE_BITS
_FIRST: Final = 3
"""The smallest cookie of a name; 1 and 2 are behind `.` and `..`."""
_BASE: Final = _FIRST + (1 << _COOKIE_BITS - 1)
"""Cookie of the name with hash 0. Hashes have a sign, cookies have none."""
_BUCKET: Final = 256
"""Names, about, that are brought into order at once."""
_SLICE: Final = 4096
"""Names that are looked at between two turns of the event loop; a millisecond."""


class _Order:
    """The names of a directory in the order of their cookies, which are hashes of the names, as ext4 has it.

    So a cookie means the same whoever got it from whom: another handle, or the kernel, which goes on from where its cached listing
    became stale. Positions would shift with every name that goes, and `rm -rf` would leave behind what it never saw. Python keys
    its hash anew for every process and keeps it in the name; two of 100,000 names share 62 bits once in a billion directories.
    """

    __slots__ = ("_buckets", "_cookies", "_shift")

    def __init__(self, count: int) -> None:
        bits = (count // _BUCKET).bit_length()
        self._shift = _COOKIE_BITS - bits
        self._buckets: list[list[bytes]] = [[] for _ in range(1 << bits)]
        self._cookies: dict[int, list[int]] = {}
        """Of the names in a bucket that was brought into order."""

    def add(self, names: Iterable[bytes]) -> None:
        buckets, shift = self._buckets, self._shift
        if len(buckets) == 1:
            buckets[0].extend(names)
            return
        for name in names:
            buckets[(hash(name) >> _DROPPED_BITS) + _BASE - _FIRST >> shift].append(name)

    def behind(self, cookie: int) -> Iterator[tuple[int, bytes]]:
        """Names with their cookies, beginning behind one."""
        first = max(cookie - _FIRST, 0) >> self._shift
        for number in range(first, len(self._buckets)):
            bucket = self._buckets[number]
            cookies = self._cookies.get(number)
            if cookies is None:
                bucket.sort(key=hash)
                cookies = self._cookies[number] = [(hash(name) >> _DROPPED_BITS) + _BASE for name in bucket]
            start = bisect_right(cookies, cookie) if number == first else 0
            yield from zip(islice(cookies, start, None), islice(bucket, start, None), strict=True)


class _GivenOrder:
    """Names with the cookies that an earlier process gave them, whose hashes were others."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: list[tuple[int, bytes]]) -> None:
        self.pairs = pairs

    def behind(self, cookie: int) -> Iterator[tuple[int, bytes]]:
        """As `_Order.behind`."""
        return iter(self.pairs[bisect_right(self.pairs, cookie, key=lambda pair: pair[0]) :])


class _Listing:
    """An open directory."""

    __slots__ = ("directory", "lost", "order")

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.lost = False
        """Somebody may come with a cookie that means nothing here."""
        self.order: _Order | _GivenOrder | None = None
        """Taken when reading begins. A name that went since is left out; one that came is seen after rewinddir(3) (POSIX)."""


class Listings:
    """Handlers, as in names.py, and the table of open directories. The first READDIR of a big one answers by an awaitable."""

    def __init__(self, tree: Tree, answers: Answers) -> None:
        self._tree = tree
        self._answers = answers
        self._open: dict[int, _Listing] = {}
        self.next_fh = 1
        """The number of the next handle."""
        self.lossy = False
        """Handles that an earlier process gave out are not known here."""

    def opendir(self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int) -> bytes:
        directory = self._tree.inodes[nodeid]
        if not isinstance(directory, Directory):
            return error_reply(unique, errno.ENOTDIR)
        fh = self.next_fh
        self.next_fh += 1
        self._open[fh] = _Listing(directory)
        flags = FOPEN_CACHE_DIR
        if directory.listed == directory.ctime:
            flags |= FOPEN_KEEP_CACHE
        directory.listed = directory.ctime
        return open_reply(unique, fh, flags)

    def readdir(
        self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int
    ) -> bytes | Awaitable[bytes]:
        return self._read(unique, nodeid, message, end, plus=False)

    def readdirplus(
        self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int
    ) -> bytes | Awaitable[bytes]:
        return self._read(unique, nodeid, message, end, plus=True)

    def releasedir(
        self, unique: int, nodeid: int, uid: int, gid: int, message: memoryview, end: int
    ) -> bytes:
        self.drop(decode_release(message, end)[0])
        return empty_reply(unique)

    def drop(self, fh: int) -> None:
        """The kernel has closed, or never got, this handle."""
        if self._open.pop(fh, None) is None and not self.lossy:
            raise KeyError(fh)

    def departing(self) -> list[OpenDirectory]:
        """The open directories, for the next process, with every cookie that somebody may come back with."""
        return [
            OpenDirectory(fh, listing.directory.ino, _cookies(listing)) for fh, listing in self._open.items()
        ]

    def reopen(self, directory: Directory, known: OpenDirectory) -> None:
        """A handle that an earlier process gave out."""
        self._open[known.fh] = listing = _Listing(directory)
        if known.order is not None:
            listing.order = _GivenOrder(known.order)

    def _lost(self, fh: int, nodeid: int) -> _Listing:
        """A handle that a process gave out which was killed: it can be read from the beginning."""
        if not self.lossy:
            raise KeyError(fh)
        directory = self._tree.inodes[nodeid]
        assert isinstance(directory, Directory)
        listing = self._open[fh] = _Listing(directory)
        listing.lost = True
        return listing

    def _read(
        self, unique: int, nodeid: int, message: memoryview, end: int, *, plus: bool
    ) -> bytes | Awaitable[bytes]:
        fh, cookie, size, _, _, _ = decode_read(message, end)
        listing = self._open.get(fh) or self._lost(fh, nodeid)
        if cookie and listing.lost:
            return error_reply(unique, errno.ESTALE)  # nobody knows which name it stood for
        listing.lost = False
        if cookie == 0 or listing.order is None:
            names = list(self._tree.children(listing.directory))
            order = _Order(len(names))
            if len(names) > _SLICE:
                return self._read_later(unique, listing, order, names, cookie, size, plus=plus)
            order.add(names)
            listing.order = order
        return self._page(unique, listing.directory, listing.order, cookie, size, plus=plus)

    async def _read_later(
        self,
        unique: int,
        listing: _Listing,
        order: _Order,
        names: list[bytes],
        cookie: int,
        size: int,
        *,
        plus: bool,
    ) -> bytes:
        for start in range(0, len(names), _SLICE):
            order.add(names[start : start + _SLICE])
            await asyncio.sleep(0)
        listing.order = order
        return self._page(unique, listing.directory, order, cookie, size, plus=plus)

    def _page(
        self,
        unique: int,
        directory: Directory,
        order: _Order | _GivenOrder,
        cookie: int,
        size: int,
        *,
        plus: bool,
    ) -> bytes:
        """As many records behind `cookie` as fit."""
        encode, size_of = (self._record_plus, direntplus_size) if plus else (self._record, dirent_size)
        records: list[bytes] = []
        room = size
        if cookie < _FIRST - 1:
            parent = directory.parent or directory
            for name, node, behind in ((b".", directory, 1), (b"..", parent, 2)):
                self._tree.identify(node, node.parent or node)
                if cookie < behind and (room := room - size_of(len(name))) >= 0:
                    records.append(encode(name, node, behind))
        children = self._tree.children(directory)
        cookies: list[int] = []
        names: list[bytes] = []
        for behind, name in order.behind(cookie):
            if name in children:
                room -= size_of(len(name))
                if room < 0:
                    break
                cookies.append(behind)
                names.append(name)
        if plus:
            self._encode_plus(names, *remember_all(directory, names), cookies, records)
        else:
            inos, found = identify_all(directory, names)
            modes = [
                packed_attributes(child)[0] if isinstance(child, bytes) else child.mode for child in found
            ]
            records.extend(map(dirent, inos, cookies, names, modes))
        return data_reply(unique, b"".join(records))

    def _record(self, name: bytes, node: Node, cookie: int) -> bytes:
        return dirent(node.ino, cookie, name, node.mode)

    def _record_plus(self, name: bytes, node: Node, cookie: int) -> bytes:
        """A record with attributes; it counts as a kernel reference, but for `.` and `..` (fuse_direntplus_link)."""
        attributes = self._answers.attributes(node)
        return direntplus(node.ino, 0, self._answers.validity, attributes, node.ino, cookie, name, node.mode)

    def _encode_plus(
        self,
        names: list[bytes],
        inos: list[int],
        found: list[Child],
        cookies: list[int],
        records: list[bytes],
    ) -> None:
        """`_record_plus` of each, quicker for most files: those that were staged together share all but number, name and size."""
        tree, validity = self._tree, self._answers.validity
        mark: object = None
        mode, attributes = 0, b""
        for name, ino, child, cookie in zip(names, inos, found, cookies, strict=True):
            if isinstance(child, bytes):
                if child[SHARED] != mark:
                    mark = child[SHARED]
                    mode, mtime = packed_attributes(child)
                    attributes = blob_attributes(mtime, mode, tree.uid, tree.gid)
                size = packed_size(child)
            elif (
                isinstance(child, File)
                and child.extra is None
                and child.ctime == child.mtime
                and isinstance(child.content, Digest)
            ):
                if (child.mode, child.mtime) != mark:
                    mark = mode, mtime = child.mode, child.mtime
                    attributes = blob_attributes(mtime, mode, tree.uid, tree.gid)
                size = child.content.size
            else:
                records.append(self._record_plus(name, child, cookie))
                continue
            records.append(direntplus_of_blob(ino, cookie, name, validity, size, attributes, mode))


def _cookies(listing: _Listing) -> list[tuple[int, bytes]] | None:
    """All that were given, or may have been: the kernel reads on in a listing that it took by another handle of ours."""
    if isinstance(listing.order, _GivenOrder):
        return listing.order.pairs
    children = listing.directory.children
    if children is None:
        return None
    order = _Order(len(children))
    order.add(children)
    return list(order.behind(0))
