"""The output bases and their builds: start, clean, stage, stat, finalize, save and restore. Never knows a protocol or a kernel.

Rules: protocols, sections 1 and 2.4. Different output bases never wait for each other; on one base, making ready for a build and
saving take turns, staging and stat need no turn (tree operations are atomic), and Clean waits for nobody.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from outputd.builds.checkpoints import Checkpoints
from outputd.builds.finalized import Finalized
from outputd.builds.journals import NO_JOURNAL, Journals
from outputd.builds.kernel import Changes, KernelCache
from outputd.builds.loading import Loading
from outputd.builds.output_base import Build, Modified, Obtainable, OutputBase, Upload
from outputd.builds.pace import Pace
from outputd.builds.presence import Presence
from outputd.builds.restoring import Restoring
from outputd.builds.saving import Saving
from outputd.builds.staging import Staging
from outputd.builds.state import State
from outputd.builds.stats import Stats
from outputd.digest import Digest, DigestFunction
from outputd.drive.content import Content
from outputd.drive.feed import Feed
from outputd.drive.ingest import Ingest
from outputd.drive.loader import Loader
from outputd.drive.reaper import Reaper
from outputd.errors import Invalid, NotFound, OutputdError, Precondition, Unavailable
from outputd.store.base import BlobStore
from outputd.tree.log import UNLOGGED
from outputd.tree.node import Directory, File
from outputd.tree.resolve import VirtualRoot
from outputd.tree.rules import check_name
from outputd.tree.status import Status
from outputd.tree.tree import Tree

_log = logging.getLogger(__name__)

SCRATCH: Final = "/scratch"
"""In place of an output base's id, for the directory beside `outputs` that people stage actions in. It is kept as an output path
is, but no build can have this id, for it is no name of one component."""
_PREFIXES: Final = 10_000
"""Changed paths up to which a starting build is told of them; with more it may as well look at everything."""
_PREFIX_BYTES: Final = 1 << 20
"""The same for their text."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the settings say of builds."""

    local_only: bool
    """There is no remote CAS."""
    initial_contents: bool
    """outputs.initial_contents."""
    max_tree_bytes: int
    """outputs.max_tree_bytes."""


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What a client says when it starts a build."""

    output_base_id: str
    build_id: str
    instance_name: str
    function: DigestFunction
    prefix: str
    """Where the client sees the `outputs` directory."""
    aliases: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Started:
    """What a client is told when its build has started."""

    suffix: str
    """From `outputs` to the output path."""
    modified: Modified | None


@dataclass(frozen=True, slots=True)
class BaseStatus:
    """One output base, for people."""

    id: str
    running_build_id: str
    """Empty: none runs."""
    last_build_id: str
    last_build_time: int
    """Nanoseconds since 1970; 0: none ended yet."""
    entries: int
    """Nodes in memory."""
    dirty: bool
    save_error: str
    """Why the last attempt to save it failed; empty when it did not."""
    obtainable: Obtainable
    upload: Upload


class Builds:
    """All output bases of one mount. Lives on the event loop."""

    def __init__(
        self,
        tree: Tree,
        loader: Loader,
        content: Content,
        ingest: Ingest,
        reaper: Reaper,
        blobs: BlobStore,
        state: State,
        journals: Journals,
        kernel: KernelCache,
        presence: Presence,
        options: Options,
        *,
        feed: Feed | None = None,
        saved: Callable[[OutputBase], None] | None = None,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        """`feed` is told what happens, `saved` of an output base when the checkpoint after a build is there; `now` tells the time
        in nanoseconds since 1970."""
        self._tree = tree
        self._loader = loader
        self._ingest = ingest
        self._reaper = reaper
        self._blobs = blobs
        self._state = state
        self._journals = journals
        self._kernel = kernel
        self._presence = presence
        self._options = options
        self._now = now
        self._feed = feed or Feed()
        self._restoring = Restoring(
            tree, loader, content, ingest, state, journals, tracking=options.initial_contents, now=now
        )
        self._bases: dict[str, OutputBase] = {}
        self.cleans = 0
        """How often something was cleaned: since then, there may be what nobody needs."""
        self._running: dict[str, Build] = {}
        """By build id."""
        self._left_over: dict[str, list[str]] = {}
        """Journals of output bases that were cleaned, by id, until their rows are gone."""
        saving = Saving(tree, loader, ingest, blobs.local, state, journals)
        self.checkpoints: Final = Checkpoints(saving, self._bases.values, saved)
        """To be run as long as there are builds."""

    # the verbs

    async def start(self, request: BuildRequest) -> Started:
        """Start a build, or go on with the one of that id. The output path exists, and holds nothing that the CAS has lost.

        Raises Invalid, Precondition, and Unavailable when the CAS does not answer; then the build id is known all the same, and
        asking again looks through the output path again.
        """
        _base_name(request.output_base_id)
        if not request.build_id:
            raise Invalid("build_id: is empty, expected an id that no other build has")
        virtual_root = VirtualRoot(request.prefix, request.output_base_id, request.aliases)
        async with self._changes() as changes:
            build = self._running.get(request.build_id)
            if build is None:
                base = self._bases.get(request.output_base_id) or self._add_base(
                    request.output_base_id, request.instance_name, request.function
                )
                changes.note()
                previous = base.build
                build = Build(request.build_id, base, request.instance_name, request.function, virtual_root)
                base.build = build
                base.aliases = tuple(request.aliases)
                self._running[build.id] = build
                _log.info("build %s of output base %s started", build.id, base.id)
                self._feed.tell("build started", base.id, build_id=build.id)
                if previous is not None:
                    _log.info("build %s of output base %s was never finalized", previous.id, base.id)
                    self._end(previous)
                base.note()
            elif build.base.id != request.output_base_id:
                raise Precondition(f"build_id {build.id}: is running on output base {build.base.id}")
            async with build.base.lock:
                build.check()
                if not build.ready:
                    await self._make_ready(build, changes)
        return Started(request.output_base_id, build.modified)

    async def clean(self, output_base_id: str) -> None:
        """Take an output base away with all that is in it, at once; fine when there is none. Its running build is ended.

        Raises Invalid, and Exhausted or Unavailable when the saved state cannot be removed; then asking again tries again.
        """
        _base_name(output_base_id)
        async with self._changes() as changes:
            base = self._bases.pop(output_base_id, None)
            if base is not None:
                base.removed = True
                base.volume.log = UNLOGGED
                if base.build is not None:
                    self._end(base.build)
                self._tree.remove_volume(base.volume, self._now())
                changes.note()
                if base.journal is not None:
                    base.journal.close()
                    self._left_over.setdefault(output_base_id, []).extend([*base.journals, base.journal.path])
                _log.info("output base %s cleaned", output_base_id)
                self._feed.tell("cleaned", output_base_id)
            # The row first: without its journals a restart would find an earlier state there.
            await self._state.forget(output_base_id)
            self._journals.remove(self._left_over.pop(output_base_id, ()))
            self.cleans += 1

    def staging(self, build_id: str) -> Staging:
        """For placing artifacts; an asynchronous context manager. Raises Precondition."""
        build = self._build(build_id)
        return Staging(
            build,
            self._changes(),
            Loading(self._loader),
            self._state,
            self._blobs,
            local_only=self._options.local_only,
            max_tree_bytes=self._options.max_tree_bytes,
            now=self._now(),
            feed=self._feed,
        )

    def stats(self, build_id: str) -> Stats:
        """For looking at paths. Raises Precondition."""
        return Stats(self._build(build_id), Loading(self._loader), self._ingest)

    def function(self, build_id: str) -> DigestFunction:
        """What the digests of a build are made with. Raises Precondition."""
        return self._build(build_id).function

    def finalize_artifacts(self, build_id: str, artifacts: Sequence[tuple[bytes, Digest]]) -> None:
        """These paths will not be changed any more by this build. Raises Precondition, Exhausted or Unavailable."""
        base = self._build(build_id).base
        if not self._options.initial_contents:
            base.finalized = None
        elif base.finalized is not None:
            root = base.volume.root
            if base.journal is not None:
                base.journal.check_room()
            entries = [base.finalized.add(root, path, digest) for path, digest in artifacts]
            if base.journal is not None:
                base.journal.finalized(b"".join(entries))

    def finalize_build(self, build_id: str, *, successful: bool) -> None:
        """End a build; fine when no such build runs. The checkpoint follows in the background.

        A failure of that is logged and shown by `describe`: it must not fail the build.
        """
        build = self._running.get(build_id)
        if build is not None:
            _log.info("build %s finalized, %s", build_id, "successful" if successful else "not successful")
            self._end(build)
            build.base.note()
            build.base.obtainable.due = self._now()  # what it has staged was never asked for
            self.checkpoints.ask(build.base)
            self._feed.finalized(build.base.id, build_id)

    # saving and restoring

    async def check_kept(self) -> None:
        """Make checkpoints of everything, or raise Unavailable: what is now would not be what a restart finds. For when nothing
        moves and `checkpoints.run` has ended."""
        await self.checkpoints.all()
        if self._ingest.busy:
            raise Unavailable("files that were just closed are still being hashed")
        for base in self._bases.values():
            if base.dirty:
                raise Unavailable(f"output base {base.id} cannot be saved: {base.save_error or 'it changes'}")

    async def restore(self, first: Callable[[], Awaitable[Collection[int]]] | None = None) -> None:
        """Bring back everything that there was. To be called once, with ingest running, before anybody can see the tree.

        `first` is called when the output paths are as they were, before anything is done with their local files; it returns the
        keys of private files that are needed besides. Raises what it raises, and Corrupt or Unavailable when the state cannot be
        read at all.
        """
        for base in await self._restoring.restore(first):
            self._bases[base.id] = base
            if base.build is not None:
                self._running[base.build.id] = base.build
            if base.journals:
                self.checkpoints.ask(base)

    def open_scratch(self) -> None:
        """Have the directory `scratch`, as it was or empty. To be called after `restore`. Raises Exhausted or Unavailable."""
        if SCRATCH not in self._bases:
            self._add_base(SCRATCH, "", DigestFunction.SHA256)

    @property
    def restored(self) -> bool:
        """Whether everything that there was has come back."""
        return self._restoring.complete

    @property
    def bases(self) -> Sequence[OutputBase]:
        """All there are at this moment, by id; SCRATCH is none of them."""
        return [base for _, base in sorted(self._bases.items()) if base.id != SCRATCH]

    async def describe(self) -> list[BaseStatus]:
        """The output bases, by id."""
        return [
            BaseStatus(
                base.id,
                "" if base.build is None else base.build.id,
                base.last_build_id,
                base.last_build_time,
                await _entries_in_memory(base.volume.root),
                base.dirty,
                base.save_error,
                base.obtainable,
                base.upload,
            )
            for base in self.bases
        ]

    def live(self) -> list[OutputBase]:
        """The output bases there are now, and SCRATCH."""
        return list(self._bases.values())

    def root(self, output_base_id: str) -> Directory:
        """The top of an output path. Raises NotFound."""
        base = self._bases.get(output_base_id)
        if base is None:
            raise NotFound(
                f"output_base_id {output_base_id!r}: no build with it was ever started, or it was cleaned"
            )
        return base.volume.root

    def gone(self, file: File) -> None:
        """Somebody has read a file, and its blob is nowhere: whatever its lease says, the next build to start asks for it."""
        if file.parent is not None:
            self._presence.doubt(file.parent)

    # within

    def _changes(self) -> Changes:
        return Changes(self._tree, self._kernel, self._reaper)

    def _build(self, build_id: str) -> Build:
        build = self._running.get(build_id)
        if build is None:
            raise Precondition(
                f"build_id {build_id!r}: no such build runs; it was ended, or outputd was restarted since StartBuild"
            )
        return build

    def _add_base(self, base_id: str, instance_name: str, function: DigestFunction) -> OutputBase:
        now = self._now()
        volume = self._tree.add_volume(self._state.take_number(), os.fsencode(base_id), now)
        volume.function = function
        base = OutputBase(base_id, volume, instance_name, now, now=time.monotonic())
        base.finalized = self._nothing_finalized()
        journal = self._journals.open(base.facts, after=NO_JOURNAL, fresh=True)
        try:
            journal.create()
        except OutputdError:
            self._tree.remove_volume(volume, now)
            raise
        base.keep(journal)
        self._bases[base.id] = base
        return base

    def _nothing_finalized(self) -> Finalized | None:
        return Finalized() if self._options.initial_contents else None

    async def _make_ready(self, build: Build, changes: Changes) -> None:
        base = build.base
        root = base.volume.root
        if base.instance_name != build.instance_name or base.volume.function is not build.function:
            if root.children != {}:
                _log.warning(
                    "output base %s: its contents are dropped, because they belong to instance name %r and %s, and build %s to "
                    "instance name %r and %s",
                    base.id,
                    base.instance_name,
                    base.volume.function.name,
                    build.id,
                    build.instance_name,
                    build.function.name,
                )
                self._tree.clear(root, self._now())
                changes.note()
            base.volume.instance_name = build.instance_name
            base.volume.function = build.function
            base.finalized = self._nothing_finalized()
        empty = root.children == {}
        checked = await self._presence.withdraw_missing(root, changes)
        base.obtainable.note(checked.lease, checked.withdrawn, in_time=checked.in_time, now=self._now())
        if checked.withdrawn != (0, 0):
            _log.warning(
                "output base %s: %d files and the contents of %d directories were removed, because the CAS has lost them",
                base.id,
                *checked.withdrawn,
            )
        if base.finalized is not None and base.last_build_id and not empty:
            paths = await base.finalized.modified(root, self._loader)
            if len(paths) <= _PREFIXES and sum(map(len, paths)) <= _PREFIX_BYTES:
                build.modified = Modified(base.last_build_id, [path.decode() for path in paths])
        build.check()
        build.ready = True
        base.note()

    def _end(self, build: Build) -> None:
        """From here on its id is unknown."""
        base = build.base
        build.ended = True
        self._running.pop(build.id, None)
        if base.build is build:
            base.build = None
        base.last_build_id = build.id
        base.last_build_time = self._now()


def _base_name(output_base_id: str) -> None:
    """Raises Invalid unless it can be the name of an output path (protocols: one valid path component)."""
    name = output_base_id.encode(errors="surrogateescape")
    if check_name(name) is not Status.OK:
        shown = output_base_id if len(output_base_id) <= 300 else output_base_id[:300] + "…"
        raise Invalid(f"output_base_id {shown!r}: expected one path component of 1 to 255 bytes")


async def _entries_in_memory(root: Directory) -> int:
    pace = Pace()
    count = 0
    stack = [root]
    while stack:
        children = stack.pop().children or {}
        count += len(children)
        stack.extend(node for node in children.values() if isinstance(node, Directory))
        if pace.due:
            await pace.turn()
    return count
