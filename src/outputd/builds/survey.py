"""Which blobs of an output path need to be asked for, found by looking into no more of it than that takes. Asks nobody itself,
expands nothing and changes nothing.

The files that one directory holds itself are asked for together: a *unit*. Leases tell when a unit, or everything below a
directory, was last seen to be obtainable. What has no lease, or too old a one, is looked into and asked for; of the rest as much as
the budget allows, what was asked for longest ago first.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from typing import Final, NamedTuple

from outputd.builds.leases import Lease, Leases, files_key, subtree_key
from outputd.builds.pace import Pace
from outputd.digest import Digest
from outputd.drive.loader import Loader
from outputd.errors import Corrupt, NotFound
from outputd.tree.merkle import is_utf8
from outputd.tree.node import (
    DIRECTORY_MODE,
    Child,
    Directory,
    File,
    Local,
    PackedFile,
    Volume,
    packed_content,
)

_log = logging.getLogger(__name__)

_STRIDE: Final = 256
"""Entries between two looks at the clock."""
_MOST: Final = 1 << 60
"""Counted so far: a Tree of a few kilobytes can name more files than an integer of SQLite holds."""


class Collapsed(NamedTuple):
    """What a collapsed directory holds. Equal ones are looked into once, or a Tree could be made that takes for ever."""

    digest: Digest | None
    record: bytes | None
    tree: Digest | None

    @classmethod
    def of(cls, directory: Directory) -> Collapsed:
        return cls(directory.digest, directory.record, directory.tree)

    @property
    def key(self) -> bytes | None:
        """Of the lease of everything in and below it."""
        return subtree_key(*self)

    def directory(self, volume: Volume) -> Directory:
        """One such directory that lies in no tree. The volume says which instance of the CAS has its message."""
        made = Directory(DIRECTORY_MODE, 0, volume)
        made.children = None
        made.digest, made.record, made.tree = self
        return made


class Place:
    """A directory of the output path, as far as the survey knows it."""

    __slots__ = (
        "blobs",
        "files_asked",
        "gone",
        "holders",
        "inner",
        "key",
        "lacks",
        "lease",
        "opened",
        "what",
    )

    def __init__(self, what: Directory | Collapsed, key: bytes | None) -> None:
        self.what = what
        """A node of the tree that is expanded; anything else by what it holds."""
        self.key = key
        """Of the lease of everything in and below it, when it was seen by the one that holds it; None: not known by a digest."""
        self.lease: Lease | None = None
        """What was known of everything in and below it; once concluded, what is."""
        self.opened = False
        """Whether it was looked into. If not, its lease is trusted."""
        self.holders: list[Place] = []
        self.inner: list[Place] = []
        self.blobs = 0
        """Files that it holds itself, and that are blobs."""
        self.files_asked: int | None = None
        """When these were last seen to be obtainable, in nanoseconds since 1970; None: never, or not all of them were."""
        self.lacks = False
        """Something that it holds itself is missing."""
        self.gone = False
        """The message that says what it holds cannot be had, or is none."""


class Unit(NamedTuple):
    """The blobs that are files of one directory."""

    place: Place
    key: bytes | None
    """Of their lease; None: they cannot have one."""
    files: list[Digest | PackedFile]

    def digests(self) -> set[Digest]:
        """Of its files."""
        return {file if isinstance(file, Digest) else packed_content(file) for file in self.files}


class Survey:
    """One look through an output path."""

    def __init__(self, root: Directory, loader: Loader, leases: Leases, *, now: int, trusted: int) -> None:
        """Leases since `trusted` count. Both times in nanoseconds since 1970."""
        held = Collapsed.of(root)
        self.root = Place(held if root.children is None else root, held.key)
        self._volume = root.volume
        self.instance_name = root.volume.instance_name
        self._loader = loader
        self._leases = leases
        self.now = now
        """When the questions of this survey are asked."""
        self._trusted = trusted
        self._collapsed: dict[Collapsed, Place] = {} if root.children is not None else {held: self.root}
        self._queue: list[tuple[int, int, Place | Unit]] = []
        """What is trusted, the oldest first, and of those the last one that was seen: so as to look into few directories."""
        self._seen = 0
        self.gone: list[Place] = []
        self.missing: set[Digest] = set()
        """Blobs that were found to be nowhere."""
        self.lost = False
        """The remote lacks something that it had, and that we hold."""
        self.answers = 0
        """Blobs that were asked for with an answer."""

    @property
    def trusting(self) -> bool:
        """Once all units were given out: whether something was left out, because its lease is trusted."""
        return bool(self._queue)

    @property
    def losses(self) -> bool:
        """Whether something was found to be lost."""
        return self.lost or bool(self.missing or self.gone)

    async def units(self, budget: int) -> AsyncGenerator[Unit]:
        """What is to be asked for: everything that is not trusted, and of what is no more blobs than the budget has left then.

        A unit that does not fit into the budget is left out. Raises what Loader.load raises, but for NotFound and Corrupt.
        """
        pace = Pace()
        self.root.lease = self._trust([self.root.key]).get(self.root.key or b"")
        stack: list[Place] = []
        self._sort_in([self.root], stack)
        while stack:
            unit = await self._open(stack.pop(), stack, pace)
            if unit is not None:
                budget -= len(unit.files)
                yield unit
        while self._queue and budget > 0:
            _, _, oldest = heapq.heappop(self._queue)
            if isinstance(oldest, Place):
                unit = await self._open(oldest, stack, pace)
                while stack:
                    # Its lease was trusted, and a lease of something in there has been lost since.
                    if unit is not None:
                        budget -= len(unit.files)
                        yield unit
                    unit = await self._open(stack.pop(), stack, pace)
            else:
                unit = oldest if len(oldest.files) <= budget else None
            if unit is not None:
                budget -= len(unit.files)
                yield unit

    def answered(self, units: Iterable[Unit], missing: Collection[Digest], lost: Collection[Digest]) -> None:
        """These units were asked for. Of their blobs the missing ones are nowhere, and the lost ones only cached here: these can be
        read, but nothing promises that they stay."""
        leases: dict[bytes, Lease] = {}
        ended: list[bytes] = []
        self.missing.update(missing)
        uncertain = {*missing, *lost}
        for unit in units:
            self.answers += len(unit.files)
            if uncertain and not uncertain.isdisjoint(unit.digests()):
                unit.place.lacks = not self.missing.isdisjoint(unit.digests())
                unit.place.files_asked = None
                if unit.key is not None:
                    ended.append(unit.key)
            else:
                unit.place.files_asked = self.now
                if unit.key is not None:
                    leases[unit.key] = Lease(self.now, len(unit.files))
        self._leases.put(self.instance_name, leases)
        self._leases.drop(self.instance_name, ended)

    async def conclude(self) -> Lease | None:
        """Know of every directory what is known of all that it holds; the lease of the whole, if it deserves one."""
        pace = Pace()
        stack = [(self.root, False)]
        concluded: set[Place] = set()
        leases: dict[bytes, Lease] = {}
        while stack:
            place, ready = stack.pop()
            if not ready:
                if place.opened and place not in concluded:
                    concluded.add(place)
                    stack.append((place, True))
                    stack += ((inner, False) for inner in place.inner)
                continue
            lease = self._concluded(place)
            if any(inner.key is None for inner in place.inner):
                place.key = None  # its digest stood for what was in there before
            if place.key is not None:
                if lease is None:
                    self._leases.drop(self.instance_name, [place.key])
                elif lease != place.lease:
                    leases[place.key] = lease
            place.lease = lease
            if pace.due:
                await pace.turn()
        self._leases.put(self.instance_name, leases)
        return self.root.lease

    def lacking(self) -> set[Collapsed]:
        """The collapsed directories that hold something missing or gone, at any depth."""
        stack = [place for place in self._collapsed.values() if place.lacks or place.gone]
        lacking: set[Place] = set()
        while stack:
            place = stack.pop()
            if place not in lacking:
                lacking.add(place)
                stack.extend(place.holders)
        return {place.what for place in lacking if isinstance(place.what, Collapsed)}

    # within

    def _concluded(self, place: Place) -> Lease | None:
        if place.gone or place.lacks:
            return None
        if place.blobs and place.files_asked is None:
            return None
        asked = place.files_asked if place.blobs and place.files_asked is not None else self.now
        blobs = place.blobs
        for inner in place.inner:
            if inner.lease is None:
                return None
            if inner.lease.blobs:
                asked = min(asked, inner.lease.asked)
                blobs += inner.lease.blobs
        return Lease(asked, min(blobs, _MOST))

    def _trust(self, keys: Iterable[bytes | None]) -> Mapping[bytes, Lease]:
        """The leases among these that count. Where there are no blobs there is nothing that could be lost."""
        known = self._leases.get(self.instance_name, [key for key in keys if key is not None])
        return {
            key: lease
            for key, lease in known.items()
            if not lease.blobs or self._trusted <= lease.asked <= self.now
        }

    def _sort_in(self, places: Iterable[Place], stack: list[Place]) -> None:
        """Each to what is to be looked into, or to what is trusted."""
        for place in places:
            if place.lease is None:
                stack.append(place)
            elif place.lease.blobs:
                self._wait(place.lease.asked, place)

    def _wait(self, asked: int, what: Place | Unit) -> None:
        self._seen -= 1
        heapq.heappush(self._queue, (asked, self._seen, what))

    async def _open(self, place: Place, stack: list[Place], pace: Pace) -> Unit | None:
        """Look into a place: what is in there goes to `stack` or waits, its files are returned if they are to be asked for now."""
        what = place.what
        if isinstance(what, Directory) and what.children is not None:
            digest, function = what.digest, what.volume.function
            if Collapsed.of(what).key != place.key:
                place.key = None  # it was changed after the one that holds it was looked into
            children = list(what.children.items())
            # At this moment: what they hold later is not what the digest of this one stands for.
            held = {id(node): Collapsed.of(node) for _, node in children if isinstance(node, Directory)}
        else:
            aside = (Collapsed.of(what) if isinstance(what, Directory) else what).directory(self._volume)
            entries = await self._entries(place, aside)
            if entries is None:
                place.opened = True
                return None
            digest = aside.digest
            assert digest is not None, "what was read has a digest"
            function = digest.function
            children = list(entries.items())
            held = {}
        files: list[Digest | PackedFile] = []
        inner: list[Place] = []
        unseen: list[Place] = []
        named = True
        for index, (name, node) in enumerate(children, 1):
            if isinstance(node, bytes | File):
                content = node if isinstance(node, bytes) else node.content
                if not isinstance(content, Local):
                    files.append(content)
                    if content[0] != function or not (name.isascii() or is_utf8(name)):
                        named = False  # it stands in the attribute record, and the digest says nothing of it
            elif isinstance(node, Directory):
                inner.append(self._place(node, held.get(id(node)), place, unseen))
            if index % _STRIDE == 0 and pace.due:
                await pace.turn()
        if isinstance(what, Directory) and what.digest != digest:
            named, place.key = False, None  # the files may be others by now
        key = files_key(digest) if named and digest is not None else None
        known = self._trust([key, *(some.key for some in unseen)])
        for some in unseen:
            some.lease = None if some.key is None else known.get(some.key)
        self._sort_in(unseen, stack)
        place.inner = inner
        place.blobs = len(files)
        lease = None if key is None else known.get(key)
        if lease is not None:
            place.files_asked = lease.asked
        place.opened = True
        if pace.due:
            await pace.turn()
        if not files:
            return None
        unit = Unit(place, key, files)
        if lease is None:
            return unit
        self._wait(lease.asked, unit)
        return None

    def _place(self, node: Directory, was: Collapsed | None, holder: Place, unseen: list[Place]) -> Place:
        """For a directory that `holder` holds; `was`: what it held when that one's digest was taken, for one in the tree."""
        held = was or Collapsed.of(node)
        if was is not None and node.children is not None:
            place = Place(node, held.key)  # a directory has one name
            unseen.append(place)
        else:
            # Not the node of a collapsed one: it would keep all entries beside it in memory.
            known = self._collapsed.get(held)
            place = known or self._collapsed.setdefault(held, Place(held, held.key))
            if known is None:
                unseen.append(place)
        place.holders.append(holder)
        return place

    async def _entries(self, place: Place, aside: Directory) -> Mapping[bytes, Child] | None:
        """None when they are gone."""
        try:
            return await self._loader.peek(aside)
        except (NotFound, Corrupt) as error:
            _log.warning("a directory cannot be shown any more: %s", error)
            place.gone = True
            self.gone.append(place)
            return None
